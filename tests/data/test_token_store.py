"""Documents and pieces come back as they were written, from a disk and as from a bucket; broken stores are refused."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data import flat_arrays, token_store
from tpullm.data.stream import Stream
from tpullm.system.errors import UserError


def random_part(rng, documents):
    lengths = rng.integers(0, 40, documents)
    tokens, ids = rng.integers(0, 60_000, lengths.sum()), rng.integers(0, 2**63, documents)
    return tokens.astype(np.uint16), lengths, ids.astype(np.uint64)


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    return [random_part(rng, documents) for documents in (50, 0, 1, 200)]


@pytest.fixture
def small_shards(monkeypatch):
    """Chunks and shards so small that documents lie across their borders."""
    for name, value in (("LONG", 64), ("SHORT", 16), ("SHARD_CHUNKS", 8)):
        monkeypatch.setattr(flat_arrays, name, value)
    monkeypatch.setattr(token_store, "BLOCK_DOCUMENTS", 60)


def stored(folder, parts, dtype=np.uint16):
    token_store.write_store(folder / "store", iter(parts), np.dtype(dtype))
    return token_store.TokenStore(folder / "store")


@pytest.fixture
def opened(small_shards, parts, tmp_path):
    return stored(tmp_path, parts)


def check_documents(opened, parts):
    """All documents are there with their tokens, ids and numbers, in few groups of equal language and length."""
    tokens, lengths, ids = (np.concatenate([part[n] for part in parts]) for n in range(3))
    ends = np.cumsum(lengths)
    numbers, found_ids = opened.identities(np.arange(len(lengths)))
    assert sorted(numbers.tolist()) == list(range(len(lengths))) and found_ids.dtype == np.uint64
    in_groups = np.repeat(opened.lengths.tokens, opened.lengths.counts)
    for document, number in enumerate(numbers.tolist()):
        wanted = tokens[ends[number] - lengths[number] : ends[number]]
        assert opened.document(document).tolist() == wanted.tolist() and in_groups[document] == len(wanted)
        assert found_ids[document] == ids[number]
        assert opened.document(document, 3).tolist() == wanted[:3].tolist()
    assert opened.find(np.arange(0, len(lengths) + 5, 3)) == {
        number: document for document, number in enumerate(numbers.tolist()) if number % 3 == 0
    }


def test_documents_come_back_as_written(opened, parts):
    check_documents(opened, parts)
    assert opened.languages() is None
    assert (np.diff(opened.lengths.tokens) > 0).all(), "one group for each length, over all blocks"


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["ja", "en", ""])), max_size=30), max_size=4),
    st.integers(1, 40),
)
def test_documents_are_in_order_of_language_and_length_for_any_blocks(tmp_path_factory, drawn, block):
    rng, parts = np.random.default_rng(0), []
    for part in drawn:
        lengths = np.array([length for length, _ in part], np.int64)
        tokens = rng.integers(0, 60_000, lengths.sum()).astype(np.uint16)
        ids = rng.integers(0, 2**63, len(part)).astype(np.uint64)
        parts.append((tokens, lengths, ids, np.array([language for _, language in part], np.str_)))
    folders = []
    for size in (block, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_store, "BLOCK_DOCUMENTS", size)
            folders.append(stored(tmp_path_factory.mktemp("stores"), parts).path)
    small, large = ({path.relative_to(of): path.read_bytes() for path in files(of)} for of in folders)
    assert small == large
    if any(drawn):
        opened = token_store.TokenStore(folders[0])
        check_documents(opened, parts)
        names, groups = opened.languages()
        keys = list(zip(groups.tolist(), opened.lengths.tokens.tolist(), strict=True))
        assert keys == sorted(set(keys))
        flat = [each for part in drawn for each in part]
        in_groups = np.repeat(groups, opened.lengths.counts)
        for document, number in enumerate(opened.identities(np.arange(len(flat)))[0].tolist()):
            assert names[in_groups[document]] == flat[number][1]
        for language in range(len(names)):
            part = opened.only(np.flatnonzero(groups == language))
            assert part.lengths.total == sum(max(length - 1, 0) for length, own in flat if own == names[language])
            assert set(part.languages()[1].tolist()) == {language}


def test_no_more_than_a_block_is_held_while_a_store_is_written(tmp_path, parts, monkeypatch):
    """Neither of one block, nor of all of them when they are put together."""
    monkeypatch.setattr(token_store, "BLOCK_DOCUMENTS", 60)
    monkeypatch.setattr(flat_arrays, "SHARD_CHUNKS", 2)
    monkeypatch.setattr(flat_arrays, "SHORT", 8)
    writer, added, most = token_store.DocumentWriter(tmp_path), [], 0
    add = flat_arrays.Appender.add
    monkeypatch.setattr(flat_arrays.Appender, "add", lambda of, values: added.append(len(values)) or add(of, values))
    for number in range(40):
        lengths = np.arange(number % 7, 20)
        writer.add(np.cumsum(lengths) - lengths, lengths, lengths.astype(np.uint64), np.zeros_like(lengths))
        assert sum(len(rows) for rows, *_ in writer._held) == writer._held_documents < 60
        most = max(most, writer._held_documents)
    writer.close()
    assert most > 30
    assert sum(added) > 6 * 60 and max(added) < 2 * 60 and len(added) < sum(added) / 40


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_store_on_gs_is_read_as_one_on_a_disk(opened, parts, bucket):
    """All documents, and the batches of a stream."""
    token_store.write_store(bucket / "store", iter(parts), np.dtype(np.uint16))
    remote = token_store.TokenStore(bucket / "store")
    check_documents(remote, parts)
    batches = [Stream({"web": store}, {"web": 1.0}, 4, 16, seed=3).batch_at(5) for store in (opened, remote)]
    for name in vars(batches[0]):
        np.testing.assert_array_equal(*(getattr(batch, name) for batch in batches))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_document_may_be_longer_than_a_shard_and_hold_only_zeros(small_shards, tmp_path, dtype):
    """A chunk of zeros is the one that a zarr array need not store."""
    tokens = np.repeat(np.array([7, 0, np.iinfo(dtype).max // 2], dtype), [500, 1500, 100])
    opened = stored(tmp_path, [(tokens, np.array([2100]), np.zeros(1, np.uint64))], dtype)
    assert (opened.document(0) == tokens).all()
    for start, count in ((0, 0), (511, 2), (512, 512), (2100, 0)):
        read, _ = opened.read(np.array([0]), np.array([start]), np.array([count]))
        assert read.tolist() == tokens[start : start + count].tolist()


def test_large_vocabularies_take_four_bytes():
    assert (token_store.token_dtype(65_535), token_store.token_dtype(65_536)) == (np.uint16, np.uint32)


def test_a_store_that_fails_half_way_is_not_there(tmp_path, parts):
    def failing():
        yield parts[0]
        raise RuntimeError("the power went off")

    with pytest.raises(RuntimeError):
        stored(tmp_path, failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "cut short", "of other chunks"])
def test_a_broken_or_missing_store_is_refused(opened, damage, tmp_path):
    with pytest.raises(UserError, match="no token store"):
        token_store.TokenStore(tmp_path)
    shard = opened.path / "tokens" / "c" / "1"
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[:700] if damage == "cut short" else content[64:])
    with pytest.raises(UserError, match="c/1: broken token store; remove it"):
        token_store.TokenStore(opened.path)
    shard.write_bytes(content)
    (opened.path / "table" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=f"{opened.path}/table: broken token store"):
        token_store.TokenStore(opened.path)


@pytest.mark.parametrize("array", ["begins", "begins_checksums", "ids", "corpus_numbers", "tokens_checksums"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "of fewer documents"])
def test_a_broken_array_of_documents_is_one_line(opened, array, damage, tmp_path):
    folder = opened.path / array
    if damage == "missing":
        shutil.rmtree(folder)
    elif damage == "cut short":
        file = folder / "c" / "0"
        file.write_bytes(file.read_bytes()[:-7])
    else:
        other = stored(tmp_path / "other", [random_part(np.random.default_rng(0), 9)]).path
        shutil.rmtree(folder)
        shutil.copytree(other / array, folder)
    with pytest.raises(UserError, match=f"{opened.path}.*: broken token store.*; remove it and run `tpullm tokenize`"):
        token_store.TokenStore(opened.path).identities(np.array([0]))


@pytest.mark.parametrize("reader", [flat_arrays.Mapped, flat_arrays.Remote])
def test_every_flipped_bit_is_noticed_before_its_token_is_used(opened, parts, monkeypatch, reader):
    """The error names the file; what the flip does not reach is read as before."""
    monkeypatch.setattr(flat_arrays, "Mapped", reader)
    every = np.arange(opened.lengths.documents)

    def read(store):
        lengths = np.repeat(store.lengths.tokens, store.lengths.counts)
        return [store.read(every, np.zeros_like(every), lengths)[0], *store.identities(every)]

    noticed, right = 0, read(opened)
    for file in files(opened.path):
        content = file.read_bytes()
        for place in range(0, len(content), 37 if file.name == "zarr.json" else 307):
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            try:
                for found, wanted in zip(read(token_store.TokenStore(opened.path)), right, strict=True):
                    assert np.array_equal(found, wanted), (file, place)
            except UserError as error:
                assert str(opened.path) in str(error) and "tpullm tokenize" in str(error)
                noticed += 1
        file.write_bytes(content)
    assert noticed > 80


def test_only_the_chunk_that_changed_is_refused(opened, parts):
    """One bit of token 600: the second shard, whose first chunk it is in the second of."""
    tokens, lengths, _ = map(np.concatenate, zip(*parts, strict=True))
    ends, documents = np.cumsum(lengths), opened.find(np.arange(len(lengths)))
    shard = opened.path / "tokens" / "c" / "1"
    content = bytearray(shard.read_bytes())
    content[2 * (600 - 512)] ^= 1
    shard.write_bytes(content)
    again = token_store.TokenStore(opened.path)
    refused = []
    for index in np.flatnonzero(lengths):
        try:
            assert (again.document(documents[index]) == tokens[ends[index] - lengths[index] : ends[index]]).all()
        except UserError as error:
            refused.append(index)
            assert f"{shard}: the tokens from number 576 of the store on have changed since they were" in str(error)
    assert refused == [i for i in np.flatnonzero(lengths) if ends[i] > 576 and ends[i] - lengths[i] < 640]
