"""What the data card counts: documents and characters that are used or held out, and what was dropped, and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpullm.corpus.document_files import APART, COMPARED, HELD_OUT, MARKS, STRETCHES, TRAIN, USED

EXAMPLES = 10  # of documents that were dropped, for each source and reason
_SPLITS = {USED: TRAIN, APART: HELD_OUT}


@dataclass
class Counts:
    """Counts over the whole corpus.

    Args:
        kept: by (source, language, licence, split, `documents` or `characters`).
        dropped: by (source, reason, language, licence).
        examples: of what was dropped, by source and reason: columns of `document_files.DROPPED_COLUMNS`.
        encodings: documents that were read in an encoding other than UTF-8, by source and encoding.
        replaced: pieces of personal data that were replaced, by source.
    """

    kept: Counter[tuple[str, str, str, str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    examples: dict[str, dict[str, list[dict[str, str]]]] = field(default_factory=dict)
    encodings: dict[str, Counter[str]] = field(default_factory=dict)
    replaced: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, language: str, licence: str, mark: int, documents: int, characters: int) -> None:
        """Add documents with one mark. What is beyond a limit was not asked for, so it is not counted."""
        if mark in _SPLITS:
            self.kept[source, language, licence, _SPLITS[mark], "documents"] += documents
            self.kept[source, language, licence, _SPLITS[mark], "characters"] += characters
        elif mark in COMPARED:
            self.dropped[source, MARKS[mark], language, licence] += documents

    def add_part(self, source: str, summary: Mapping[str, Any]) -> None:
        """Add what was dropped of a part before its documents were compared."""
        for reason, language, licence, count in summary["dropped"]:
            self.dropped[source, reason, language, licence] += count
        for reason, examples in summary["examples"].items():
            self._add_examples(source, reason, examples)
        self.encodings.setdefault(source, Counter()).update(summary["encodings"])
        self.replaced[source] += summary["replaced"]

    def add_files(self, source: str, skipped: Mapping[str, list[str]]) -> None:
        """Add the files of a source that were not read, by reason."""
        for reason, names in skipped.items():
            self.dropped[source, reason, "", ""] += len(names)

    def add_group(self, counted: Mapping[str, Any], few: set[str]) -> None:
        """Add what `marking.mark` counted. The documents of the sources in `few` are replaced by their stretches."""
        for source, language, licence, mark, documents, characters in counted["rows"]:
            cut = source in few and mark in _SPLITS
            self.add(source, language, licence, STRETCHES if cut else mark, documents, characters)
        for example in counted["examples"]:
            rest = {key: value for key, value in example.items() if key not in ("source", "mark")}
            self._add_examples(example["source"], MARKS[example["mark"]], [rest])

    def splits(self, source: str) -> set[str]:
        """The splits of which a source has documents."""
        return {split for name, _, _, split, _ in self.kept if name == source}

    def characters(self, source: str, split: str) -> int:
        """How many characters a split of a source has."""
        wanted = (source, split, "characters")
        return sum(count for (name, _, _, *what), count in self.kept.items() if (name, *what) == wanted)

    def reasons(self, source: str) -> dict[str, int]:
        """How many documents of a source were dropped, by reason."""
        found: Counter[str] = Counter()
        for (name, reason, *_), count in self.dropped.items():
            if name == source:
                found[reason] += count
        return dict(sorted(found.items()))

    def examples_of(self, source: str) -> dict[str, list[dict[str, str]]]:
        """Examples of what was dropped of a source, by reason."""
        return dict(sorted(self.examples.get(source, {}).items()))

    def _add_examples(self, source: str, reason: str, examples: list[dict[str, str]]) -> None:
        known = self.examples.setdefault(source, {}).setdefault(reason, [])
        known += examples[: EXAMPLES - len(known)]
