"""Which documents are held out, decided by the hash of their text and never by their position.

A source of few documents has stretches of them held out, since one document may be most of its text.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.corpus import document_files
from tpullm.corpus.characters import cut
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document_files import APART, COLUMNS, STRETCHES, USED, Part, Writer
from tpullm.recipe.schema import CorpusConfig
from tpullm.system import storage

FEW = 20  # a source of fewer documents is cut into stretches, since one document may be most of its text
SHORTEST_STRETCH = 200  # characters
Stretches = list[tuple[int, str]]  # each with the index of its text


def held_out_bound(fraction: float) -> int:
    """The documents are held out, in every corpus, whose SHA-256 begins with 8 bytes that are a number below this.

    It is at most 2^64 - 1, so that it is a number of 8 bytes too.
    """
    return min(math.ceil(fraction * 2**64), 2**64 - 1)


def held_out_stretches(texts: Sequence[str], fraction: float, longest: int) -> tuple[Stretches, Stretches]:
    """Training and held-out documents of a source of few documents, each with the index of its text.

    The texts are cut at line ends into about `1 / fraction` stretches. The stretches with the lowest hashes are held
    out, at least one if there are two. The stretches between them are joined to documents of at most `longest`
    characters.
    """
    length = max(int(sum(map(len, texts)) * fraction), SHORTEST_STRETCH)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in cut(text, length)]
    count = max(min(max(round(fraction * len(pieces)), 1), len(pieces) - 1), 0)
    apart = sorted(sorted(range(len(pieces)), key=lambda index: text_hash(pieces[index][1]))[:count])
    training = []
    for (number, is_apart), run in groupby(enumerate(pieces), key=lambda item: (item[1][0], item[0] in apart)):
        joined = "".join(piece for _, (_, piece) in run)
        if not is_apart:
            training += [(number, text) for text in cut(joined, longest)]
    return training, [pieces[index] for index in apart]


def cut_out(parts: Sequence[Part], marks: Path, config: CorpusConfig) -> tuple[list[Part], list[list[Any]]]:
    """The parts of a source of few documents, marked anew, and one more part with the stretches of its documents.

    Also rows of what the stretches count: (source, language, licence, mark, documents, characters).

    There are fewer than `FEW` documents of at most `config.maximum_characters`, so all of them are in memory.

    Args:
        parts: of the source, with their marks.
        marks: the folder of the marks.
    """
    documents = [document for part in parts for document, _ in document_files.read_part(part)]
    texts = [document["text"] for document in documents]
    training, held_out = held_out_stretches(texts, config.held_out_fraction, config.maximum_characters)
    pieces = [(documents[number], text, USED) for number, text in training]
    pieces += [(documents[number], text, APART) for number, text in held_out]
    key = storage.hash_json([parts[0].source, [text_hash(text) for _, text, _ in pieces]])[:32]
    marked = _write_shared_marks(marks, f"stretches-{parts[0].source}", [np.array([mark for *_, mark in pieces])])
    part = replace(parts[0], key=key, marked=marked[0])
    with Writer(part.path) as writer:
        for whole, text, _ in pieces:
            row = whole | {"text": text, "hash": text_hash(text)}
            writer.write(*(row[column] for column in COLUMNS))
    rows = [[part.source, whole["language"], whole["licence"], mark, 1, len(text)] for whole, text, mark in pieces]
    old = [part.marks() for part in parts]
    new = [np.where((own == USED) | (own == APART), STRETCHES, own) for own in old]
    places = _write_shared_marks(marks, f"cut-{parts[0].source}", new)
    return [*(replace(whole, marked=place) for whole, place in zip(parts, places, strict=True)), part], rows


def _write_shared_marks(folder: Path, name: str, marks: list[np.ndarray]) -> list[tuple[str, int, int]]:
    """Write marks as one file, and say where each of them is in it."""
    document_files.write_marks(folder / f"{name}.npy", np.concatenate(marks))
    ends = np.cumsum([0, *map(len, marks)]).tolist()
    return [(f"{folder.name}/{name}.npy", *ends[number : number + 2]) for number in range(len(marks))]
