"""Documents on the disk: the same documents give the same bytes, and a broken file is named."""

import dataclasses
import gzip
import hashlib

import pytest

from tpullm.corpus import document_files
from tpullm.errors import UserError
from tpullm.recipe.schema import Source

SOURCE = Source("notes", "text", licence="CC0-1.0")
TEXTS = [f"{number}番目の文です。\n" * 3 for number in range(20)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder with twenty documents of 30 characters and more, 100 characters a shard."""
    monkeypatch.setattr(document_files, "SHARD_CHARACTERS", 100)
    with document_files.Writer(tmp_path, SOURCE, "train") as writer:
        for text in TEXTS:
            writer.write(text, "ja")
    return tmp_path


def test_documents_come_back_in_order_with_their_facts(written):
    found = list(document_files.read(written, "notes", "train"))
    assert [document["text"] for document in found] == TEXTS
    for document in found:
        digest = hashlib.sha256(document["text"].encode()).hexdigest()
        facts = {"id": digest[:16], "source": "notes", "licence": "CC0-1.0", "language": "ja", "hash": digest}
        assert document == facts | {"text": document["text"]}
    assert list(document_files.read(written, "notes", "held_out")) == []


def test_a_shard_ends_with_the_document_that_fills_it(written):
    shards = document_files.shards(written, "notes", "train")
    assert [path.name for path in shards] == [f"{number:05}.jsonl.gz" for number in range(len(shards))]
    for shard in shards:
        lengths = [len(document["text"]) for document in document_files.read_shard(shard)]
        assert sum(lengths[:-1]) < 100 and (sum(lengths) >= 100 or shard == shards[-1])


def test_a_shard_with_room_for_one_character_is_not_full(tmp_path, monkeypatch):
    monkeypatch.setattr(document_files, "SHARD_CHARACTERS", 10)
    with document_files.Writer(tmp_path, SOURCE, "train") as writer:
        for text in ("123456789", "0", "1"):
            writer.write(text, "en")
    shards = document_files.shards(tmp_path, "notes", "train")
    assert [[line["text"] for line in document_files.read_shard(path)] for path in shards] == [
        ["123456789", "0"],
        ["1"],
    ]


def test_the_bytes_say_neither_when_nor_where_they_were_written(written, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    with document_files.Writer(other, SOURCE, "train") as writer:
        for text in TEXTS:
            writer.write(text, "ja")
    for shard in document_files.shards(written, "notes", "train"):
        content = shard.read_bytes()
        assert content == (other / shard.relative_to(written)).read_bytes()
        assert content[3:8] == bytes(5)  # RFC 1952: no flags (so no name), and no time
        assert b"\r" not in gzip.decompress(content)


def test_a_full_shard_is_closed_before_the_next_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(document_files, "SHARD_CHARACTERS", 10)
    with document_files.Writer(tmp_path, SOURCE, "train") as writer:
        writer.write(TEXTS[0], "ja")
        writer.write(TEXTS[1], "ja")
        first = document_files.shards(tmp_path, "notes", "train")[0]
        assert [document["text"] for document in document_files.read_shard(first)] == TEXTS[:1]


def test_nothing_is_made_for_a_split_without_documents(tmp_path):
    with document_files.Writer(tmp_path, dataclasses.replace(SOURCE, name="none"), "train"):
        pass
    assert list(tmp_path.iterdir()) == [] and document_files.shards(tmp_path, "none", "train") == []


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"text", lambda data: gzip.compress(b"{")])
def test_a_broken_shard_is_named(written, damage):
    path = document_files.shards(written, "notes", "train")[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="00001.jsonl.gz: is broken .*remove its documents folder and run collect"):
        list(document_files.read(written, "notes", "train"))
