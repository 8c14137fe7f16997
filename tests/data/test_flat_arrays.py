"""Flat arrays come back as they were written, from maps of files and as from a bucket, at any place."""

import functools
import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.data import flat_arrays
from tpullm.data.flat_arrays import Appender, Mapped, Remote
from tpullm.system.errors import UserError


def test_whole_shards_are_written_as_soon_as_they_are_full(monkeypatch, tmp_path):
    monkeypatch.setattr(flat_arrays, "SHARD_CHUNKS", 8)
    array = Appender(tmp_path / "array", np.dtype(np.uint16), 64)
    for added, held, shards in ((500, 500, 0), (12, 0, 1), (512 * 2 + 1, 1, 3), (510, 511, 3), (0, 511, 3)):
        array.add(np.zeros(added, np.uint16))
        assert sum(map(len, array._held)) == held == array._held_values
        assert len(list(tmp_path.glob("array/c/*"))) == shards
    array.close()
    assert flat_arrays.open_array(tmp_path / "array").size == 512 * 3 + 511


class Watched:
    """A shard that notes what the system is asked to read ahead."""

    def __init__(self, shard, asked):
        self.shard, self.asked, self.obj = shard, asked, self

    def __getitem__(self, place):
        return self.shard[place]

    def madvise(self, advice, begin, size):
        assert advice == mmap.MADV_WILLNEED and begin % mmap.PAGESIZE == 0
        self.asked.append((begin, begin + size))


def test_the_system_is_asked_for_every_piece_before_one_is_read(tmp_path, monkeypatch):
    """For whole pages up to the piece's end, and for no more than a page before it."""
    writer = Appender(tmp_path / "array", np.dtype(np.uint16), flat_arrays.LONG)
    writer.add(np.arange(20_000, dtype=np.uint16))
    writer.close()
    asked, mapped = [], flat_arrays._mapped
    monkeypatch.setattr(flat_arrays, "_mapped", lambda array, shard: Watched(mapped(array, shard), asked))
    begins, ends = np.array([15_010, 300, 7_799]), np.array([15_030, 400, 7_800])
    read = Mapped(tmp_path / "array", checked=False).read(begins, ends)
    assert read.tolist() == [*range(15_010, 15_030), *range(300, 400), 7_799]
    assert [end for _, end in asked] == (2 * ends).tolist()
    assert all(0 <= begin - page < mmap.PAGESIZE for begin, (page, _) in zip(2 * begins, asked, strict=True))


SIZE, SHARD = 3 * 64 + 64, 64


@pytest.fixture(scope="module", params=[SIZE, SIZE - 13], ids=["whole shards", "a part of one at the end"])
def written(request, tmp_path_factory):
    """An array of four shards, of four chunks each."""
    folder = tmp_path_factory.mktemp("arrays") / "array"
    with pytest.MonkeyPatch.context() as patched:  # also while it is read
        patched.setattr(flat_arrays, "SHARD_CHUNKS", 4)
        values = np.random.default_rng(0).integers(0, 60_000, request.param).astype(np.uint16)
        writer = Appender(folder, values.dtype, SHARD // 4)
        writer.add(values)
        writer.close()
        yield values, [Mapped(folder), Remote(folder)]


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=8))
def test_pieces_come_one_after_the_other(written, ends):
    values, readers = written
    pairs = [sorted((min(one, len(values)), min(other, len(values)))) for one, other in ends]
    begins, ends = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    expected = [value for begin, end in pairs for value in values[begin:end].tolist()]
    for reader in readers:
        found = reader.read(begins, ends)
        assert found.dtype == np.uint16 and found.tolist() == expected


@given(st.lists(st.integers(0, SIZE - 14), max_size=30))
def test_values_at_places_are_those_that_were_written(written, places):
    values, readers = written
    for reader in readers:
        found = reader.at(np.array(places, np.int64))
        assert found.dtype == np.uint16 and found.tolist() == values[places].tolist()


@pytest.mark.parametrize("reader", [Mapped, Remote])
def test_a_value_is_compared_before_it_is_used(reader, tmp_path, monkeypatch):
    """Only those of the chunk that changed are refused, and each shard names itself."""
    monkeypatch.setattr(flat_arrays, "SHARD_CHUNKS", 4)
    writer = Appender(tmp_path / "ids", np.dtype(np.uint64), 16)
    writer.add(np.arange(200, dtype=np.uint64))
    writer.close()
    file = tmp_path / "ids" / "c" / "1"
    content = bytearray(file.read_bytes())
    content[8 * 20] ^= 1  # of the value 84
    file.write_bytes(content)
    array, refused = reader(tmp_path / "ids"), []
    for place in range(200):
        try:
            assert array.at(np.array([place])).tolist() == [place]
        except UserError as error:
            refused.append(place)
            assert f"{file}: the ids from number 80 of the store on have changed since" in str(error)
    assert refused == list(range(80, 96))


def test_a_reader_has_few_files_open_and_one_that_is_opened_again_sees_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(flat_arrays, "SHARD_CHUNKS", 2)
    assert flat_arrays._mapped.cache_info().maxsize == flat_arrays.MOST_MAPS
    monkeypatch.setattr(flat_arrays, "_mapped", functools.lru_cache(8)(flat_arrays._mapped.__wrapped__))
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for change in (0, 7):
        writer = Appender(tmp_path / "array", np.dtype(np.uint16), 2)
        writer.add(np.arange(200, dtype=np.uint16) + change)
        writer.close()
        array = Mapped(tmp_path / "array")
        for _ in range(2):
            assert (array.at(np.arange(200)) == np.arange(200) + change).all()
            assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 8
        for name in ("array", "array_checksums"):
            shutil.rmtree(tmp_path / name)


def test_one_read_of_every_shard_has_few_files_open(tmp_path, monkeypatch):
    """Its pieces come in any order, and each is compared before it is used."""
    monkeypatch.setattr(flat_arrays, "SHARD_CHUNKS", 2)
    monkeypatch.setattr(flat_arrays, "MOST_MAPS", 8)
    monkeypatch.setattr(flat_arrays, "_mapped", functools.lru_cache(8)(flat_arrays._mapped.__wrapped__))
    values = np.random.default_rng(0).permutation(400).astype(np.uint16)
    writer = Appender(tmp_path / "array", values.dtype, 2)
    writer.add(values)
    writer.close()
    array, counts, map_of = Mapped(tmp_path / "array"), [], Mapped.map
    opened = len(list(Path("/proc/self/fd").iterdir()))

    def counted(array, shard):
        counts.append(len(list(Path("/proc/self/fd").iterdir())) - opened)
        return map_of(array, shard)

    monkeypatch.setattr(Mapped, "map", counted)
    begins = np.random.default_rng(1).permutation(np.arange(0, 397, 3))  # of each shard, and across two
    expected = [value for begin in begins.tolist() for value in values[begin : begin + 3].tolist()]
    assert array.read(begins, begins + 3).tolist() == expected
    assert len(counts) >= 100 and max(counts) <= 8 + 2, "the maps that are kept, and the listing itself"
