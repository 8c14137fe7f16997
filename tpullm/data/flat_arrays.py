"""Flat arrays on disk or on `gs://`: written once from beginning to end, read at any place, whatever their size.

They are zarr3 shards, written by TensorStore. On disk they are read through memory maps. A map takes only the memory
that the system can spare for files, and reads 40 tokens at a random place in 1.2 microseconds, where TensorStore takes
10. `NAME_checksums` (uint32) has the CRC-32 of each chunk of the array `NAME`. A chunk is compared with it when it is
first read, at 3 GB/s.
"""

import contextlib
import functools
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.data.batch import flat_ranges
from tpullm.system import storage
from tpullm.system.errors import UserError

SHARD_CHUNKS = 2 * 1024  # chunks in a file
LONG, SHORT = 16 * 1024, 2 * 1024  # values of a chunk of an array that is read in ranges, or at single places
MOST_MAPS = 256  # each map takes one of the 1,024 files that a process may have open; files of others take 512
CACHED_BYTES = 1 << 28  # of arrays on gs://, for each process


class _Array:
    """An array for reading; its chunks are compared with their checksums when this process first reads them."""

    def __init__(self, path: Path, checked: bool = True):
        """Open the array.

        Raises:
            UserError: there is no array, or a chunk of it has no checksum.
        """
        self._path, self._array = path, _open_array(path)
        self.size, layout = self._array.shape[0], self._array.chunk_layout
        self._shard, self._chunk = layout.write_chunk.shape[0], layout.read_chunk.shape[0]
        self._sums = type(self)(_checksums(path), checked=False) if checked else None
        self._compared = np.zeros(-(-self.size // self._chunk) if checked else 0, bool)
        if self._sums and self._sums.size != len(self._compared):
            raise _broken(path.parent)

    def _new(self, begins: np.ndarray, ends: np.ndarray) -> list[tuple[int, int, int, int]]:
        """The chunks of these ranges that are not compared yet: number, first value, end, checksum."""
        if not self._sums:
            return []
        firsts = begins // self._chunk
        chunks = flat_ranges(firsts, np.where(ends > begins, (ends - 1) // self._chunk - firsts + 1, 0))
        if self._compared[chunks].all():
            return []
        found = np.unique(chunks[~self._compared[chunks]])
        lows = found * self._chunk
        columns = found, lows, np.minimum(lows + self._chunk, self.size), self._sums.at(found)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _compare(self, chunk: int, values: Any, checksum: int) -> None:
        """Raise `UserError` if the bytes of a chunk are not those that were written."""
        if zlib.crc32(values) != checksum:
            first = chunk * self._chunk
            file = self._path / "c" / str(first // self._shard)
            raise UserError(
                f"{file}: the {self._path.name} from number {first:,} of the store on have changed since they were "
                f"written; remove {self._path.parent} and run `tpullm tokenize`"
            )
        self._compared[chunk] = True


class Mapped(_Array):
    """An array on disk, read through a memory map of each shard."""

    def __init__(self, path: Path, checked: bool = True):
        """Open the array.

        Raises:
            UserError: there is no array, a chunk of it has no checksum, or a shard is missing or too short.
        """
        super().__init__(path, checked)
        self._dtype = self._array.dtype.numpy_dtype
        # A shard holds its chunks, and then an index of their offsets and sizes in bytes (zarr3, `sharding_indexed`).
        index_bytes = 16 * (self._shard // self._chunk) + 4
        for shard in range(-(-self.size // self._shard)):
            file = self._file(shard)
            wanted = self._chunks(shard) * self._chunk * self._dtype.itemsize + index_bytes
            try:
                found = os.stat(file).st_size
            except FileNotFoundError:
                found = -1
            if found != wanted:
                raise _broken(file)

    def read(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`[begin, end)` of each pair, concatenated."""
        shards = begins // self._shard
        counts = np.where(ends > begins, (ends - 1) // self._shard - shards + 1, 0)
        shards = flat_ranges(shards, counts)
        lows = np.maximum(np.repeat(begins, counts) - shards * self._shard, 0)
        highs = np.minimum(np.repeat(ends, counts) - shards * self._shard, self._shard)
        wanted = sorted(set(shards.tolist()))
        if len(wanted) <= MOST_MAPS // 2:
            return self._pieces(shards, lows, highs)
        # A map that is used stays open after the cache lets it go, so not all of so many are used at once.
        found = np.empty((highs - lows).sum(), self._dtype)
        for first in range(0, len(wanted), MOST_MAPS // 2):
            here = np.isin(shards, wanted[first : first + MOST_MAPS // 2])
            found[np.repeat(here, highs - lows)] = self._pieces(shards[here], lows[here], highs[here])
        return found

    def _pieces(self, shards: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        """`[low, high)` of the shard of each piece, concatenated."""
        maps = {shard: _mapped(self, shard) for shard in set(shards.tolist())}
        # Have the system read all pieces at once. Else it reads each piece when Python touches it, and Python waits:
        # 400 pieces that were not in memory took 5 ms; without this call they took 69 ms and stopped other threads for
        # up to a second. The call costs 0.9 microseconds for a piece that is in memory.
        firsts = lows * self._dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        sizes = highs * self._dtype.itemsize - firsts
        for shard, first, size in zip(shards.tolist(), firsts.tolist(), sizes.tolist(), strict=True):
            maps[shard].obj.madvise(mmap.MADV_WILLNEED, first, size)
        self._check(shards * self._shard + lows, shards * self._shard + highs)
        pieces = zip(shards.tolist(), lows.tolist(), highs.tolist(), strict=True)
        return np.frombuffer(b"".join([maps[shard][low:high] for shard, low, high in pieces]), self._dtype)

    def at(self, places: np.ndarray) -> np.ndarray:
        """The values at some places."""
        self._check(places, places + 1)
        shards, within = np.divmod(places, self._shard)
        found = np.zeros(len(places), self._dtype)
        for shard in set(shards.tolist()):
            here = shards == shard
            found[here] = np.frombuffer(_mapped(self, shard), self._dtype)[within[here]]
        return found

    def _check(self, begins: np.ndarray, ends: np.ndarray) -> None:
        for chunk, first, end, checksum in self._new(begins, ends):
            shard, low = divmod(first, self._shard)
            self._compare(chunk, _mapped(self, shard)[low : low + end - first], checksum)

    def _file(self, shard: int) -> Path:
        return self._path / "c" / str(shard)

    def _chunks(self, shard: int) -> int:
        """How many chunks a shard has."""
        return -(-min(self._shard, self.size - shard * self._shard) // self._chunk)

    def map(self, shard: int) -> memoryview:
        """The values of a shard; `UserError` if it is not as `Appender` writes it."""
        # TensorStore writes a whole shard as whole chunks in order, so the chunks are one array.
        chunks, chunk_bytes = self._chunks(shard), self._chunk * self._dtype.itemsize
        wanted = np.stack([np.arange(chunks) * chunk_bytes, np.full(chunks, chunk_bytes)], axis=1)
        with open(self._file(shard), "rb") as opened:
            index = np.fromfile(opened, "<u8", 2 * chunks, offset=chunks * chunk_bytes)
            if not np.array_equal(index, wanted.ravel()):
                raise _broken(self._file(shard))
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        count = min(self._shard, self.size - shard * self._shard)
        return memoryview(mapped)[: count * self._dtype.itemsize].cast(self._dtype.char)


@functools.lru_cache(MOST_MAPS)
def _mapped(array: Mapped, shard: int) -> memoryview:
    """The values of a shard of this very array: an array that is opened again maps its files anew."""
    return array.map(shard)


class Remote(_Array):
    """An array on `gs://`: all wanted chunks are read in one batch of requests, through a cache."""

    def read(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`[begin, end)` of each pair, concatenated."""
        pieces = [slice(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        found = self._read(pieces, self._new(begins, ends))
        return np.concatenate([*found, np.zeros(0, self._array.dtype.numpy_dtype)])

    def at(self, places: np.ndarray) -> np.ndarray:
        """The values at some places."""
        (found,) = self._read([places], self._new(places, places + 1))
        return found

    def _read(self, places: list, new: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
        import tensorstore

        with tensorstore.Batch() as batch:
            pieces = [self._array[place].read(batch=batch) for place in places]
            # Which are fetched whole in any case.
            chunks = [self._array[first:end].read(batch=batch) for _, first, end, _ in new]
        with _broken_arrays_told(self._path):
            found = [piece.result() for piece in pieces]
            for (chunk, _, _, checksum), values in zip(new, chunks, strict=True):
                self._compare(chunk, values.result(), checksum)
        return found


def open_array(path: Path) -> Mapped | Remote:
    """An array for reading; `UserError` if it is broken."""
    return (Remote if storage.is_remote(path) else Mapped)(path)


class Appender:
    """Writes an array of unknown length by whole shards, so that no shard is written twice; then its checksums."""

    def __init__(self, path: Path, dtype: np.dtype, chunk: int, checked: bool = True):
        self._path, self._chunk, self._array = path, chunk, _create_array(path, dtype, 0, chunk)
        self._held: list[np.ndarray] = []
        self._held_values = self._written = 0
        self._sums: list[np.ndarray] | None = [] if checked else None

    def add(self, values: np.ndarray) -> None:
        """Add values at the end."""
        self._held.append(values)
        self._held_values += len(values)
        if self._held_values >= (shard := self._chunk * SHARD_CHUNKS):
            self._write(self._held_values - self._held_values % shard)

    def close(self) -> None:
        """Write what is not written yet."""
        self._write(self._held_values)
        if self._sums is not None:
            sums = Appender(_checksums(self._path), np.dtype(np.uint32), SHORT, checked=False)
            sums.add(np.concatenate([*self._sums, np.zeros(0, np.uint32)]))
            sums.close()

    def _write(self, count: int) -> None:
        values = np.concatenate([*self._held, np.zeros(0, self._array.dtype.numpy_dtype)])
        end = self._written + count
        self._array = self._array.resize(exclusive_max=[end]).result()
        if count:
            self._array[self._written : end].write(values[:count]).result()
        if self._sums is not None:  # what was written before fills whole shards
            lows = range(0, count, self._chunk)
            sums = [zlib.crc32(values[low : min(low + self._chunk, count)]) for low in lows]
            self._sums.append(np.array(sums, np.uint32))
        self._written = end
        self._held, self._held_values = [values[count:]], len(values) - count


def write_all(path: Path, values: np.ndarray) -> None:
    """Write a whole array, whose chunks end with their checksums. A memory map wants it without."""
    import tensorstore

    inner = {"chunk_shape": [SHORT], "codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
    codecs = [{"name": "sharding_indexed", "configuration": inner}]
    codec = tensorstore.CodecSpec({"driver": "zarr3", "codecs": codecs})
    _create_array(path, values.dtype, len(values), SHORT, codec=codec).write(values).result()


def read_all(path: Path) -> np.ndarray:
    """Read a whole array; `UserError` if it is broken."""
    array = _open_array(path)
    with _broken_arrays_told(path):
        return array.read().result()


def _create_array(path: Path, dtype: np.dtype, size: int, chunk: int, **options):
    import tensorstore

    layout = tensorstore.ChunkLayout(write_chunk_shape=[chunk * SHARD_CHUNKS], read_chunk_shape=[chunk])
    spec = _array_spec(path) | {"store_data_equal_to_fill_value": True}  # a chunk of zeros is one like any other
    options |= {"dtype": tensorstore.dtype(dtype), "shape": [size], "chunk_layout": layout}
    return tensorstore.open(spec, create=True, **options).result()


def _open_array(path: Path):
    import tensorstore

    context = _tensorstore_context() if storage.is_remote(path) else None
    with _broken_arrays_told(path):
        return tensorstore.open(_array_spec(path), context=context).result()


def _checksums(path: Path) -> Path:
    return path.with_name(f"{path.name}_checksums")


def _broken(path: Path, reason: str = "") -> UserError:
    return UserError(f"{path}: broken token store{reason}; remove it and run `tpullm tokenize`")


@contextlib.contextmanager
def _broken_arrays_told(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if told := storage.explain(error):
            raise told from error
        raise _broken(path, f" ({' '.join(str(error).split())[:80]})") from error


@functools.cache
def _tensorstore_context():
    """For `gs://`: an index of chunks is read once, and requests are repeated for some minutes."""
    import tensorstore

    return tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": CACHED_BYTES},
            "gcs_request_concurrency": {"limit": 64},
            "gcs_request_retries": {"max_retries": 30, "initial_delay": "500ms", "max_delay": "8s"},
        }
    )


def _array_spec(path: Path) -> dict:
    if not storage.is_remote(path):
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path.absolute()}/"}}
    bucket, _, name = str(path).removeprefix("gs://").partition("/")
    kvstore = {"driver": "gcs", "bucket": bucket, "path": f"{name}/"}
    return {"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": "open", "recheck_cached_metadata": "open"}
