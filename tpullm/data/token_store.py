"""The token store: documents of token ids on disk, with random access.

A folder `tokens/<source>/<split>` holds three flat arrays: `tokens` (uint16, or uint32 for vocabularies of 65,536 and
more), `offsets` (uint64 [documents + 1]: document d is tokens[offsets[d]:offsets[d + 1]]) and `ids` (uint64
[documents]: the first 8 bytes of the hash of its text). If the documents have languages, `languages` (uint16
[documents]) has their numbers in the list of `languages.json`. `checksums` (uint32) has the CRC-32 of each chunk of the
tokens. A chunk is compared with it when it is first read, at 3 GB/s; the other arrays have checksums of their own.

If the tokens are in files of others (`token_index.py`), the folder has no tokens. `files.json` lists the files,
`begins` has the first token of each document in all of them side by side, and `lengths` its tokens.

The arrays are zarr3 shards, written by TensorStore, on disk or on `gs://`. On disk they are read through memory maps. A
map takes only the memory that the system can spare for files, and reads 40 tokens at a random place in 1.2
microseconds, where TensorStore takes 10.
"""

import contextlib
import functools
import mmap
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.data import token_files
from tpullm.data.batch import flat_ranges
from tpullm.data.token_files import MappedFiles
from tpullm.system import storage
from tpullm.system.errors import UserError

CHUNK_TOKENS = 16 * 1024  # the unit of reading
SHARD_TOKENS = 32 * 1024 * 1024  # the tokens of one file
CACHED_BYTES = 1 << 28  # of a store on gs://, for each process


