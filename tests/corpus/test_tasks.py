"""A task leaves on the disk what it found, and takes no more documents than its source gives."""

import dataclasses
import json

import numpy as np
import pytest

from tpullm.corpus import dedup, document_files, tasks, tenki
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document_files import Part
from tpullm.corpus.files import encodings
from tpullm.corpus.files.source_files import File
from tpullm.corpus.tasks import Task
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
    source = dataclasses.replace(source, path=str(folder / "in"))
    return Task(Part(folder, "0" * 32, source.name, source.licence), source, tuple(files), 1, config, 3)


def kept(task):
    """The documents of the part."""
    marks = np.zeros(tasks.part_summary(task)["documents"])
    document_files.write_marks(task.part.documents / "marks" / "all.npy", marks)
    part = dataclasses.replace(task.part, marked=("all.npy", 0, None))
    return [document for document, _ in document_files.read_part(part)]


def texts_of(task):
    return [document["text"] for document in kept(task)]


TEXTS = ["本を読む。\n", "", "1, 2, 3, 4.\n" * 10, "吾輩は猫である。名前はまだ無い。".encode("euc_jp"), b"\xff\xfe\xfd"]


@pytest.mark.parametrize("near", [True, False])
def test_a_task_leaves_its_documents_and_their_facts(tmp_path, near):
    task = task_of(tmp_path, TEXTS, (2,), config=dataclasses.replace(CONFIG, near_duplicates=near))
    tasks.run(task)
    documents = kept(task)
    texts = [document["text"] for document in documents]
    assert "".join(texts) == TEXTS[0] + TEXTS[2] + "吾輩は猫である。名前はまだ無い。" and max(map(len, texts)) <= 50
    assert [document["hash"] for document in documents] == [text_hash(text) for text in texts]
    assert [document["language"] for document in documents] == ["ja", "und", "und", "und", "ja"]
    assert [document["file"] for document in documents] == ["0.txt", "2.txt", "2.txt", "2.txt", "3.txt"]
    ids, keys, held_out, characters = tasks.arrays_of_part(task.part, "ids", "keys", "held_out", "characters")
    assert [f"{number:016x}" for number in ids.tolist()] == [text_hash(text)[:16] for text in texts]
    assert keys.tolist() == [dedup.exact_key(text) for text in texts]
    assert held_out.tolist() == [False, True, True, True, False] and characters.tolist() == list(map(len, texts))
    kind, kinds, signed, bands = tasks.arrays_of_part(task.part, "kind", "kinds", "signed", "bands")
    assert [json.loads(str(kinds))[place] for place in kind] == [[one["language"], "CC0-1.0"] for one in documents]
    assert signed.tolist() == (list(range(len(texts))) if near else [])
    assert np.array_equal(bands, dedup.bands([dedup.signature(text) for text in texts] if near else []))
    facts = dict.fromkeys(document_files.DROPPED_COLUMNS[1:], "") | {"licence": "CC0-1.0"}
    counts = {"documents": 5, "held_out": 3, "encodings": {"EUC-JP": 1}, "replaced": 0, "read": 5, "bad": []}
    assert tasks.part_summary(task) == counts | {
        "lines": 2 * near,
        "lowest": min([int(ids[row]), row] for row in (0, 4)),
        "dropped": [["empty", "", "CC0-1.0", 1], ["not UTF-8", "", "CC0-1.0", 1]],
        "examples": {"empty": [facts | {"file": "1.txt"}], "not UTF-8": [facts | {"file": "4.txt"}]},
        "leaks": [],
        "not_read": [["4.txt", encodings.NOT_DECODED]],
        "noted": {},
        "talks": 0,
    }


def test_all_that_is_dropped_is_written_and_ten_of_a_reason_are_examples(tmp_path):
    config = dataclasses.replace(CONFIG, minimum_characters=20)
    source = dataclasses.replace(SOURCE, filter=True, language="ja")
    task = task_of(tmp_path, [f"{number}番。" for number in range(14)] + ["long " * 30], source=source, config=config)
    tasks.run(task)
    *rows, last = document_files.read_dropped(task.part)
    short = [("too short", f"{number}番。", f"{number}.txt", text_hash(f"{number}番。")) for number in range(14)]
    assert [(row["reason"], row["beginning"], row["file"], row["hash"]) for row in rows] == short
    assert last["reason"] == "wrong language" and len(last["beginning"]) == 80 and last["language"] == "ja"
    summary = tasks.part_summary(task)
    assert [one["file"] for one in summary["examples"]["too short"]] == [f"{number}.txt" for number in range(10)]
    assert [row[::3] for row in summary["dropped"]] == [["too short", 14], ["wrong language", 1]]


