"""A source of few documents has stretches of them held out, since one document may be most of its text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus import document_files, split
from tpullm.corpus.datacard_counts import Counts
from tpullm.corpus.document_files import APART, COLUMNS, STRETCHES, USED, Part, Writer
from tpullm.corpus.text_hashes import text_hash
from tpullm.recipe.schema import CorpusConfig


def cut_out(parts: Sequence[Part], marks: Path, config: CorpusConfig, counts: Counts) -> list[Part]:
    """The parts of a source of few documents, marked anew, and one more part with the stretches of its documents.

    There are fewer than `split.FEW` documents of at most `config.maximum_characters`, so all of them are in memory.

    Args:
        parts: of the source, with their marks.
        marks: the folder of the marks.
        counts: the stretches are counted here.
    """
    documents = [document for part in parts for document, _ in document_files.read_part(part)]
    training, held_out = split.stretches(
        [document["text"] for document in documents], config.held_out_fraction, config.maximum_characters
    )
    pieces = [(documents[number], text, USED) for number, text in training]
    pieces += [(documents[number], text, APART) for number, text in held_out]
    key = storage.hash_json([parts[0].source, [text_hash(text) for _, text, _ in pieces]])[:32]
    marked = _write_marks(marks, f"stretches-{parts[0].source}", [np.array([mark for *_, mark in pieces])])
    part = replace(parts[0], key=key, marked=marked[0])
    with Writer(part.path) as writer:
        for whole, text, mark in pieces:
            row = whole | {"text": text, "hash": text_hash(text)}
            writer.write(*(row[column] for column in COLUMNS))
            counts.add(part.source, whole["language"], whole["licence"], mark, 1, len(text))
    return [*_without(parts, marks), part]


def _without(parts: Sequence[Part], marks: Path) -> list[Part]:
    """The parts, of which the documents that are used or held out are marked as cut into stretches."""
    old = [part.marks() for part in parts]
    new = [np.where((own == USED) | (own == APART), STRETCHES, own) for own in old]
    marked = _write_marks(marks, f"cut-{parts[0].source}", new)
    return [replace(part, marked=place) for part, place in zip(parts, marked, strict=True)]


def _write_marks(folder: Path, name: str, marks: list[np.ndarray]) -> list[tuple[str, int, int]]:
    """Write marks as one file, and say where each of them is in it."""
    document_files.write_marks(folder / f"{name}.npy", np.concatenate(marks))
    ends = np.cumsum([0, *map(len, marks)]).tolist()
    return [(f"{folder.name}/{name}.npy", *ends[number : number + 2]) for number in range(len(marks))]
