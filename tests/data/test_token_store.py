"""Documents and pieces come back as they were written, from a disk and as from a bucket; broken stores are refused."""

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.data import token_store
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
    monkeypatch.setattr(token_store, "CHUNK_TOKENS", 64)
    monkeypatch.setattr(token_store, "SHARD_TOKENS", 64 * 8)


def stored(folder, parts, dtype=np.uint16):
    token_store.write_store(folder / "store", iter(parts), np.dtype(dtype))
    return token_store.TokenStore(folder / "store")


@pytest.fixture
def opened(small_shards, parts, tmp_path):
    return stored(tmp_path, parts)


def test_documents_come_back_as_written(opened, parts):
    tokens, lengths, ids = map(np.concatenate, zip(*parts, strict=True))
    assert (opened.lengths == lengths).all() and (opened.ids == ids).all() and opened.languages() is None
    ends = np.cumsum(lengths)
    for index in range(len(lengths)):
        assert (opened.document(index) == tokens[ends[index] - lengths[index] : ends[index]]).all()


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


def test_the_languages_of_documents_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    languages = [np.array(["ja", "en", "ja"]), np.array([], "<U1"), np.array(["", "de", "en", "zh-Hant"])]
    parts = [(*random_part(rng, len(each)), each) for each in languages]
    names, codes = stored(tmp_path, parts).languages()
    assert [names[code] for code in codes] == ["ja", "en", "ja", "", "de", "en", "zh-Hant"]
    assert codes.dtype == np.uint16 and len(names) == len(set(names)) == 5


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
    (opened.path / "offsets" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=f"{opened.path}/offsets: broken token store"):
        token_store.TokenStore(opened.path)


@pytest.mark.parametrize("reader", [token_store.Mapped, token_store.Remote])
def test_every_flipped_bit_is_noticed_before_its_token_is_used(opened, parts, monkeypatch, reader):
    """The error names the file; what the flip does not reach is read as before."""
    monkeypatch.setattr(token_store, "Mapped", reader)
    tokens, lengths, _ = map(np.concatenate, zip(*parts, strict=True))
    every = np.arange(len(lengths)), np.zeros(len(lengths), np.int64), lengths
    noticed = 0
    for file in sorted(path for path in opened.path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for place in range(0, len(content), 37 if file.name == "zarr.json" else 211):
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            try:
                read, _ = token_store.TokenStore(opened.path).read(*every)
                assert (read == tokens).all(), (file, place)
            except UserError as error:
                assert str(opened.path) in str(error) and "tpullm tokenize" in str(error)
                noticed += 1
        file.write_bytes(content)
    assert noticed > 40


def test_only_the_chunk_that_changed_is_refused(opened, parts):
    """One bit of token 600: the second shard, whose first chunk it is in the second of."""
    tokens, lengths, _ = map(np.concatenate, zip(*parts, strict=True))
    ends = np.cumsum(lengths)
    shard = opened.path / "tokens" / "c" / "1"
    content = bytearray(shard.read_bytes())
    content[2 * (600 - 512)] ^= 1
    shard.write_bytes(content)
    again = token_store.TokenStore(opened.path)
    refused = []
    for index in np.flatnonzero(lengths):
        try:
            assert (again.document(index) == tokens[ends[index] - lengths[index] : ends[index]]).all()
        except UserError as error:
            refused.append(index)
            assert f"{shard}: the tokens from number 576 of the store on have changed since they were" in str(error)
    assert refused == [i for i in np.flatnonzero(lengths) if ends[i] > 576 and ends[i] - lengths[i] < 640]


def test_whole_shards_are_written_as_soon_as_they_are_full(small_shards, tmp_path):
    array = token_store.Appender(tmp_path / "array", np.dtype(np.uint16))
    for added, held, shards in ((500, 500, 0), (12, 0, 1), (512 * 2 + 1, 1, 3), (510, 511, 3), (0, 511, 3)):
        array.add_values(np.zeros(added, np.uint16))
        assert sum(map(len, array._held)) == held == array._held_tokens
        assert len(list(tmp_path.glob("array/c/*"))) == shards
    array.close()
    assert token_store.read_all(tmp_path / "array").shape == (512 * 3 + 511,)


class Watched:
    """A shard that notes what the system is asked to read ahead."""

    def __init__(self, shard, asked):
        self.shard, self.asked, self.obj = shard, asked, self

    def __getitem__(self, place):
        return self.shard[place]

    def madvise(self, advice, begin, size):
        assert advice == mmap.MADV_WILLNEED and begin % mmap.PAGESIZE == 0
        self.asked.append((begin, begin + size))


def test_the_system_is_asked_for_every_piece_before_one_is_read(tmp_path):
    """For whole pages up to the piece's end, and for no more than a page before it."""
    tokens = np.arange(20_000, dtype=np.uint16)
    ids, lengths = np.zeros(200, np.uint64), np.full(200, 100)
    opened, asked = stored(tmp_path, [(tokens, lengths, ids)]), []
    opened._tokens._shards = [Watched(shard, asked) for shard in opened._tokens._shards]
    documents = np.array([150, 3, 77])
    read, _ = opened.read(documents, np.array([10, 0, 99]), np.array([20, 100, 1]))
    assert read.tolist() == [*range(15_010, 15_030), *range(300, 400), 7_799]
    begins, ends = np.array([15_010, 300, 7_799]) * 2, np.array([15_030, 400, 7_800]) * 2
    assert [end for _, end in asked] == ends.tolist()
    assert all(0 <= begin - page < mmap.PAGESIZE for begin, (page, _) in zip(begins, asked, strict=True))


SIZE, SHARD = 3 * 64 + 64, 64


@pytest.fixture(scope="module", params=[SIZE, SIZE - 13], ids=["whole shards", "a part of one at the end"])
def written(request, tmp_path_factory):
    """An array of four shards, of four chunks each."""
    folder = tmp_path_factory.mktemp("arrays") / "array"
    with pytest.MonkeyPatch.context() as patched:  # also while it is read
        patched.setattr(token_store, "CHUNK_TOKENS", SHARD // 4)
        patched.setattr(token_store, "SHARD_TOKENS", SHARD)
        values = np.random.default_rng(0).integers(0, 60_000, request.param).astype(np.uint16)
        writer = token_store.Appender(folder, values.dtype)
        writer.add_values(values)
        writer.close()
        token_store.write_all(folder.with_name(token_store.CHECKSUMS), np.array(writer.checksums, np.uint32))
        yield values, [token_store.Mapped(folder), token_store.Remote(folder)]


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=8))
def test_pieces_come_one_after_the_other(written, ends):
    values, readers = written
    pairs = [sorted((min(one, len(values)), min(other, len(values)))) for one, other in ends]
    begins, ends = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    expected = [value for begin, end in pairs for value in values[begin:end].tolist()]
    for reader in readers:
        found = reader.read(begins, ends)
        assert found.dtype == np.int32 and found.tolist() == expected
