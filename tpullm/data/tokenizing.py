"""Documents → token stores, by many processes: a file of documents becomes a part, and the parts become the stores.

A finished part is never made again, so a run that was killed resumes. A part depends on its file and on the tokenizer
alone, so the stores are the same for any number of processes and machines.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus import document_files
from tpullm.data import token_index, token_store
from tpullm.data.token_index import IndexPart
from tpullm.process.parallel_parts import run_all
from tpullm.recipe.schema import Source
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

    @property
    def bytes(self) -> int:
        """How many bytes it reads."""
        return storage.size(self.documents)


def plan(documents: Path, parts: Path, tokenizer: Path, sources: Sequence[Source]) -> list[Part | IndexPart]:
    """The parts of all files of documents, ordered by source, split and file, and those of tokens of others."""
    planned: list[Part | IndexPart] = []
    for source in sources:
        if source.kind == "tokens":
            planned += token_index.plan(source, parts, tokenizer, len(planned))
            continue
        for split in (document_files.TRAIN, document_files.HELD_OUT):
            for file in document_files.shards(documents, source.name, split):
                planned.append(Part(source.name, split, file, parts / f"{len(planned):06}.npz", tokenizer))
    return planned


def make(parts: Sequence[Part | IndexPart], workers: int, finished: Callable[[], None]) -> None:
    """Tokenize the parts in `workers` processes (0: one for each core); `finished` is called after each part."""
    sizes = [part.bytes for part in parts]
    run_all("tokenize", make_part, parts, sizes, workers, PARALLEL_BYTES, finished)


def make_part(part: Part | IndexPart) -> None:
    """Tokenize one file of documents, each with its begin and end tokens; or read one file of tokens of others."""
    if isinstance(part, IndexPart):
        return token_index.make_part(part)
    tokenizer = load_tokenizer(part.tokenizer)
    dtype = token_store.token_dtype(tokenizer.vocabulary_size)
    tokens, ids, languages, size = [np.zeros(0, dtype)], [], [], 0
    for document in document_files.read_shard(part.documents):
        text = document["text"]
        tokens.append(np.array(tokenizer.document(text), dtype))
        ids.append(int(document["hash"][:16], 16))
        languages.append(document["language"])
        size += len(text.encode())
    lengths = np.array([len(document) for document in tokens[1:]], np.int64)
    with storage.atomic_file(part.tokens) as temporary, temporary.open("wb") as file:
        arrays = {"lengths": lengths, "ids": np.array(ids, np.uint64), "languages": np.array(languages, np.str_)}
        np.savez(file, tokens=np.concatenate(tokens), bytes=size, **arrays)


def assemble(
    folder: Path, parts: Sequence[Part | IndexPart], vocabulary_size: int, held_out_fraction: float
) -> dict[str, dict[str, dict[str, int]]]:
    """Write `folder`/SOURCE/SPLIT from its parts; count documents, tokens and UTF-8 bytes by source and split.

    Args:
        held_out_fraction: of tokens of others; of documents it is decided before.
    """
    groups: dict[tuple[str, str], list[Part]] = {}
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for source, group in groupby(parts, lambda part: part.source):
        own = list(group)
        if isinstance(own[0], IndexPart):
            facts[source] = token_index.assemble(folder / source, own, held_out_fraction)
            continue
        for part in own:
            groups.setdefault((source, part.split), []).append(part)
    for (source, split), group in groups.items():
        counts = {"documents": 0, "tokens": 0, "bytes": 0}
        token_store.write_store(
            folder / source / split, _arrays(group, counts), token_store.token_dtype(vocabulary_size)
        )
        facts.setdefault(source, {})[split] = counts
    return facts


def _arrays(parts: Sequence[Part], counts: dict[str, int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Tokens of each part; lengths, ids and languages of its documents. They are added to `counts`."""
    for part in parts:
        with part.tokens.open("rb") as file, np.load(file) as arrays:
            tokens, lengths, ids, languages = (arrays[name] for name in ("tokens", "lengths", "ids", "languages"))
            counts["documents"] += len(ids)
            counts["tokens"] += len(tokens)
            counts["bytes"] += int(arrays["bytes"])
        yield tokens, lengths, ids, languages