@pytest.mark.parametrize(("pages", "kept_short"), [(51, False), (49, True)])
def test_short_records_are_kept_where_records_are_short_as_a_rule(tmp_path, pages, kept_short):
    """Quotations and paragraphs of novels are; 921 of 18,771 quotations fell. Of pages of the web a short one is empty.

    Half of the first 100 records decide, for every range of the file.
    """
    page = "今日はいい天気ですね。" * 19  # 209 characters, more than ten times the least
    records = ["短い。"] * (100 - pages) + [page] * pages + ["最後。"] * 200
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
    config = CorpusConfig(minimum_characters=20, near_duplicates=False)
    source = Source("s", "jsonl", str(tmp_path), licence="x", rules=[])
    size = path.stat().st_size
    for start, stop in ((0, None), (size - 100, None), (0, size - 100)):
        file = File(path, "jsonl", size, start=start, stop=stop)
        task = Task(Part(tmp_path, "0" * 32, "s", "x"), source, (file,), 1, config, 3)
        tasks.run(task)
        assert ("最後。" in texts_of(task)) == kept_short
    few = dataclasses.replace(task, files=(dataclasses.replace(file, start=0),))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in records[:9]))
    tasks.run(few)
    assert texts_of(few) == []


def test_a_source_that_keeps_its_copies_signs_what_may_be_held_out(tmp_path):
    texts = [f"{number}番目の文です。" for number in range(40)]
    source = dataclasses.replace(SOURCE, deduplicate=False)
    task = task_of(tmp_path, texts, (0,), source=source, config=dataclasses.replace(CONFIG, held_out_fraction=0.25))
    tasks.run(task)
    low = [row for row, text in enumerate(texts) if int(text_hash(text)[:2], 16) < 64]
    (signed,) = tasks.arrays_of_part(task.part, "signed")
    assert signed.tolist() == sorted({0, *low}) and 1 < len(low) < 40


def test_lines_are_kept_of_what_is_compared(tmp_path):
    page = "これは多くの文書にある長い一行です。\n" * 2 + "短い。\nこの文書だけにある一行です。\n"
    task = task_of(tmp_path, [page, page], (1,), config=dataclasses.replace(CONFIG, maximum_characters=10**6))

    def counts(deduplicate=True, **settings):
        source = dataclasses.replace(SOURCE, deduplicate=deduplicate)
        tasks.run(dataclasses.replace(task, source=source, config=dataclasses.replace(task.config, **settings)))
        found, counts = tasks.arrays_of_part(task.part, "lines", "line_counts")
        assert tasks.part_summary(task)["lines"] == len(found) == counts.sum()
        assert np.array_equal(found[: counts[0]], dedup.lines_of(page)[: counts[0]])
        return counts.tolist()

    assert counts() == counts(near_duplicates=False, repeated_lines=3) == [3, 3]
    assert counts(near_duplicates=False) == [0, 0]
    assert counts(deduplicate=False) == [0, 3]  # what is held out


def test_personal_data_is_replaced_and_counted(tmp_path):
    source = dataclasses.replace(SOURCE, clean=["personal_data"])
    task = task_of(tmp_path, ["連絡先はtaro@tanaka-kobo.jpです。", "電話は03-1234-5678へ。"], source=source)
    tasks.run(task)
    assert tasks.part_summary(task)["replaced"] == 2
    assert not any("taro" in text or "1234" in text for text in texts_of(task))


@pytest.mark.parametrize(("documents", "taken"), [(0, 4), (1, 2), (2, 3), (3, 4), (9, 4)])
def test_no_more_is_read_than_the_documents_that_a_source_gives_beside_those_held_out(tmp_path, documents, taken):
    texts = [f"{number}番目の文です。" for number in range(4)]
    task = task_of(tmp_path, texts, (0,), source=dataclasses.replace(SOURCE, documents=documents))
    tasks.run(task)
    assert texts_of(task) == texts[:taken]


def test_a_generated_source_has_its_documents_by_its_seed(tmp_path):
    source = Source("t", "tenki", documents=5, licence="Apache-2.0", filter=False)
    task = dataclasses.replace(task_of(tmp_path, [], source=source), config=CorpusConfig())
    tasks.run(task)
    assert texts_of(task) == list(tenki.documents(5, seed=3))
