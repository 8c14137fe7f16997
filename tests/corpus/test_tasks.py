"""A task leaves on the disk what it found, and takes no more documents than its source gives."""

import dataclasses
import io
import json

import numpy as np
import pytest

from tpullm.corpus import dedup, tasks
from tpullm.corpus.source_files import File
from tpullm.corpus.tasks import Task
from tpullm.corpus.text_hashes import text_hash
from tpullm.recipe.schema import CorpusConfig, Source

SOURCE = Source("s", "text", licence="CC0-1.0", filter=False)
CONFIG = CorpusConfig(maximum_characters=50)


def task_of(folder, texts, held_out=(), source=SOURCE, config=CONFIG):
    """One file for each text, written in UTF-8 or as bytes."""
    (folder / "in").mkdir()
    files = []
    for number, text in enumerate(texts):
        path = folder / "in" / f"{number}.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        files.append(File(path, "text", path.stat().st_size, held_out=number in held_out))
    return Task(source, tuple(files), 1, folder / "0.jsonl", folder / "0.npz", config, 3)


def spooled(task):
    return [json.loads(line) for line in task.spool.read_text(encoding="utf-8").splitlines()]


TEXTS = ["本を読む。\n", "", "1, 2, 3, 4.\n" * 10, "吾輩は猫である。名前はまだ無い。".encode("euc_jp"), b"\xff\xfe\xfd"]


@pytest.mark.parametrize("similarity", [0.8, 1.0])
def test_what_a_task_found_is_loaded_as_it_was(tmp_path, similarity):
    task = task_of(tmp_path, TEXTS, (2,), config=dataclasses.replace(CONFIG, near_duplicate_similarity=similarity))
    tasks.run(task)
    found, again = tasks.load(task), tasks._filtered(task, io.StringIO())
    assert (found.records, found.keys, found.dropped, found.encodings) == (
        again.records,
        again.keys,
        again.dropped,
        again.encodings,
    )
    texts = spooled(task)
    assert "".join(texts) == TEXTS[0] + TEXTS[2] + "吾輩は猫である。名前はまだ無い。" and max(map(len, texts)) <= 50
    assert [(record.hash, record.characters) for record in found.records] == [
        (text_hash(text), len(text)) for text in texts
    ]
    assert [record.held_out for record in found.records] == [False, True, True, True, False]
    assert [record.language for record in found.records] == ["ja", "und", "und", "und", "ja"]
    assert found.keys == [dedup.exact_key(text) for text in texts]
    signatures = [dedup.signature(text) for text in texts] if similarity < 1 else []
    assert np.array_equal(found.signatures, signatures)
    assert found.dropped == {"empty": 1, "not UTF-8": 1} and found.encodings == {"EUC-JP": 1}


def test_a_source_that_keeps_duplicates_is_not_signed(tmp_path):
    task = task_of(tmp_path, TEXTS[:1], source=dataclasses.replace(SOURCE, deduplicate=False))
    tasks.run(task)
    assert (tasks.load(task).keys, tasks.load(task).signatures) == ([], [])


@pytest.mark.parametrize(("documents", "taken"), [(0, 4), (1, 2), (2, 3), (3, 4), (9, 4)])
def test_no_more_is_read_than_the_documents_that_a_source_gives_beside_those_held_out(tmp_path, documents, taken):
    texts = [f"{number}番目の文です。" for number in range(4)]
    task = task_of(tmp_path, texts, (0,), source=dataclasses.replace(SOURCE, documents=documents))
    tasks.run(task)
    assert spooled(task) == texts[:taken]


def test_documents_are_filtered_unless_the_recipe_holds_them_out_or_keeps_all(tmp_path):
    config = dataclasses.replace(CONFIG, minimum_characters=20)
    texts = ["短い。", "短い文。", "これは十分に長い文なので、学習に使われます。"]
    task = task_of(tmp_path, texts, (0,), dataclasses.replace(SOURCE, filter=True, language="ja"), config)
    tasks.run(task)
    assert spooled(task) == [texts[0], texts[2]] and tasks.load(task).dropped == {"too short": 1}


def test_a_generated_source_has_its_documents_by_its_seed(tmp_path):
    from tpullm.corpus import tenki

    source = Source("t", "tenki", documents=5, licence="Apache-2.0", filter=False)
    task = dataclasses.replace(task_of(tmp_path, [], source=source), config=CorpusConfig())
    tasks.run(task)
    assert spooled(task) == list(tenki.documents(5, seed=3))


def test_tasks_are_run_by_workers_if_there_is_much_to_read(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks.parallel_parts, "run_all", lambda *arguments: asked.append(arguments))
    task = dataclasses.replace(task_of(tmp_path, []), bytes=7)
    tasks.run_all([task], 3, len)
    assert asked == [("collect", tasks.run, [task], [7], 3, tasks.PARALLEL_BYTES, len)]
