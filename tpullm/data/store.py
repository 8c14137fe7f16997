"""The token store: documents of token ids on disk, with random access (zarr3 shards through TensorStore).

A batch is one read, by the index of every token in it: TensorStore reads the chunks that hold them at the same time.
With documents of 50 tokens in random order, on two busy cores, that gave 7 M tokens/s; a read for each document, all in
flight, 4 M (with documents of 1,000 tokens 11 M and 30 M); numpy in memory 500 M.

A folder `tokens/<source>/<split>` holds three flat arrays: `tokens` (uint16, or uint32 for vocabularies of 65,536 and
more), `offsets` (uint64 [documents + 1]: document d is tokens[offsets[d]:offsets[d + 1]]) and `ids` (uint64
[documents]: the first 8 bytes of the hash of its text).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.data.batch import flat_ranges
from tpullm.errors import UserError

CHUNK_TOKENS = 16 * 1024  # read at once
SHARD_TOKENS = 32 * 1024 * 1024  # one file
MEMORY_BYTES = 64 * 1024 * 1024  # arrays up to this size are held in memory, larger ones cache this much


class TokenStore:
    """Documents of a token store, for reading. It implements `tpullm.data.batch.Documents`."""

    def __init__(self, path: Path | str):
        """Open `path` (`tokens/<source>/<split>`); `UserError` if it is not a token store."""
        path = Path(path)
        if not (path / "tokens").is_dir():
            raise UserError(f"{path}: no token store; make it with `tpullm tokenize`")
        self.path = path
        self.offsets = _read_all(path / "offsets").astype(np.int64)
        self.ids = _read_all(path / "ids")
        self.lengths = np.diff(self.offsets)
        self._tokens = _open(path / "tokens")
        if self._tokens.dtype.numpy_dtype.itemsize * self._tokens.shape[0] <= MEMORY_BYTES:
            self._tokens = self._tokens.read().result()

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """The token store in `path`; `UserError` if there is none."""
        return cls(path)

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32, flat) of `[start, start + count)` of each document, one after the other, and weights of 1."""
        tokens = self._tokens[flat_ranges(self.offsets[documents] + starts, counts)]
        if not isinstance(tokens, np.ndarray):
            tokens = tokens.read().result()
        return tokens.astype(np.int32), np.ones(len(tokens), np.float32)

    def document(self, index: int) -> np.ndarray:
        """All tokens of one document, int32, `<s>` and `</s>` included."""
        whole = np.array([index])
        return self.read(whole, np.zeros(1, np.int64), self.lengths[whole])[0]


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest type for ids below `vocabulary_size`."""
    return np.dtype(np.uint16 if vocabulary_size < 65_536 else np.uint32)


def write_store(path: Path, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], dtype: np.dtype) -> None:
    """Write the store `path` from parts in order, each (tokens, lengths of its documents, ids of its documents).

    All or nothing: `path` appears when everything is written. A part at a time is in memory.
    """
    with storage.atomic_directory(path) as temporary:
        lengths, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        writer = _Appender(temporary / "tokens", dtype)
        for part_tokens, part_lengths, part_ids in parts:
            writer.append(part_tokens.astype(dtype, copy=False))
            lengths.append(part_lengths)
            ids.append(part_ids)
        writer.close()
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.uint64)
        _write_all(temporary / "offsets", offsets)
        _write_all(temporary / "ids", np.concatenate(ids))


class _Appender:
    """Writes a flat array of unknown length, a whole shard at a time, so that no shard is written twice."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._array = _create(path, dtype, 0)
        self._held: list[np.ndarray] = []
        self._held_tokens = self._written = 0

    def append(self, values: np.ndarray) -> None:
        self._held.append(values)
        self._held_tokens += len(values)
        if self._held_tokens >= SHARD_TOKENS:
            self._write(self._held_tokens - self._held_tokens % SHARD_TOKENS)

    def close(self) -> None:
        self._write(self._held_tokens)

    def _write(self, count: int) -> None:
        values = np.concatenate([*self._held, np.zeros(0, self._array.dtype.numpy_dtype)])
        end = self._written + count
        self._array = self._array.resize(exclusive_max=[end]).result()
        if count:
            self._array[self._written : end].write(values[:count]).result()
        self._written = end
        self._held, self._held_tokens = [values[count:]], len(values) - count


def _create(path: Path, dtype: np.dtype, size: int):
    import tensorstore

    layout = tensorstore.ChunkLayout(write_chunk_shape=[SHARD_TOKENS], read_chunk_shape=[CHUNK_TOKENS])
    return tensorstore.open(
        _spec(path), create=True, dtype=tensorstore.dtype(dtype), shape=[size], chunk_layout=layout
    ).result()


def _open(path: Path):
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": MEMORY_BYTES}})
    try:
        return tensorstore.open(_spec(path), open=True, context=context).result()
    except ValueError as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: broken token store ({reason}); remove it and run `tpullm tokenize`") from error


def _write_all(path: Path, values: np.ndarray) -> None:
    _create(path, values.dtype, len(values)).write(values).result()


def _read_all(path: Path) -> np.ndarray:
    return _open(path).read().result()


def _spec(path: Path) -> dict:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path.absolute()}/"}}
