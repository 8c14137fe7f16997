"""Step 2: train a tokenizer on the documents, and write them as tokens.

It makes RUN/tokenizer and RUN/tokens. With --show TEXT it takes a MODEL instead of a recipe and makes nothing: it
prints how the tokenizer of MODEL splits TEXT.
"""

import time
from pathlib import Path
from typing import Any

from tpullm.cli.options import add_json, print_json
from tpullm.corpus import sources as corpus_sources
from tpullm.data import tokenizing
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest, stages
from tpullm.run.unfinished import Unfinished
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.system.process.parts import Engine
from tpullm.tokenizer import Tokenizer, trainer
from tpullm.tokenizer import load as load_tokenizer


def add_show_arguments(parser) -> None:
    """`MODEL --show TEXT [--json]`: print a split instead of making the stage."""
    about = "with --show: the model whose tokenizer is used, such as a run directory"
    parser.add_argument("model", metavar="MODEL", help=about)
    parser.add_argument("--show", metavar="TEXT", required=True, help="print how TEXT is split, and the ids")
    add_json(parser)


def show_main(arguments) -> None:
    """Print the split of a text."""
    split = find_tokenizer(storage.path(arguments.model)).pieces(arguments.show)
    if arguments.json:
        return print_json([{"piece": piece, "id": token} for piece, token in split])
    print("/".join(piece for piece, _ in split))
    print(" ".join(str(token) for _, token in split))


def main(recipe: Recipe, run: Path) -> None:
    """Train the tokenizer, then write the token store. Finished work is skipped, interrupted work resumes."""
    with Unfinished(run, "tokenize") as work, Engine(recipe.engine, recipe.tokenizer.workers, run) as engine:
        if not (run / "documents" / manifest.FILE).exists():
            raise UserError(f"{run / 'documents'}: no finished documents; run `tpullm collect` first")
        made_from = tokenizer_inputs(recipe, run)
        # A stage's identity is the hash of its inputs, so it is known before there is a tokenizer.
        documents = manifest.finished_identity(run / "documents")
        inputs = manifest.inputs({}, {"documents": documents, "tokenizer": manifest.identity_of(made_from)})
        folder = work.folder(inputs)
        _make_tokenizer(recipe, run, made_from, folder, engine)
        _make_tokens(recipe, run, inputs, folder, engine)


def tokenizer_inputs(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The inputs of the tokenizer: the documents and the settings, or the base that it comes from."""
    if recipe.base:
        return manifest.inputs({}, {"base": stages.need(run, "base", "import FOLDER")})
    upstream = {"documents": manifest.finished_identity(run / "documents")}
    return manifest.inputs(recipe.tokenizer, upstream, seed=recipe.seed, weights=_source_weights(recipe))


def _source_weights(recipe: Recipe) -> dict[str, float]:
    return {source.name: source.weight for source in corpus_sources.sources(recipe)}


def _make_tokenizer(recipe: Recipe, run: Path, inputs: dict[str, Any], folder: Path, engine: Engine) -> None:
    """Make RUN/tokenizer: a copy of the base's, or one that is trained on a sample of the documents."""
    stage, began = run / "tokenizer", time.monotonic()
    if manifest.is_finished(stage, inputs):
        return say("tokenizer: finished, skipped")
    tasks, most = [], recipe.tokenizer.sample_characters
    if not recipe.base:
        tasks = tokenizing.plan_sample(run / "documents", folder, _source_weights(recipe), most, recipe.seed)
    tokenizing.draw(tasks, engine)
    storage.remove_partials(run)
    if recipe.base:
        with storage.atomic_directory(stage) as temporary:
            for file in (run / "base" / "tokenizer").iterdir():
                (temporary / file.name).write_bytes(file.read_bytes())
            made = load_tokenizer(temporary)
            manifest.write(temporary, inputs, vocabulary_size=made.vocabulary_size)
        return say(f"tokenizer: copied from the base; a document ends in {made.piece(made.eos_id)}")
    sample = tokenizing.sample(tasks)
    with storage.atomic_directory(stage) as temporary:  # it replaces the old one when it is complete
        made = trainer.train(sample, recipe.tokenizer, temporary / "tokenizer.model")
        characters, seconds = sum(len(text) for _, text in sample), time.monotonic() - began
        ratios = characters_per_token(made, sample)
        facts = {"vocabulary_size": made.vocabulary_size, "sample_characters": characters}
        manifest.write(temporary, inputs, **facts, characters_per_token=ratios, seconds=round(seconds, 1))
    told = ", ".join(f"{language} {ratio:.2f}" for language, ratio in ratios.items())
    say(f"tokenizer: {made.vocabulary_size:,} tokens from {characters:,} characters in {seconds:.1f} s")
    say(f"tokenizer: characters per token: {told}")


def _make_tokens(recipe: Recipe, run: Path, inputs: dict[str, Any], folder: Path, engine: Engine) -> None:
    """Make RUN/tokens: the engine tokenizes parts of the documents; then each source and split gets a store."""
    stage, began = run / "tokens", time.monotonic()
    if manifest.is_finished(stage, inputs):
        return say("tokens: finished, skipped")
    planned = tokenizing.plan(run / "documents", folder, run / "tokenizer", corpus_sources.sources(recipe))
    tokenizing.make(planned, engine)
    storage.remove_tree(stage)
    size = load_tokenizer(run / "tokenizer").vocabulary_size
    facts = tokenizing.assemble(stage, planned, size, recipe.corpus.held_out_fraction)
    manifest.write(stage, inputs, sources=facts, seconds=round(time.monotonic() - began, 1))
    for source, splits in facts.items():
        training, held_out = (splits.get(split, {}).get("tokens", 0) for split in ("train", "held_out"))
        say(f"tokens: {source}: {training:,} for training, {held_out:,} held out")


def characters_per_token(made: Tokenizer, sample: list[tuple[str, str]]) -> dict[str, float]:
    """The mean number of characters in a token of the sample, by language."""
    totals: dict[str, list[int]] = {}
    for language, text in sample:
        total = totals.setdefault(language or "unknown", [0, 0])
        total[0] += len(text)
        total[1] += len(made.encode(text))
    return {language: round(characters / max(1, tokens), 3) for language, (characters, tokens) in totals.items()}


def find_tokenizer(model: Path) -> Tokenizer:
    """The tokenizer of a run directory, a stage, a checkpoint or a published model; `UserError` if there is none."""
    model = storage.path(model)
    for folder in (model, *model.absolute().parents[:3]):
        for found in (folder, folder / "tokenizer", folder / "base" / "tokenizer"):
            if (found / "tokenizer.model").is_file() or (found / "tokenizer.json").is_file():
                return load_tokenizer(found)
    return load_tokenizer(model)
