"""The token store: documents of token ids on disk or on `gs://`, with random access.

A folder `tokens/<source>/<split>` holds flat arrays. `tokens` (uint16, or uint32 for vocabularies of 65,536 and more)
has the tokens in the order of the corpus. The store numbers its documents by language and length, so that a small
`table` says the lengths of all: each of its rows (uint64 [rows, 3]) is a language, a length in tokens, and how many
documents have both. `begins` has the first token of each document, `corpus_numbers` its number in the corpus and `ids`
the first 8 bytes of the hash of its text, uint64 [documents] each. A language is a place in the list of
`languages.json`; without that file nothing is known of languages.

If the tokens are in files of others (`token_index.py`), the folder has no tokens. `files.json` lists the files, and
`begins` counts the tokens of all of them side by side.

A reader holds the table in memory, and no number for each document.
"""

import copy
import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from tpullm.data import flat_arrays, token_files
from tpullm.data.batch import Lengths
from tpullm.data.flat_arrays import Appender, open_array
from tpullm.data.token_files import MappedFiles
from tpullm.system import storage
from tpullm.system.errors import UserError

BLOCK_DOCUMENTS = 1 << 22  # that are sorted, or searched, at once: up to 0.8 GB, maps of files included
DOCUMENT = np.dtype([("begins", np.uint64), ("corpus_numbers", np.uint64), ("ids", np.uint64)])
NAMES, FILES = "languages.json", "files.json"


class TokenStore:
    """Documents of a token store, for reading. It implements `tpullm.data.batch.Documents`."""

    def __init__(self, path: Path | str):
        """Open the token store `path` (`tokens/<source>/<split>`); `UserError` if it is none."""
        self.path = path = storage.path(path)
        if (path / FILES).exists():
            listed = storage.read_json(path / FILES)
            self._tokens = MappedFiles(list(map(token_files.of_json, listed["files"])), listed["vocabulary_size"] - 1)
        elif (path / "tokens").is_dir():
            self._tokens = open_array(path / "tokens")
        else:
            raise UserError(f"{path}: no token store; make it with `tpullm tokenize`")
        table = flat_arrays.read_all(path / "table").view(np.int64).reshape(-1, 3)
        self._languages, tokens, counts = np.ascontiguousarray(table.T)
        self.lengths = Lengths(tokens, np.cumsum(counts) - counts, counts)
        self._begins = open_array(path / "begins")
        if self._begins.size != self.lengths.documents:
            raise UserError(f"{path}: broken token store; remove it and run `tpullm tokenize`")

    @functools.cached_property
    def _ids(self) -> flat_arrays.Mapped | flat_arrays.Remote:
        return open_array(self.path / "ids")

    @functools.cached_property
    def _corpus_numbers(self) -> flat_arrays.Mapped | flat_arrays.Remote:
        return open_array(self.path / "corpus_numbers")

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) of `[start, start + count)` of each document, concatenated, and their weights (float32).

        All weights are 1, but for tokens that a file of others says are not learned.
        """
        begins = self._begins.at(documents).astype(np.int64) + starts
        tokens = self._tokens.read(begins, begins + counts).astype(np.int32, copy=False)
        if isinstance(self._tokens, MappedFiles):
            return tokens, self._tokens.weights(begins, begins + counts)
        return tokens, np.ones(len(tokens), np.float32)

    def document(self, number: int, most: int | None = None) -> np.ndarray:
        """The first `most` tokens of one document, or all, int32; `<s>` and `</s>` included."""
        length = int(self.lengths.tokens[np.searchsorted(self.lengths.firsts, number, side="right") - 1])
        count = length if most is None else min(length, most)
        return self.read(np.array([number]), np.zeros(1, np.int64), np.array([count]))[0]

    def identities(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of each document in the corpus, int64, and the first 8 bytes of its hash, uint64."""
        return self._corpus_numbers.at(documents).astype(np.int64), self._ids.at(documents)

    def find(self, corpus_numbers: np.ndarray) -> dict[int, int]:
        """The document with each of these numbers in the corpus: the numbers of all are read."""
        found = {}
        for first in range(0, self._begins.size, BLOCK_DOCUMENTS):
            last = min(first + BLOCK_DOCUMENTS, self._begins.size)
            values = self._corpus_numbers.read(np.array([first]), np.array([last])).astype(np.int64)
            here = np.flatnonzero(np.isin(values, corpus_numbers))
            found |= dict(zip(values[here].tolist(), (first + here).tolist(), strict=True))
        return found

    def languages(self) -> tuple[list[str], np.ndarray] | None:
        """Names of languages, and which of them each group of `lengths` has, int64; None if nothing says so."""
        if not (self.path / NAMES).exists():
            return None
        return storage.read_json(self.path / NAMES), self._languages

    def only(self, groups: np.ndarray) -> Self:
        """The same store with some of the groups of `lengths`, by their numbers. Documents keep their numbers."""
        other = copy.copy(self)
        other.lengths, other._languages = self.lengths.only(groups), self._languages[groups]
        return other


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest type that holds the ids below `vocabulary_size`."""
    return np.dtype(np.uint16 if vocabulary_size < 65_536 else np.uint32)


class DocumentWriter:
    """Writes the table and the arrays of documents of a store, sorted in the memory of `BLOCK_DOCUMENTS`.

    Blocks are sorted one by one and kept in a file without a name. At the end slices of all of them are put together.
    """

    def __init__(self, folder: Path):
        """Take the local folder of the store."""
        self._folder, self._file = folder, tempfile.TemporaryFile(dir=folder)
        self._held: list[tuple[np.ndarray, ...]] = []
        self._documents = self._held_documents = 0
        self._tables = [np.zeros((0, 3), np.int64)]

    def add(self, begins: np.ndarray, lengths: np.ndarray, ids: np.ndarray, languages: np.ndarray) -> None:
        """Add the next documents of the corpus: their first tokens, lengths, ids, and numbers of their languages."""
        rows = np.empty(len(ids), DOCUMENT)
        rows["begins"], rows["ids"] = begins, ids
        rows["corpus_numbers"] = self._documents + np.arange(len(ids))
        self._held.append((rows, languages.astype(np.uint16), lengths))
        self._documents += len(ids)
        self._held_documents += len(ids)
        if self._held_documents >= BLOCK_DOCUMENTS:
            self._sort_block()

    def _sort_block(self) -> None:
        rows, languages, lengths = map(np.concatenate, zip(*self._held, strict=True))
        self._held, self._held_documents = [], 0
        order = np.lexsort((lengths, languages))
        rows[order].tofile(self._file)
        self._tables.append(_table(languages[order], lengths[order], np.ones_like(lengths)))

    def close(self) -> None:
        """Write the table and the arrays."""
        if self._held:
            self._sort_block()
        languages, lengths, counts = np.concatenate(self._tables).T  # the slices of each block, one block after another
        ends, order = np.cumsum(counts), np.lexsort((lengths, languages))
        slices, blocks = np.stack([ends - counts, ends], axis=1)[order], np.cumsum(counts[order]) // BLOCK_DOCUMENTS
        rows = np.memmap(self._file, DOCUMENT, "r", shape=self._documents) if self._documents else None
        writers = {name: Appender(self._folder / name, DOCUMENT[name], flat_arrays.SHORT) for name in DOCUMENT.names}
        for some in np.split(slices, np.flatnonzero(np.diff(blocks)) + 1) if self._documents else ():
            sorted_rows = np.concatenate([rows[first:end] for first, end in some.tolist()])
            for name, writer in writers.items():
                writer.add(np.ascontiguousarray(sorted_rows[name]))
        for writer in writers.values():
            writer.close()
        table = _table(languages[order], lengths[order], counts[order])
        flat_arrays.write_all(self._folder / "table", table.astype(np.uint64).ravel())
        self._file.close()


def _table(languages: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of language, length and sum of counts, int64 [rows, 3], from columns that are sorted by both."""
    changes = (np.diff(languages) != 0) | (np.diff(lengths) != 0)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])[: len(counts)]
    sums = np.add.reduceat(counts, starts) if len(starts) else counts
    return np.stack([languages[starts], lengths[starts], sums], axis=1).astype(np.int64)


