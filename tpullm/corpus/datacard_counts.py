"""What the data card counts: documents and characters that are used or held out, and what was dropped, and why.

`REASONS` says what each reason means.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tpullm.corpus.document_files import APART, COMPARED, HELD_OUT, MARKS, STRETCHES, TRAIN, USED

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
    "lines of many documents": "mostly lines that stand in more than `corpus.repeated_lines` documents",
    "could not be read": "the extraction of its text failed, or took too long or too much memory",
    "broken record": "a record of its file that is not in the file's format",
    "too large": "larger than any page or record should be",
    "not a page": "an answer of a web server that is no HTML and no text",
    "no success": "an answer of a web server with an error or a redirection",
    "not Python": "a file of Python's library that Python cannot parse",
    "reserved": "its owner reserves its use in another way",
    "reserved (noai)": "its owner says in the page or in the server's answer that no AI may be trained on it",
    "reserved (noimageai)": "its owner says so of its images",
    "reserved (tdm-reservation)": "its owner reserves the rights of text and data mining",
    "licence not allowed": "a licence that is not in `corpus.licences`",
    "opted out by domain": "a domain that a file of `corpus.opted_out` lists",
    "opted out by URL": "an address that a file of `corpus.opted_out` lists",
    "opted out by hash": "a text whose hash a file of `corpus.opted_out` lists",
    "too few words": "fewer than 50 words (Gopher)",
    "too many words": "more than 100,000 words (Gopher)",
    "words too short": "they are shorter than words of its language, on average (Gopher)",
    "words too long": "they are longer than words of its language, on average (Gopher)",
    "too many # or …": "one for ten words, or more (Gopher)",
    "too few words of letters": "too many numbers and marks (Gopher)",
    "too few stop words": "without the commonest words of its language (Gopher)",
    "mostly bullet points": "more than nine of ten lines (Gopher)",
    "lines that are cut off": "more than three of ten lines end with an ellipsis (Gopher)",
    "repeated paragraphs": "paragraphs that are there twice (Gopher)",
    "repeated lines": "lines that are there twice (Gopher, FineWeb)",
    "repeated phrases": "the same runs of words again and again (Gopher)",
    "too few sentence ends": "hardly any line ends with a full stop (FineWeb)",
    "mostly short lines": "more than two of three lines have at most 30 characters (FineWeb)",
    "a list": "too many line ends for its words (FineWeb)",
    "too few sentences": "fewer than five (C4)",
    "lorem ipsum": "filler of a template (C4)",
    "a curly bracket": "code in the text (C4)",
    "too little Japanese": "fewer than half of its characters are Japanese",
    "too little hiragana": "as in a list of nouns",
    "mostly katakana": "as in a catalogue",
    "adult words": "full of words of a list",
    "advertising": "full of phrases of Japanese shops",
    "listed address": "an address of datatrove's lists: adult, gambling, malware",
    "questions of a task": "it holds a question of a task of `corpus.leaks.tasks`",
    "low score": "the classifier's score is below `corpus.classifier.threshold`",
}


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
        """Add what `repeated_lines.mark` counted. Documents of the sources in `few` are replaced by their stretches."""
        for source, language, licence, mark, documents, characters in counted["rows"]:
            cut = source in few and mark in _SPLITS
            self.add(source, language, licence, STRETCHES if cut else mark, documents, characters)
        for example in counted["examples"]:
            rest = {key: value for key, value in example.items() if key not in ("source", "mark")}
            self._add_examples(example["source"], MARKS[example["mark"]], [rest])

    def splits(self, source: str) -> set[str]:
        """The splits in which a source has documents."""
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
