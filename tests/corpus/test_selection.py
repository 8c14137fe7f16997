"""Which documents are trained on, held out or dropped, decided by hashes over the whole corpus."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tpullm.corpus import dedup, selection
from tpullm.corpus.document import Record
from tpullm.corpus.document_files import HELD_OUT, TRAIN
from tpullm.corpus.tasks import Result, Task
from tpullm.corpus.text_hashes import text_hash
from tpullm.recipe.schema import CorpusConfig, Source

SOURCE = Source("s", "text", licence="CC0-1.0")
CONFIG = CorpusConfig(held_out_fraction=0.1)


def words(seed):
    return " ".join(f"word{number}" for number in np.random.default_rng(seed).integers(0, 9999, 120))


def task_of(source, texts, named=()):
    """A finished task: these texts, of which the recipe holds out those in `named`."""
    signed = source.deduplicate
    return Task(source, (), 0, Path(), Path(), CONFIG, 0), Result(
        records=[Record(text_hash(text), len(text), "en", text in named) for text in texts],
        keys=[dedup.exact_key(text) for text in texts if signed],
        signatures=[dedup.signature(text) for text in texts if signed],
    )


def selected(*pairs, config=CONFIG):
    tasks, results = zip(*pairs, strict=True)
    sources = list({task.source.name: task.source for task in tasks}.values())
    dropped = {source.name: Counter() for source in sources}
    chosen = selection.select(sources, list(tasks), list(results), config, dropped)
    return {name: [one.split for one in own] for name, own in chosen.items()}, dropped


def test_a_source_of_twenty_documents_is_held_out_by_hash_and_one_of_fewer_is_left_to_be_cut():
    texts = [words(seed) for seed in range(60)]
    twenty, nineteen = dataclasses.replace(SOURCE, name="a"), dataclasses.replace(SOURCE, name="b")
    splits, dropped = selected(task_of(twenty, texts[:20]), task_of(nineteen, texts[20:39]))
    assert splits["b"] == [TRAIN] * 19
    low = [int(text_hash(text)[:16], 16) < 0.1 * 2**64 for text in texts[:20]]
    assert any(low) and splits["a"] == [HELD_OUT if is_low else TRAIN for is_low in low]
    assert dropped == {"a": Counter(), "b": Counter()}


def test_where_the_fraction_catches_none_the_lowest_hash_is_held_out():
    texts = [words(seed) for seed in range(25)]
    config = dataclasses.replace(CONFIG, held_out_fraction=1e-12)
    (splits,) = selected(task_of(SOURCE, texts), config=config)[0].values()
    lowest = min(range(25), key=lambda index: text_hash(texts[index]))
    assert [index for index, split in enumerate(splits) if split == HELD_OUT] == [lowest]
    (splits,) = selected(task_of(SOURCE, texts), config=dataclasses.replace(CONFIG, held_out_fraction=0.0))[0].values()
    assert splits == [TRAIN] * 25


def test_the_first_documents_are_taken_and_what_the_recipe_holds_out_does_not_count():
    texts = [words(seed) for seed in range(30)]
    source = dataclasses.replace(SOURCE, documents=22, held_out="b")
    (splits,) = selected(task_of(source, texts, named=texts[:3]))[0].values()
    assert splits == [HELD_OUT] * 3 + [TRAIN] * 22 + [""] * 5


def test_of_copies_the_held_out_one_is_kept_and_else_the_first():
    texts, named = [words(seed) for seed in range(40)], words(1000)
    first, second = dataclasses.replace(SOURCE, name="a"), dataclasses.replace(SOURCE, name="b", held_out="x")
    near = f"{texts[5]} more"
    splits, dropped = selected(
        task_of(first, [*texts, texts[7], near, named]), task_of(second, [named, words(77), words(77)], named=[named])
    )
    assert splits["a"][40] == splits["a"][41] == splits["a"][42] == "" and "" not in splits["a"][:40]
    assert splits["b"] == [HELD_OUT, TRAIN, ""]
    assert dropped == {"a": Counter({"exact duplicate": 2, "near duplicate": 1}), "b": Counter({"exact duplicate": 1})}


def test_what_the_recipe_holds_out_is_evaluated_whole_copies_and_all():
    source = dataclasses.replace(SOURCE, held_out="x")
    (splits,), _ = (found.values() for found in selected(task_of(source, ["a b", "a b", "c"], named=["a b"])))
    assert splits == [HELD_OUT, HELD_OUT, TRAIN]


def test_a_source_that_keeps_its_copies_is_not_compared():
    source, other = dataclasses.replace(SOURCE, name="t", deduplicate=False), dataclasses.replace(SOURCE, name="u")
    splits, _ = selected(task_of(source, ["same"] * 30), task_of(other, ["same", "same", "one"]))
    assert "" not in splits["t"] and splits["u"] == [TRAIN, "", TRAIN]


@pytest.mark.parametrize("similarity", [0.5, 1.0])
def test_near_copies_are_dropped_if_the_recipe_says_so(similarity):
    config = dataclasses.replace(CONFIG, near_duplicate_similarity=similarity, held_out_fraction=0.0)
    texts = [words(seed) for seed in range(30)]
    task, result = task_of(SOURCE, [*texts, f"{texts[0]} more"])
    result.signatures = result.signatures if similarity < 1 else []
    (splits,) = selected((task, result), config=config)[0].values()
    assert splits == [TRAIN] * 30 + ["" if similarity < 1 else TRAIN]