class Chunks:
    """The chunks of the tokens, each compared with its checksum when it is first read by this process."""

    def __init__(self, path: Path, size: int):
        self._path, self._size = path, size
        self._sums = read_all(path.parent / CHECKSUMS)
        self._compared = np.zeros(-(-size // CHUNK_TOKENS), bool)
        if len(self._sums) != len(self._compared):
            raise UserError(f"{path.parent}: broken token store; remove it and run `tpullm tokenize`")

    def new(self, begins: np.ndarray, ends: np.ndarray) -> list[tuple[int, int, int]]:
        """The chunks of these ranges that are not compared yet: number, first token, end."""
        firsts = begins // CHUNK_TOKENS
        chunks = flat_ranges(firsts, np.where(ends > begins, (ends - 1) // CHUNK_TOKENS - firsts + 1, 0))
        found = np.unique(chunks[~self._compared[chunks]]).tolist()
        return [(chunk, chunk * CHUNK_TOKENS, min((chunk + 1) * CHUNK_TOKENS, self._size)) for chunk in found]

    def compare(self, chunk: int, values: Any) -> None:
        """Raise `UserError` if the bytes of a chunk are not those that were written."""
        if zlib.crc32(values) != self._sums[chunk]:
            first, shard = chunk * CHUNK_TOKENS, chunk * CHUNK_TOKENS // SHARD_TOKENS
            raise UserError(
                f"{self._path / 'c' / str(shard)}: the tokens from number {first:,} of the store on have changed since "
                f"they were written; remove {self._path.parent} and run `tpullm tokenize`"
            )
        self._compared[chunk] = True


class Mapped:
    """Reads a flat array on disk through a memory map of each shard."""

    def __init__(self, path: Path):
        """Map the shards; `UserError` if one is missing, cut short, or not as `Appender` writes it."""
        array = _open_array(path)
        layout, size = array.chunk_layout, array.shape[0]
        self._dtype, self._shard, self._shards = array.dtype.numpy_dtype, layout.write_chunk.shape[0], []
        chunk, chunk_bytes = layout.read_chunk.shape[0], layout.read_chunk.shape[0] * self._dtype.itemsize
        # A shard holds its chunks, and then an index of their offsets and sizes in bytes (zarr3, `sharding_indexed`).
        # TensorStore writes a whole shard as whole chunks in order, so the chunks are one array.
        for first in range(0, size, self._shard):
            count, file = min(self._shard, size - first), path / "c" / str(first // self._shard)
            chunks = -(-count // chunk)
            wanted = np.stack([np.arange(chunks) * chunk_bytes, np.full(chunks, chunk_bytes)], axis=1)
            try:
                index = np.fromfile(file, "<u8", 2 * chunks, offset=chunks * chunk_bytes)
            except FileNotFoundError:
                index = np.zeros(0)
            if not np.array_equal(index, wanted.ravel()):
                raise UserError(f"{file}: broken token store; remove it and run `tpullm tokenize`")
            with open(file, "rb") as opened:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self._shards.append(memoryview(mapped)[: count * self._dtype.itemsize].cast(self._dtype.char))
        self._chunks = Chunks(path, size)

    def read(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`[begin, end)` of each pair, concatenated; int32."""
        shards = begins // self._shard
        counts = (ends - 1) // self._shard - shards + 1
        shards = flat_ranges(shards, counts)
        lows = np.maximum(np.repeat(begins, counts) - shards * self._shard, 0)
        highs = np.minimum(np.repeat(ends, counts) - shards * self._shard, self._shard)
        # Have the system read all pieces at once. Else it reads each piece when Python touches it, and Python waits:
        # 400 pieces that were not in memory took 5 ms; without this call they took 69 ms and stopped other threads for
        # up to a second. The call costs 0.9 microseconds for a piece that is in memory.
        firsts = lows * self._dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        sizes = highs * self._dtype.itemsize - firsts
        for shard, first, size in zip(shards.tolist(), firsts.tolist(), sizes.tolist(), strict=True):
            self._shards[shard].obj.madvise(mmap.MADV_WILLNEED, first, size)
        for chunk, first, end in self._chunks.new(begins, ends):
            shard, low = divmod(first, self._shard)
            self._chunks.compare(chunk, self._shards[shard][low : low + end - first])
        pieces = zip(shards.tolist(), lows.tolist(), highs.tolist(), strict=True)
        flat = b"".join([self._shards[shard][low:high] for shard, low, high in pieces])
        return np.frombuffer(flat, self._dtype).astype(np.int32)


class Remote:
    """Reads a flat array on `gs://`: all wanted chunks in one batch of requests, through a cache."""

    def __init__(self, path: Path):
        self._path, self._array = path, _open_array(path)
        self._chunks = Chunks(path, self._array.shape[0])

    def read(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`[begin, end)` of each pair, concatenated; int32."""
        import tensorstore

        with tensorstore.Batch() as batch:
            pairs = zip(begins.tolist(), ends.tolist(), strict=True)
            pieces = [self._array[begin:end].read(batch=batch) for begin, end in pairs]
            new = self._chunks.new(begins, ends)  # which are fetched whole in any case
            chunks = [self._array[first:end].read(batch=batch) for _, first, end in new]
        with _broken_arrays_told(self._path):
            found = [piece.result() for piece in pieces]
            for (chunk, _, _), values in zip(new, chunks, strict=True):
                self._chunks.compare(chunk, values.result())
        return np.concatenate([*found, np.zeros(0, self._array.dtype.numpy_dtype)]).astype(np.int32)


class Appender:
    """Writes a flat array of unknown length by whole shards, so that no shard is written twice."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._array = _create_array(path, dtype, 0)
        self._held: list[np.ndarray] = []
        self._held_tokens = self._written = 0
        self.checksums: list[int] = []

    def add_values(self, values: np.ndarray) -> None:
        """Add values at the end."""
        self._held.append(values)
        self._held_tokens += len(values)
        if self._held_tokens >= SHARD_TOKENS:
            self._write(self._held_tokens - self._held_tokens % SHARD_TOKENS)

    def close(self) -> None:
        """Write what is not written yet."""
        self._write(self._held_tokens)

    def _write(self, count: int) -> None:
        values = np.concatenate([*self._held, np.zeros(0, self._array.dtype.numpy_dtype)])
        end = self._written + count
        self._array = self._array.resize(exclusive_max=[end]).result()
        if count:
            self._array[self._written : end].write(values[:count]).result()
            firsts = range(0, count, CHUNK_TOKENS)  # what was written before fills whole shards
            self.checksums += [zlib.crc32(values[first : min(first + CHUNK_TOKENS, count)]) for first in firsts]
        self._written = end
        self._held, self._held_tokens = [values[count:]], len(values) - count


def _create_array(path: Path, dtype: np.dtype, size: int, checked: bool = False):
    """An array on disk.

    Args:
        checked: each chunk ends with its checksum, which TensorStore compares. A memory map wants it without.
    """
    import tensorstore

    layout = tensorstore.ChunkLayout(write_chunk_shape=[SHARD_TOKENS], read_chunk_shape=[CHUNK_TOKENS])
    spec = _array_spec(path) | {"store_data_equal_to_fill_value": True}  # a chunk of zeros is one like any other
    options = {"dtype": tensorstore.dtype(dtype), "shape": [size], "chunk_layout": layout}
    if checked:
        inner = {"chunk_shape": [CHUNK_TOKENS], "codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
        options["codec"] = tensorstore.CodecSpec({"driver": "zarr3", "codecs": codecs})
    return tensorstore.open(spec, create=True, **options).result()


def _open_array(path: Path):
    import tensorstore

    context = _tensorstore_context() if storage.is_remote(path) else None
    with _broken_arrays_told(path):
        return tensorstore.open(_array_spec(path), context=context).result()


@contextlib.contextmanager
def _broken_arrays_told(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if told := storage.explain(error):
            raise told from error
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: broken token store ({reason}); remove it and run `tpullm tokenize`") from error


@functools.cache
def _tensorstore_context():
    """For `gs://`: an index of chunks is read once, and requests are repeated for some minutes.

    A disk has no cache: with one, `offsets` lay in memory so that looking up documents took 1.17 times as long.
    """
    import tensorstore

    return tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": CACHED_BYTES},
            "gcs_request_concurrency": {"limit": 64},
            "gcs_request_retries": {"max_retries": 30, "initial_delay": "500ms", "max_delay": "8s"},
        }
    )


def write_all(path: Path, values: np.ndarray) -> None:
    """Write a whole array."""
    _create_array(path, values.dtype, len(values), checked=True).write(values).result()


def read_all(path: Path) -> np.ndarray:
    """Read a whole array; `UserError` if it is broken."""
    array = _open_array(path)
    with _broken_arrays_told(path):
        return array.read().result()


def _array_spec(path: Path) -> dict:
    if not storage.is_remote(path):
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path.absolute()}/"}}
    bucket, _, name = str(path).removeprefix("gs://").partition("/")
    kvstore = {"driver": "gcs", "bucket": bucket, "path": f"{name}/"}
    return {"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": "open", "recheck_cached_metadata": "open"}


NAMES, FILES, CHECKSUMS = "languages.json", "files.json", "checksums"


class TokenStore:
    """Documents of a token store, for reading. It implements `tpullm.data.batch.Documents`."""

    def __init__(self, path: Path | str):
        """Open the token store `path` (`tokens/<source>/<split>`); `UserError` if it is none."""
        self.path = path = storage.path(path)
        if (path / FILES).exists():
            self._begins, self.lengths = (read_all(path / name).view(np.int64) for name in ("begins", "lengths"))
            listed = storage.read_json(path / FILES)
            self._tokens = MappedFiles(list(map(token_files.of_json, listed["files"])), listed["vocabulary_size"] - 1)
        elif (path / "tokens").is_dir():
            offsets = read_all(path / "offsets").view(np.int64)
            self._begins, self.lengths = offsets[:-1], np.diff(offsets)
            self._tokens = (Remote if storage.is_remote(path) else Mapped)(path / "tokens")
        else:
            raise UserError(f"{path}: no token store; make it with `tpullm tokenize`")
        self.ids = read_all(path / "ids")

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) of `[start, start + count)` of each document, concatenated, and their weights (float32).

        All weights are 1, but for tokens that a file of others says are not learned.
        """
        begins = self._begins[documents] + starts
        tokens = self._tokens.read(begins, begins + counts)
        if isinstance(self._tokens, MappedFiles):
            return tokens, self._tokens.weights(begins, begins + counts)
        return tokens, np.ones(len(tokens), np.float32)

    def document(self, index: int) -> np.ndarray:
        """All tokens of one document, int32, `<s>` and `</s>` included."""
        whole = np.array([index])
        return self.read(whole, np.zeros(1, np.int64), self.lengths[whole])[0]

    def languages(self) -> tuple[list[str], np.ndarray] | None:
        """Names of languages, and which of them each document has, uint16 [documents]; None if nothing says so."""
        if not (self.path / NAMES).exists():
            return None
        return storage.read_json(self.path / NAMES), read_all(self.path / "languages")


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest type that holds the ids below `vocabulary_size`."""
    return np.dtype(np.uint16 if vocabulary_size < 65_536 else np.uint32)


def write_store(path: Path, parts: Iterable[tuple[np.ndarray, ...]], dtype: np.dtype) -> None:
    """Write the store `path` from its parts in order, each (tokens, lengths of its documents, ids of its documents).

    A part may also have the languages of its documents, an array of text; all parts then have them. `path` appears when
    the store is complete. One part at a time is in memory.
    """
    with storage.atomic_directory(path) as temporary:
        lengths, ids, codes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)]
        names: dict[str, int] = {}
        writer = Appender(temporary / "tokens", dtype)
        for part_tokens, part_lengths, part_ids, *languages in parts:
            writer.add_values(part_tokens.astype(dtype, copy=False))
            lengths.append(part_lengths)
            ids.append(part_ids)
            for part_languages in languages:
                codes.append(_language_numbers(part_languages, names))
        writer.close()
        write_all(temporary / CHECKSUMS, np.array(writer.checksums, np.uint32))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.uint64)
        write_all(temporary / "offsets", offsets)
        write_all(temporary / "ids", np.concatenate(ids))
        if len(codes) > 1:
            write_all(temporary / "languages", np.concatenate(codes))
            storage.write_json(temporary / NAMES, list(names))


def _language_numbers(languages: np.ndarray, names: dict[str, int]) -> np.ndarray:
    """The number of each language, uint16. New ones get the next numbers; beyond 65,535 they count as none."""
    found, places = np.unique(languages, return_inverse=True)
    for name in map(str, found):
        if name not in names and len(names) < 65_535:
            names[name] = len(names)
    numbers = [names[name] if name in names else names.setdefault("", 65_535) for name in map(str, found)]
    return np.array(numbers, np.uint16)[places]
