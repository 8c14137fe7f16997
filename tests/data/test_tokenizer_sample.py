"""The tokenizer's sample: each passage has the same chance, however the documents are cut into parts and tasks."""

import json
import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.corpus import made_documents
from tpullm.corpus import document_files
from tpullm.data import tokenizing
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError
from tpullm.tokenizer import trainer

SOURCES = {name: Source(name, "text", licence="CC0-1.0", language=name) for name in ("ja", "en")}


def write(folder, texts, per_part=1000):
    own = [(SOURCES[name], "train", texts[name]) for name in texts]
    apart = [(SOURCES[name], "held_out", ["held out"]) for name in texts]
    made_documents.write(folder / "documents", own + apart, per_part)


def plan(folder, characters, weights=None, seed=0):
    return tokenizing.plan_sample(folder / "documents", folder / "drawn", weights or {"en": 1.0}, characters, seed)


def sample(folder, characters, weights=None, seed=0):
    tasks = plan(folder, characters, weights, seed)
    for task in reversed(tasks):
        tokenizing.draw_task(task)
    return tokenizing.sample(tasks)


def reference(folder, characters, seed):
    """The passages of the lowest keys, from all documents at once."""
    keyed = []
    for document in document_files.read(folder / "documents", "en", "train"):
        own = list(trainer.passages(document["text"]))
        keys = tokenizing._keys_of_passages(document, seed)
        keyed += [(key, ("en", passage)) for key, passage in zip(keys[: len(own)], own, strict=True)]
    found = [pair for _, pair in sorted(keyed)]
    ends = list(accumulate(len(passage) for _, passage in found))
    return [pair for pair, end in zip(found, ends, strict=True) if end <= characters] or found[:1]


TEXTS = st.lists(st.text("ab本\n", max_size=40), max_size=12)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.integers(1, 6), st.integers(0, 300), st.integers(3, 30), st.integers(1, 20), st.integers(0, 9))
def test_the_sample_is_that_of_the_lowest_keys(tmp_path_factory, texts, copies, characters, per_part, tasks, seed):
    folder = tmp_path_factory.mktemp("any")
    write(folder, {"en": texts * copies}, per_part)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "BYTES", 12)
        patched.setattr(tokenizing, "TASKS", tasks)
        assert len(plan(folder, characters)) <= tasks
        assert sample(folder, characters, seed=seed) == reference(folder, characters, seed)


def test_another_seed_takes_another_sample_and_a_small_corpus_is_taken_whole(tmp_path):
    texts = [f"document {number:04} " * 20 for number in range(50)]
    write(tmp_path, {"en": texts}, per_part=20)
    assert sample(tmp_path, 5_000) != sample(tmp_path, 5_000, seed=1)
    for characters in (sum(map(len, texts)), 10**9):
        assert sorted(text for _, text in sample(tmp_path, characters)) == texts


def test_each_passage_has_the_same_chance_in_a_novel_as_in_copies_of_a_short_document(tmp_path, monkeypatch):
    """Draws are independent: their counts by passage and by seed are as far from the mean as chance has it."""
    monkeypatch.setattr(trainer, "BYTES", 40)
    novel = "".join(f"{number}".ljust(39) + "\n" for number in range(40))
    write(tmp_path, {"en": [novel] + [f"{40 + number}\n" for number in range(40)]}, per_part=11)
    planned = plan(tmp_path, 1)
    parts, file = tuple(part for task in planned for part in task.parts), planned[0].file
    chance, drawn = 0.25, np.zeros((60, 80))
    for seed in range(60):
        tokenizing.draw_task(tokenizing.Task(parts, file, 1, int(chance * tokenizing.KEYS), seed, 0))
        for _, _, passage in json.loads(file.read_text()):
            drawn[seed, int(passage)] += 1
    assert drawn.max() == 1
    for counts in (drawn.sum(0)[:40], drawn.sum(0)[40:], drawn.sum(1)[:60]):
        trials = drawn.size // 80 if len(counts) == 40 else 80
        squares = ((counts - trials * chance) ** 2).sum() / (trials * chance * (1 - chance))
        assert abs(squares - len(counts)) < 3 * math.sqrt(2 * len(counts))  # chi squared
    for half in (drawn[:, :40], drawn[:, 40:]):
        assert half.mean() == pytest.approx(chance, abs=3 * math.sqrt(chance * (1 - chance) / half.size))


@given(characters=st.integers(0, 10**9), size=st.integers(0, 10**13))
@example(characters=100, size=100)
def test_the_bound_is_the_deviations_above_what_is_needed(characters, size):
    limit = tokenizing.key_bound(characters, size)
    average = limit / tokenizing.KEYS * size
    needed = average - 6 * math.sqrt(average * trainer.BYTES)
    if limit < tokenizing.KEYS:
        assert needed == pytest.approx(characters, rel=1e-6, abs=1)
    else:
        assert limit == tokenizing.KEYS and needed <= characters


def test_sources_have_their_share_by_weight_and_nothing_is_held_out(tmp_path):
    write(tmp_path, {name: [f"{name} text {number:03}" for number in range(400)] for name in SOURCES}, per_part=30)
    found = sample(tmp_path, 4_000, {"ja": 3.0, "en": 1.0})
    length = {name: sum(len(text) for language, text in found if language == name) for name in SOURCES}
    assert 2_988 < length["ja"] <= 3_000 and 988 < length["en"] <= 1_000
    assert [language for language, _ in found] == sorted((language for language, _ in found), reverse=True)
    assert not any("held out" in text for _, text in found)
    assert {language for language, _ in sample(tmp_path, 4_000, {"ja": 0.0, "en": 1.0, "new": 1.0})} == {"en"}
    assert [language for language, _ in sample(tmp_path, 1, {"en": 1.0, "ja": 1.0})] == ["en", "ja"]
    (tmp_path / "documents" / "datacard.json").write_text("{}")  # of another version
    with pytest.raises(UserError, match=r"datacard.json: has no training_characters.*`tpullm collect` again"):
        plan(tmp_path, 10)


SIZED = st.tuples(st.integers(0, 5_000), st.floats(0.01, 10))


@given(amount=st.integers(0, 10_000), sources=st.dictionaries(st.text("abc", min_size=1), SIZED, min_size=1))
@example(amount=1, sources={"a": (1, 5.03125)})
def test_shares_fill_the_amount_and_no_more(amount, sources):
    sizes = {name: size for name, (size, _) in sources.items()}
    weights = {name: weight for name, (_, weight) in sources.items()}
    shares = tokenizing.share_by_weight(amount, sizes, weights)
    assert list(shares) == list(sizes)
    assert all(0 <= shares[name] <= sizes[name] for name in sizes)
    assert sum(shares.values()) <= amount
    assert sum(shares.values()) > min(amount, sum(sizes.values())) - len(sizes)  # but for rounding down
    rates = [shares[name] / weights[name] for name in sizes if shares[name] < sizes[name]]
    assert not rates or max(rates) - min(rates) <= 1 / min(weights.values()) + 1e-6
