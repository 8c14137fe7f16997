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
            name, number = f"made/{len(parts):06}.npy", len(parts)
            some = own[start : start + per_part]
            part = Part(documents, f"{number:032x}", source.name, source.licence, (name, 0, len(some)))
            with document_files.Writer(part.path) as writer:
                for row, text in enumerate(some, start + 1):
                    writer.write(text, text_hash(text), source.language, "", "file", f"line {row}", "", "")
            document_files.write_marks(documents / "marks" / name, np.full(len(some), SPLITS[split]))
            parts.append(part)
    document_files.write_parts(documents, parts)
    training: Counter[str] = Counter()
    for source, split, own in texts:
        training[source.name] += sum(map(len, own)) * (split == document_files.TRAIN)
    storage.write_json(documents / "datacard.json", {"training_characters": training})
    return parts
