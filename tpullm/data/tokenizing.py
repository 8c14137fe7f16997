"""Documents → token stores, by many processes: each part of the documents is tokenized, and the parts become stores.

A finished part is never made again, so a run that was killed resumes. A part depends on its documents and on the
tokenizer alone, so the stores are the same for any number of processes and machines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus import document_files
from tpullm.corpus.document_files import SPLITS
from tpullm.data import token_index, token_store
from tpullm.data.token_index import IndexPart
from tpullm.process.rounds import Rounds
from tpullm.recipe.schema import Source
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
    bytes: int  # that it reads

    @property
    def source(self) -> str:
        """The name of its source."""
        return self.documents.source


def plan(documents: Path, parts: Path, tokenizer: Path, sources: Sequence[Source]) -> list[Part | IndexPart]:
    """The parts of all documents, in the order of the sources, and those of tokens of others."""
    planned: list[Part | IndexPart] = []
    sizes = storage.sizes(documents / "parts")  # one listing, where a question for each part is a request
    for source in sources:
        if source.kind == "tokens":
            planned += token_index.plan(source, parts, tokenizer, len(planned))
        for part in document_files.parts(documents, source.name):
            size = sizes.get(part.path.name, 0)  # reading tells what is missing
            planned.append(Part(part, parts / f"{len(planned):06}.npz", tokenizer, size))
    return planned


def make(parts: Sequence[Part | IndexPart], rounds: Rounds) -> None:
    """Tokenize the parts, those of all shares."""
    files, sizes = [part.tokens for part in parts], [part.bytes for part in parts]
    rounds.do("tokenize", make_part, parts, files, sizes, PARALLEL_BYTES)


def make_part(part: Part | IndexPart) -> None:
    """Tokenize one part of the documents, each with its begin and end tokens; or read a file of tokens of others."""
    if isinstance(part, IndexPart):
        return token_index.make_part(part)
    tokenizer = load_tokenizer(part.tokenizer)
    dtype = token_store.token_dtype(tokenizer.vocabulary_size)
    found = {split: _Tokens([np.zeros(0, dtype)]) for split in SPLITS}
    for document, mark in document_files.read_part(part.documents):
        own, text = found[SPLIT_OF[mark]], document["text"]
        own.tokens.append(np.array(tokenizer.document(text), dtype))
        own.ids.append(int(document["hash"][:16], 16))
        own.languages.append(document["language"])
        own.bytes += len(text.encode())
    arrays = {f"{split}_{name}": array for split, own in found.items() for name, array in own.arrays().items()}
    with storage.atomic_file(part.tokens) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


@dataclass
class _Tokens:
    """The documents of one split of a part."""

    tokens: list[np.ndarray]
    ids: list[int] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    bytes: int = 0

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "tokens": np.concatenate(self.tokens),
            "lengths": np.array([len(document) for document in self.tokens[1:]], np.int64),
            "ids": np.array(self.ids, np.uint64),
            "languages": np.array(self.languages, np.str_),
            "bytes": np.array(self.bytes),
        }


def assemble(
    folder: Path, parts: Sequence[Part | IndexPart], vocabulary_size: int, held_out_fraction: float
) -> dict[str, dict[str, dict[str, int]]]:
    """Write `folder`/SOURCE/SPLIT from its parts; count documents, tokens and UTF-8 bytes by source and split.

    A split of a source that has no document has no store.

    Args:
        held_out_fraction: of tokens of others; of documents it is decided before.
    """
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for source, group in groupby(parts, lambda part: part.source):
        own = list(group)
        if isinstance(own[0], IndexPart):
            facts[source] = token_index.assemble(folder / source, own, held_out_fraction)
            continue
        facts[source] = {}
        for split in SPLITS:
            if having := [part for part in own if _documents(part, split)]:
                counts = {"documents": 0, "tokens": 0, "bytes": 0}
                arrays, dtype = _arrays(having, split, counts), token_store.token_dtype(vocabulary_size)
                token_store.write_store(folder / source / split, arrays, dtype)
                facts[source][split] = counts
    return facts


def _documents(part: Part, split: str) -> int:
    """How many documents of a split a part has."""
    with part.tokens.open("rb") as file, np.load(file) as arrays:
        return len(arrays[f"{split}_ids"])


def _arrays(parts: Sequence[Part], split: str, counts: dict[str, int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Tokens of each part; lengths, ids and languages of its documents. They are added to `counts`."""
    for part in parts:
        with part.tokens.open("rb") as file, np.load(file) as arrays:
            found = tuple(arrays[f"{split}_{name}"] for name in ("tokens", "lengths", "ids", "languages"))
            counts["bytes"] += int(arrays[f"{split}_bytes"])
        counts["documents"] += len(found[2])
        counts["tokens"] += len(found[0])
        yield found