def write_store(path: Path, parts: Iterable[tuple[np.ndarray, ...]], dtype: np.dtype) -> None:
    """Write the store `path` from its parts in order, each (tokens, lengths of its documents, ids of its documents).

    A part may also have the languages of its documents, an array of text; all parts then have them. `path` appears when
    the store is complete. In memory are one part at a time and the documents of a block.
    """
    with storage.atomic_directory(path) as temporary:
        tokens, documents = Appender(temporary / "tokens", dtype, flat_arrays.LONG), DocumentWriter(temporary)
        names: dict[str, int] = {}
        begin = 0
        for part_tokens, lengths, ids, *languages in parts:
            tokens.add(part_tokens.astype(dtype, copy=False))
            numbers = _language_numbers(languages[0], names) if languages else np.zeros(len(ids), np.uint16)
            documents.add(begin + np.cumsum(lengths) - lengths, lengths, ids, numbers)
            begin += len(part_tokens)
        tokens.close()
        documents.close()
        if names:
            storage.write_json(temporary / NAMES, list(names))


def _language_numbers(languages: np.ndarray, names: dict[str, int]) -> np.ndarray:
    """The number of each language, uint16. New ones get the next numbers; beyond 65,535 they count as none."""
    found, places = np.unique(languages, return_inverse=True)
    for name in map(str, found):
        if name not in names and len(names) < 65_535:
            names[name] = len(names)
    numbers = [names[name] if name in names else names.setdefault("", 65_535) for name in map(str, found)]
    return np.array(numbers, np.uint16)[places]
