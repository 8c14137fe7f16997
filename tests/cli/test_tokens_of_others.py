"""A recipe whose sources are tokens of others, and text beside them, from `collect` to the batches of pretraining."""

import dataclasses
import shutil

import numpy as np
import pytest

from tests.data.test_token_files import datatrove, megatron
from tpullm.cli import collect, tokenize
from tpullm.corpus import tenki
from tpullm.data.stream import held_out_batches, pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.recipe.schema import CorpusConfig, MixtureConfig, Recipe, Source, TokenizerConfig, TrainConfig
from tpullm.run import manifest
from tpullm.system.errors import UserError
from tpullm.tokenizer import load, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a base, whose tokenizer is one of tenki's language; tokens of it, and text."""
    folder = tmp_path_factory.mktemp("tokens")
    base = folder / "run" / "base"
    (base / "tokenizer").mkdir(parents=True)
    config = TokenizerConfig(vocabulary_size=640, words="none", reserved_tokens=2)
    trainer.train([("ja", text) for text in tenki.documents(600, 0)], config, base / "tokenizer" / "tokenizer.model")
    manifest.write(base, manifest.inputs({}, {"config.json": "1"}))
    documents = [load(base / "tokenizer").document(text) for text in tenki.documents(300, 1)]
    for name, write, own in (("ds", datatrove, documents[:150]), ("bin", megatron, documents[150:])):
        (folder / name).mkdir()
        write(folder / name, own)
    (folder / "texts").mkdir()
    for number, text in enumerate(tenki.documents(60, 2)):
        (folder / "texts" / f"{number}.txt").write_text(text * 3)
    return folder


def recipe_of(folder, count=3) -> Recipe:
    sources = [
        Source("crawl", "tokens", str(folder / "ds"), licence="ODC-By-1.0", language="ja"),
        Source("texts", "text", str(folder / "texts"), licence="CC0-1.0", filter=False, deduplicate=False),
        Source("web", "tokens", str(folder / "bin"), licence="ODC-By-1.0"),
    ]
    train = TrainConfig(steps=20, batch_size=4, sequence_length=64)
    corpus = CorpusConfig(sources=sources[:count], held_out_fraction=0.1, workers=1)
    return Recipe(base="models/published", corpus=corpus, pretrain=train)


def made(recipe, run):
    collect.main(recipe, run)
    tokenize.main(recipe, run)


def read_whole(run, name):
    stores = [TokenStore(run / "tokens" / name / split) for split in ("train", "held_out")]
    documents = [store.document(number) for store in stores for number in range(store.lengths.documents)]
    return np.concatenate(documents).tolist()


def test_tokens_of_others_are_read_beside_text(folder):
    run, recipe = folder / "run", recipe_of(folder)
    made(recipe, run)
    model = load(run / "base" / "tokenizer")
    written = {name: model.decode(read_whole(run, name)) for name in ("crawl", "web", "texts")}
    for name, first in (("crawl", 0), ("web", 150)):
        for text in list(tenki.documents(300, 1))[first : first + 5]:
            assert text in written[name]
    facts = manifest.storage.read_json(run / "tokens" / manifest.FILE)["sources"]
    assert {name: set(each) for name, each in facts.items()} == dict.fromkeys(written, {"train", "held_out"})
    stream = pretraining_stream(recipe, run)
    assert {piece.source for step in range(5) for piece in stream.documents_at(step)} == {"crawl", "web", "texts"}
    assert set(held_out_batches(recipe, run, 4, 64, 0, np.arange(4))) == {"crawl", "texts", "web"}
    again = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    tokenize.main(recipe, run)
    assert {path: path.stat().st_mtime_ns for path in again} == again
    # Documents keep their language for the mixture.
    names, codes = TokenStore(run / "tokens" / "texts" / "train").languages()
    assert {names[code] for code in codes} == {"ja"}
    mixed = dataclasses.replace(recipe, mixture=MixtureConfig(languages={"ja": 2.0}))
    with pytest.raises(UserError, match=r"web/train does not say the languages of its documents; name the `language`"):
        pretraining_stream(mixed, run)


def test_a_recipe_may_have_tokens_of_others_alone_and_others_make_the_stages_again(folder, tmp_path):
    run = tmp_path / "run"
    for name in ("run/base", "ds"):
        shutil.copytree(folder / name, tmp_path / name)
    alone = recipe_of(tmp_path, 1)
    made(alone, run)
    assert {piece.source for piece in pretraining_stream(alone, run).documents_at(3)} == {"crawl"}
    before, model = manifest.finished_identity(run / "tokens"), load(run / "base" / "tokenizer")
    datatrove(tmp_path / "ds", [model.document(text) for text in tenki.documents(100, 5)])
    with pytest.raises(UserError, match=r"00000_x.ds: has .* put it back on every host"):
        pretraining_stream(alone, run)
    made(alone, run)
    assert manifest.finished_identity(run / "tokens") != before
    pretraining_stream(alone, run).batch_at(0)
