"""The token store: documents of token ids on disk, with random access.

A folder `tokens/<source>/<split>` holds three flat arrays: `tokens` (uint16, or uint32 for vocabularies of 65,536 and
more), `offsets` (uint64 [documents + 1]: document d is tokens[offsets[d]:offsets[d + 1]]) and `ids` (uint64
[documents]: the first 8 bytes of the hash of its text). If the documents have languages, `languages` (uint16
[documents]) has their numbers in the list of `languages.json`.

If the tokens are in files of others (`token_index.py`), the folder has no tokens. `files.json` lists the files,
`begins` has the first token of each document in all of them side by side, and `lengths` its tokens.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.data import flat_array, token_files
from tpullm.data.mapped_files import MappedFiles
from tpullm.errors import UserError

NAMES, FILES = "languages.json", "files.json"


class TokenStore:
    """Documents of a token store, for reading. It implements `tpullm.data.batch.Documents`."""

    def __init__(self, path: Path | str):
        """Open the token store `path` (`tokens/<source>/<split>`); `UserError` if it is none."""
        path = storage.path(path)
        self.path = path
        if (path / FILES).exists():
            self._begins, self.lengths = (
                flat_array.read_all(path / name).view(np.int64) for name in ("begins", "lengths")
            )
            listed = storage.read_json(path / FILES)
            self._tokens = MappedFiles(list(map(token_files.of_json, listed["files"])), listed["vocabulary_size"] - 1)
        elif (path / "tokens").is_dir():
            offsets = flat_array.read_all(path / "offsets").view(np.int64)
            self._begins, self.lengths = offsets[:-1], np.diff(offsets)
            self._tokens = (flat_array.Remote if storage.is_remote(path) else flat_array.Mapped)(path / "tokens")
        else:
            raise UserError(f"{path}: no token store; make it with `tpullm tokenize`")
        self.ids = flat_array.read_all(path / "ids")

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
        return storage.read_json(self.path / NAMES), flat_array.read_all(self.path / "languages")


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
        writer = flat_array.Appender(temporary / "tokens", dtype)
        for part_tokens, part_lengths, part_ids, *languages in parts:
            writer.append(part_tokens.astype(dtype, copy=False))
            lengths.append(part_lengths)
            ids.append(part_ids)
            for part_languages in languages:
                codes.append(_codes(part_languages, names))
        writer.close()
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.uint64)
        flat_array.write_all(temporary / "offsets", offsets)
        flat_array.write_all(temporary / "ids", np.concatenate(ids))
        if len(codes) > 1:
            flat_array.write_all(temporary / "languages", np.concatenate(codes))
            storage.write_json(temporary / NAMES, list(names))


def _codes(languages: np.ndarray, names: dict[str, int]) -> np.ndarray:
    """The number of each language, uint16. New ones get the next numbers; beyond 65,535 they count as none."""
    found, places = np.unique(languages, return_inverse=True)
    for name in map(str, found):
        if name not in names and len(names) < 65_535:
            names[name] = len(names)
    numbers = [names[name] if name in names else names.setdefault("", 65_535) for name in map(str, found)]
    return np.array(numbers, np.uint16)[places]
