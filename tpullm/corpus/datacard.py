"""The data card for programs, `datacard.json`: what the corpus is made of, in numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tpullm import __version__
from tpullm.corpus import domains
from tpullm.corpus.datacard_counts import Counts
from tpullm.corpus.document_files import HELD_OUT, TRAIN
from tpullm.corpus.files.source_files import Found, name_of
from tpullm.recipe.schema import Recipe, Source

NAMES = 20  # of files, listed at most


def numbers(sources: Sequence[Source], counts: Counts, files: dict[str, Found], recipe: Recipe) -> dict[str, Any]:
    """The numbers of the card.

    Args:
        sources: the sources, in the recipe's order.
        counts: of documents that are kept and that were dropped.
        files: by source name, which files were read and which were skipped.
        recipe: its seed, and the settings of collect.
    """
    total = sum(count for (*_, what), count in counts.kept.items() if what == "characters")
    kinds = sorted({key[:3] for key in counts.kept})
    rows = [_row(kind, counts, total) for source in sources for kind in kinds if kind[0] == source.name]
    return {
        "tpullm": __version__,
        "seed": recipe.seed,
        "held_out_fraction": recipe.corpus.held_out_fraction,
        "documents": sum(row["documents"] for row in rows),
        "characters": total,
        "training_characters": {source.name: counts.characters(source.name, TRAIN) for source in sources},
        "rows": rows,
        "by_licence": _shares(rows, "licence"),
        "by_language": _shares(rows, "language"),
        "dropped": {source.name: counts.reasons(source.name) for source in sources},
        "dropped_rows": _dropped_rows(sources, counts),
        "dropped_examples": {
            source.name: dict(sorted(counts.examples.get(source.name, {}).items())) for source in sources
        },
        "read_in_part": {
            source.name: _part(files[source.name], source) for source in sources if files[source.name].is_part
        },
        "packages": {source.name: _packages(source) for source in sources if source.kind in domains.SOURCES},
        "encodings": {name: dict(sorted(found.items())) for name, found in counts.encodings.items() if found},
        "tokens_of_others": {source.name: source.licence for source in sources if source.kind == "tokens"},
        "personal_data_replaced": dict(sorted((+counts.replaced).items())),
        "skipped_files": {
            source.name: {reason: names[:NAMES] for reason, names in files[source.name].skipped.items()}
            for source in sources
            if files[source.name].skipped
        },
    }


def _dropped_rows(sources: Sequence[Source], counts: Counts) -> list[dict[str, Any]]:
    """What was dropped by source, reason, language and licence; of files that were not read, the last two are empty."""
    return [
        {"source": source.name, "reason": reason, "language": language, "licence": licence, "documents": count}
        for source in sources
        for (name, reason, language, licence), count in sorted(counts.dropped.items())
        if name == source.name
    ]


def _packages(source: Source) -> list[dict[str, str]]:
    return [
        {"name": package.name, "version": package.version(), "licence": package.licence}
        for package in domains.packages(source.kind, source.path)
    ]


def _part(found: Found, source: Source) -> dict[str, Any]:
    return {
        "bytes": found.bytes_read,
        "of_bytes": found.bytes_there,
        "files": len(found.read),
        "of_files": found.files_there,
        "names": [name_of(file, source) for file in found.read][:NAMES],
    }


def _row(kind: tuple[str, str, str], counts: Counts, total: int) -> dict[str, Any]:
    """The counts of a source, language and licence."""

    def count(split: str, what: str) -> int:
        return counts.kept[(*kind, split, what)]

    source, language, licence = kind
    characters = count(TRAIN, "characters") + count(HELD_OUT, "characters")
    return {
        "source": source,
        "licence": licence,
        "language": language,
        "documents": count(TRAIN, "documents") + count(HELD_OUT, "documents"),
        "characters": characters,
        "share": characters / total,
        "training": count(TRAIN, "documents"),
        "held_out": count(HELD_OUT, "documents"),
    }


def _shares(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    shares: Counter = Counter()
    for row in rows:
        shares[row[key]] += row["share"]
    return dict(shares.most_common())
