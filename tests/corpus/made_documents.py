"""Documents on the disk as `collect` leaves them, for tests of what reads them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpullm.corpus import document_files
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document_files import SPLITS, Part
from tpullm.recipe.schema import Source
from tpullm.system import storage


def write(documents: Path, texts: Sequence[tuple[Source, str, Sequence[str]]], per_part: int = 1000) -> list[Part]:
    """Write (source, split, texts) in parts of at most `per_part` documents, in order; each text is from a line."""
    parts = []
    for source, split, own in texts:
        for start in range(0, len(own), per_part):
            parts.append(_write_part(documents, source, split, own[start : start + per_part], len(parts), start))
    document_files.write_parts(documents, parts)
    training: Counter[str] = Counter()
    for source, split, own in texts:
        training[source.name] += sum(map(len, own)) * (split == document_files.TRAIN)
    storage.write_json(documents / "datacard.json", {"training_characters": training})
    return parts


def _write_part(documents: Path, source: Source, split: str, texts: Sequence[str], number: int, start: int) -> Part:
    marks = documents / "marks" / "made" / f"{number:06}.npy"
    place = (f"made/{marks.name}", 0, len(texts))
    part = Part(documents, f"{number:032x}", source.name, source.licence, place)
    with document_files.Writer(part.path) as writer:
        for row, text in enumerate(texts):
            writer.write(text, text_hash(text), source.language, "", "file", f"line {start + row + 1}", "", "")
    document_files.write_marks(marks, np.full(len(texts), SPLITS[split]))
    return part
