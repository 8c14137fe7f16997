"""The token store: documents of token ids on disk, with random access.

A folder `tokens/<source>/<split>` holds three flat arrays: `tokens` (uint16, or uint32 for vocabularies of 65,536 and
more), `offsets` (uint64 [documents + 1]: document d is tokens[offsets[d]:offsets[d + 1]]) and `ids` (uint64
[documents]: the first 8 bytes of the hash of its text).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.data import flat_array
from tpullm.errors import UserError


class TokenStore:
    """Documents of a token store, for reading. It implements `tpullm.data.batch.Documents`."""

    def __init__(self, path: Path | str):
        """Open the token store `path` (`tokens/<source>/<split>`); `UserError` if it is none."""
        path = storage.path(path)
        if not (path / "tokens").is_dir():
            raise UserError(f"{path}: no token store; make it with `tpullm tokenize`")
        self.path = path
        self.offsets = flat_array.read_all(path / "offsets").view(np.int64)
        self.ids = flat_array.read_all(path / "ids")
        self.lengths = np.diff(self.offsets)
        self._tokens = (flat_array.Remote if storage.is_remote(path) else flat_array.Mapped)(path / "tokens")

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) of `[start, start + count)` of each document, concatenated, and weights of 1."""
        begins = self.offsets[documents] + starts
        tokens = self._tokens.read(begins, begins + counts)
        return tokens, np.ones(len(tokens), np.float32)

    def document(self, index: int) -> np.ndarray:
        """All tokens of one document, int32, `<s>` and `</s>` included."""
        whole = np.array([index])
        return self.read(whole, np.zeros(1, np.int64), self.lengths[whole])[0]


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest type that holds the ids below `vocabulary_size`."""
    return np.dtype(np.uint16 if vocabulary_size < 65_536 else np.uint32)


def write_store(path: Path, parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], dtype: np.dtype) -> None:
    """Write the store `path` from its parts in order, each (tokens, lengths of its documents, ids of its documents).

    `path` appears when the store is complete. One part at a time is in memory.
    """
    with storage.atomic_directory(path) as temporary:
        lengths, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        writer = flat_array.Appender(temporary / "tokens", dtype)
        for part_tokens, part_lengths, part_ids in parts:
            writer.append(part_tokens.astype(dtype, copy=False))
            lengths.append(part_lengths)
            ids.append(part_ids)
        writer.close()
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.uint64)
        flat_array.write_all(temporary / "offsets", offsets)
        flat_array.write_all(temporary / "ids", np.concatenate(ids))
