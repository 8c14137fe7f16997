"""The data card for programs, `datacard.json`: what the corpus is made of, in numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tpullm import __version__
from tpullm.corpus import domains
from tpullm.corpus.document_files import HELD_OUT, TRAIN
from tpullm.corpus.source_files import Found, name_of
from tpullm.recipe.schema import CorpusConfig, Source

REASONS = {
    "empty": "no text in it",
    "not UTF-8": "bytes that are no text in the expected encoding",
    "broken encoding": "text that was decoded wrongly before it came here",
    "too short": "shorter than `corpus.minimum_characters`",
    "too repetitive": "the same lines or phrases again and again",
    "wrong language": "in another language than the source says",
    "generated code or data": "source code with very long lines or hardly any letters",
    "other people's code": "libraries that lie in a folder of their own, such as node_modules",
    "a broken link, or no file": "a name in the folder that nothing can be read from",
    "exact duplicate": "the same text as another document",
    "near duplicate": "almost the same text as another document",
}


NAMES = 20  # of files, listed at most


def numbers(
    sources: Sequence[Source],
    counts: Counter,
    dropped: dict[str, Counter],
    files: dict[str, Found],
    encodings: dict[str, Counter],
    config: CorpusConfig,
    seed: int,
) -> dict[str, Any]:
    """The numbers of the card.

    Args:
        sources: the sources, in the recipe's order.
        counts: documents and characters by (source name, language, split, `documents` or `characters`).
        dropped: by source name, how many documents were dropped, by reason.
        files: by source name, which files were read and which were skipped.
        encodings: by source name, how many documents were read in an encoding other than UTF-8, by encoding.
        config: the settings of collect.
        seed: the seed of the recipe.
    """
    total = sum(count for (*_, what), count in counts.items() if what == "characters")
    rows = [
        _row(source, language, counts, total)
        for source in sources
        for language in sorted({key[1] for key in counts if key[0] == source.name})
    ]
    return {
        "tpullm": __version__,
        "seed": seed,
        "held_out_fraction": config.held_out_fraction,
        "documents": sum(row["documents"] for row in rows),
        "characters": total,
        "rows": rows,
        "by_licence": _shares(rows, "licence"),
        "by_language": _shares(rows, "language"),
        "dropped": {source.name: dict(sorted(dropped[source.name].items())) for source in sources},
        "read_in_part": {
            source.name: _part(files[source.name], source) for source in sources if files[source.name].is_part
        },
        "packages": {source.name: _packages(source) for source in sources if source.kind in domains.SOURCES},
        "encodings": {name: dict(found) for name, found in encodings.items() if found},
        "skipped_files": {
            source.name: {reason: names[:NAMES] for reason, names in files[source.name].skipped.items()}
            for source in sources
            if files[source.name].skipped
        },
    }


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


def _row(source: Source, language: str, counts: Counter, total: int) -> dict[str, Any]:
    def count(split: str, what: str) -> int:
        return counts[source.name, language, split, what]

    characters = count(TRAIN, "characters") + count(HELD_OUT, "characters")
    return {
        "source": source.name,
        "licence": source.licence,
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
