"""Documents → token stores, by many processes: each part of the documents is tokenized, and the parts become stores.

A finished part is never made again, so a run that was killed resumes. A part depends on its documents and on the
tokenizer alone, so the stores are the same for any number of processes and machines.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus import document_files
from tpullm.corpus.document_files import SPLITS
from tpullm.data import token_store
from tpullm.process.parallel_parts import run_all
from tpullm.tokenizer import load as load_tokenizer

# Starting worker processes takes as long as tokenizing this many (compressed) bytes of documents.
PARALLEL_BYTES = 2_000_000
SPLIT_OF = {mark: split for split, mark in SPLITS.items()}


@dataclass(frozen=True)
class Part:
    """One part of the documents, and the file of its tokens."""

    documents: document_files.Part
    tokens: Path
    tokenizer: Path


def plan(documents: Path, parts: Path, tokenizer: Path) -> list[Part]:
    """The parts of all documents in their order, which is that of the sources."""
    found = document_files.parts(documents)
    return [Part(part, parts / f"{number:06}.npz", tokenizer) for number, part in enumerate(found)]


def make(parts: Sequence[Part], workers: int, finished: Callable[[], None]) -> None:
    """Tokenize the parts in `workers` processes (0: one for each core); `finished` is called after each part."""
    sizes = [storage.size(part.documents.path) for part in parts]
    run_all("tokenize", make_part, parts, sizes, workers, PARALLEL_BYTES, finished)


def make_part(part: Part) -> None:
    """Tokenize one part of the documents; each document gets its begin and end tokens."""
    tokenizer = load_tokenizer(part.tokenizer)
    dtype = token_store.token_dtype(tokenizer.vocabulary_size)
    found = {split: _Tokens([np.zeros(0, dtype)]) for split in SPLITS}
    for document, mark in document_files.read_part(part.documents):
        own, text = found[SPLIT_OF[mark]], document["text"]
        own.tokens.append(np.array(tokenizer.document(text), dtype))
        own.ids.append(int(document["hash"][:16], 16))
        own.bytes += len(text.encode())
    arrays = {f"{split}_{name}": array for split, own in found.items() for name, array in own.arrays().items()}
    with storage.atomic_file(part.tokens) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


@dataclass
class _Tokens:
    """The documents of one split."""

    tokens: list[np.ndarray]
    ids: list[int] = field(default_factory=list)
    bytes: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "tokens": np.concatenate(self.tokens),
            "lengths": np.array([len(document) for document in self.tokens[1:]], np.int64),
            "ids": np.array(self.ids, np.uint64),
            "bytes": np.array(self.bytes),
        }


def assemble(folder: Path, parts: Sequence[Part], vocabulary_size: int) -> dict[str, dict[str, dict[str, int]]]:
    """Write `folder`/SOURCE/SPLIT from its parts; count documents, tokens and UTF-8 bytes by source and split.

    A split of a source that has no document has no store.
    """
    groups: dict[tuple[str, str], list[Part]] = {}
    for part, split in itertools.product(parts, SPLITS):
        if _documents(part, split):
            groups.setdefault((part.documents.source, split), []).append(part)
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for (source, split), group in groups.items():
        counts = {"documents": 0, "tokens": 0, "bytes": 0}
        token_store.write_store(
            folder / source / split, _arrays(group, split, counts), token_store.token_dtype(vocabulary_size)
        )
        facts.setdefault(source, {})[split] = counts
    return facts


def _documents(part: Part, split: str) -> int:
    """How many documents of a split a part has."""
    with part.tokens.open("rb") as file, np.load(file) as arrays:
        return len(arrays[f"{split}_ids"])


def _arrays(
    parts: Sequence[Part], split: str, counts: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens, lengths and ids of each part, added to `counts`."""
    for part in parts:
        with part.tokens.open("rb") as file, np.load(file) as arrays:
            tokens, lengths, ids = (arrays[f"{split}_{name}"] for name in ("tokens", "lengths", "ids"))
            counts["bytes"] += int(arrays[f"{split}_bytes"])
        counts["documents"] += len(ids)
        counts["tokens"] += len(tokens)
        yield tokens, lengths, ids
