"""Documents → token stores, by many processes: a file of documents becomes a part, and the parts become the stores.

A finished part is never made again, so a run that was killed resumes. A part depends on its file and on the tokenizer
alone, so the stores are the same for any number of processes and machines.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus import document_files
from tpullm.data import token_store
from tpullm.process.parallel_parts import run_all
from tpullm.tokenizer import load as load_tokenizer

# Starting worker processes takes as long as tokenizing this many (compressed) bytes of documents.
PARALLEL_BYTES = 2_000_000


@dataclass(frozen=True)
class Part:
    """One file of documents, and the file of its tokens."""

    source: str
    split: str
    documents: Path
    tokens: Path
    tokenizer: Path


def plan(documents: Path, parts: Path, tokenizer: Path, sources: Sequence[str]) -> list[Part]:
    """The parts of all files of documents, ordered by source, split and file."""
    planned: list[Part] = []
    for source in sources:
        for split in (document_files.TRAIN, document_files.HELD_OUT):
            for file in document_files.shards(documents, source, split):
                planned.append(Part(source, split, file, parts / f"{len(planned):06}.npz", tokenizer))
    return planned


def make(parts: Sequence[Part], workers: int, finished: Callable[[], None]) -> None:
    """Tokenize the parts in `workers` processes (0: one for each core); `finished` is called after each part."""
    sizes = [storage.size(part.documents) for part in parts]
    run_all("tokenize", make_part, parts, sizes, workers, PARALLEL_BYTES, finished)


def make_part(part: Part) -> None:
    """Tokenize one file of documents; each document gets its begin and end tokens."""
    tokenizer = load_tokenizer(part.tokenizer)
    dtype = token_store.token_dtype(tokenizer.vocabulary_size)
    tokens, ids, size = [np.zeros(0, dtype)], [], 0
    for document in document_files.read_shard(part.documents):
        text = document["text"]
        tokens.append(np.array(tokenizer.document(text), dtype))
        ids.append(int(document["hash"][:16], 16))
        size += len(text.encode())
    lengths = np.array([len(document) for document in tokens[1:]], np.int64)
    with storage.atomic_file(part.tokens) as temporary, temporary.open("wb") as file:
        np.savez(file, tokens=np.concatenate(tokens), lengths=lengths, ids=np.array(ids, np.uint64), bytes=size)


def assemble(folder: Path, parts: Sequence[Part], vocabulary_size: int) -> dict[str, dict[str, dict[str, int]]]:
    """Write `folder`/SOURCE/SPLIT from its parts; count documents, tokens and UTF-8 bytes by source and split."""
    groups: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.source, part.split), []).append(part)
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for (source, split), group in groups.items():
        counts = {"documents": 0, "tokens": 0, "bytes": 0}
        token_store.write_store(
            folder / source / split, _arrays(group, counts), token_store.token_dtype(vocabulary_size)
        )
        facts.setdefault(source, {})[split] = counts
    return facts


def _arrays(parts: Sequence[Part], counts: dict[str, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens, lengths and ids of each part, added to `counts`."""
    for part in parts:
        with part.tokens.open("rb") as file, np.load(file) as arrays:
            tokens, lengths, ids = arrays["tokens"], arrays["lengths"], arrays["ids"]
            counts["documents"] += len(ids)
            counts["tokens"] += len(tokens)
            counts["bytes"] += int(arrays["bytes"])
        yield tokens, lengths, ids
