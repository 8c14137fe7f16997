"""The tasks of collect: worker processes read and filter one part of a source each. Tasks are independent.

A task writes the files of its part (`document_files.py`), the summary last. A part whose summary exists is finished,
whichever process made it, and in whichever run of collect.
"""

import dataclasses
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tpullm.corpus import dedup, question_windows, tenki
from tpullm.corpus import held_out as split
from tpullm.corpus.characters import cut
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document import BAD, LEAKED, NOT_READ, NOT_UTF8, Raw
from tpullm.corpus.document_files import BEGINNING, DROPPED_COLUMNS, EXAMPLES, Part, Writer
from tpullm.corpus.files import readers
from tpullm.corpus.files.source_files import File, name_of
from tpullm.corpus.filters import verdicts
from tpullm.recipe.schema import CorpusConfig, Source
from tpullm.system import storage

TALKS = ".talks.jsonl"  # beside a part
DROPPED = -1  # in the place of the row of a document
# Records at the beginning of a file that are looked at, and how few say nothing. They are long as a rule if their
# median is so many times the least length: it is twice for quotations, less than once for the paragraphs of novels, and
# 14 times for the shortest pages of a manual.
LOOKED_AT, FEW, LONG_TIMES = 100, 10, 10


@dataclass(frozen=True)
class Task:
    """A part of a source that one worker reads: some of its files, or all of a generated source.

    Args:
        part: where its documents go.
        source: the source.
        files: the files to read; none for `tenki`.
        bytes: about how many bytes are read.
        config: the settings of the filters.
        seed: of what is generated.
        windows: the file of the windows of questions that documents are searched for; None if there are none.
    """

    part: Part
    source: Source
    files: tuple[File, ...]
    bytes: int
    config: CorpusConfig
    seed: int
    windows: Path | None = None

    @property
    def result(self) -> Path:
        """The summary of the part: the last file of the task."""
        return self.part.beside(".json")


class Fact(NamedTuple):
    """What is compared and summed over the whole corpus of a document.

    Args:
        id: the first 8 bytes of its hash.
        key: its exact key.
        signature: its MinHash signature, if it is compared with near copies.
        characters: the length of its text.
        kind: its language and licence.
        held_out: whether the recipe names it as held out.
        lines: its lines; none if it is not compared with others, by near copies or lines.
    """

    id: int
    key: int
    signature: np.ndarray | None
    characters: int
    kind: tuple[str, str]
    held_out: bool
    lines: np.ndarray


def _arrays_of_facts(facts: list[Fact]) -> dict[str, np.ndarray]:
    """The arrays of `KEY.npz`: a document's language and licence are a row of `kinds`."""
    kinds = sorted({fact.kind for fact in facts})
    places = {kind: place for place, kind in enumerate(kinds)}
    signed = [row for row, fact in enumerate(facts) if fact.signature is not None]
    return {
        "ids": np.array([fact.id for fact in facts], np.uint64),
        "keys": np.array([fact.key for fact in facts], np.uint64),
        "bands": dedup.bands([facts[row].signature for row in signed]),
        "signed": np.array(signed, np.int32),
        "characters": np.array([fact.characters for fact in facts], np.int32),
        "held_out": np.array([fact.held_out for fact in facts], bool),
        "kind": np.array([places[fact.kind] for fact in facts], np.int32),
        "kinds": np.array(json.dumps(kinds)),
        "lines": np.concatenate([np.zeros(0, dedup.LINE), *(fact.lines for fact in facts)]),
        "line_counts": np.array([len(fact.lines) for fact in facts], np.int32),
    }


class _PartMaker:
    """Sorts raw documents into what is kept of a part and what is dropped."""

    def __init__(self, task: Task, kept: Writer, dropped: Writer):
        self.task, self._kept, self._dropped = task, kept, dropped
        self.facts: list[Fact] = []
        self.encodings: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.bad: list[str] = []  # lines about the first of them
        self.leaks: list[dict[str, Any]] = []
        self.not_read: list[list[str]] = []  # names of files, and why
        self.noted: dict[str, str] = {}  # by file, what its reader chose
        self.talks: list[str] = []  # conversations to tune on, as lines of JSON
        self._windows = question_windows.load(task.windows) if task.windows else None
        self.read = self.bad_documents = self.replaced = 0

    def take(self, raw: Raw, name: str, held_out: bool, config: CorpusConfig) -> int:
        """Keep or drop a document, and say how many documents for training it gave.

        Args:
            raw: the document.
            name: of its file; "" if it is generated.
            held_out: whether the recipe holds out its file.
            config: the settings of the filters for its file.
        """
        self.read += 1
        verdict = verdicts.judge(raw, self.task.source, config, held_out)
        if verdict.reason:
            self._drop(raw, verdict.reason, raw.language or self.task.source.language, name)
            return 0
        if raw.noted:
            self.noted[name] = raw.noted
        if not held_out:
            self.talks += [json.dumps({"messages": talk}, ensure_ascii=False) for talk in raw.talks]
        if raw.encoding:
            self.encodings[raw.encoding] += 1
        self.replaced += verdict.replaced
        taken = 0
        for text in cut(verdict.text, self.task.config.maximum_characters):
            digest = text_hash(text)
            found = self._windows.find(text) if self._windows else []
            # What the recipe holds out is never trained on, so it stays.
            is_left_out = bool(found) and self.task.config.leaks.drop and not held_out
            row = DROPPED if is_left_out else len(self.facts)
            where = {"row": row, "file": name, "record": raw.record, "url": raw.url, "hash": digest}
            self.leaks += [leak._asdict() | where for leak in found]
            if is_left_out:
                self._drop(dataclasses.replace(raw, text=text), LEAKED, verdict.language, name)
                continue
            self._kept.write(text, digest, verdict.language, raw.licence, name, raw.record, raw.url, raw.date)
            self._note(text, digest, (verdict.language, raw.licence or self.task.source.licence), held_out)
            taken += 1
        return 0 if held_out else taken

    def _drop(self, raw: Raw, reason: str, language: str, name: str) -> None:
        source = self.task.source
        if reason in BAD:
            self.bad_documents += 1
            if len(self.bad) < readers.NAMED:
                self.bad.append(readers.described(Path(name), raw))
            if source.max_bad >= 1 or not source.max_bad:  # stop at once if this part alone has too many
                readers.check(source, self.bad_documents, self.read, self.bad)
        if reason in (NOT_READ, NOT_UTF8.dropped):
            self.not_read.append([f"{name} {raw.record}".strip(), raw.problem or reason])
        licence, digest = raw.licence or source.licence, text_hash(raw.text) if raw.text else ""
        row = (reason, digest, language, licence, name, raw.record, raw.url, raw.text[:BEGINNING])
        self._dropped.write(*row)
        self.counts[reason, language, licence] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(dict(zip(DROPPED_COLUMNS[1:], row[1:], strict=True)))

    def _note(self, text: str, digest: str, kind: tuple[str, str], held_out: bool) -> None:
        source, config, number = self.task.source, self.task.config, int(digest[:16], 16)
        apart = held_out or number < split.held_out_bound(config.held_out_fraction)
        is_compared = source.deduplicate or apart
        signature = dedup.signature(text) if config.near_duplicates and is_compared else None
        lines = dedup.lines_of(text if is_compared and (config.near_duplicates or config.repeated_lines) else "")
        self.facts.append(Fact(number, dedup.exact_key(text), signature, len(text), kind, held_out, lines))

    def summary(self) -> dict[str, Any]:
        """What is written last: see `summary`."""
        free = [(fact.id, row) for row, fact in enumerate(self.facts) if not fact.held_out]
        return {
            "documents": len(self.facts),
            "lines": sum(len(fact.lines) for fact in self.facts),
            "held_out": sum(fact.held_out for fact in self.facts),
            "lowest": min(free, default=None),
            "dropped": [[*kind, count] for kind, count in sorted(self.counts.items())],
            "examples": self.examples,
            "encodings": dict(sorted(self.encodings.items())),
            "replaced": self.replaced,
            "read": self.read,
            "bad": self.bad,
            "leaks": self.leaks,
            "not_read": self.not_read,
            "noted": self.noted,
            "talks": len(self.talks),
        }


def run(task: Task) -> None:
    """Read the files of a task, drop what should not be used, and write the part."""
    dropped = task.part.beside(".dropped.parquet")
    with Writer(task.part.path) as kept, Writer(dropped, DROPPED_COLUMNS) as left_out:
        maker, taken = _PartMaker(task, kept, left_out), 0
        for document in _documents_of_task(task):
            taken += maker.take(*document)
            if task.source.documents and taken >= task.source.documents:
                break
    with storage.atomic_file(task.part.beside(".npz")) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **_arrays_of_facts(maker.facts))
    if maker.talks:
        storage.write_text(task.part.beside(TALKS), "\n".join(maker.talks) + "\n")
    storage.write_json(task.result, maker.summary())


def part_summary(task: Task) -> dict[str, Any]:
    """The summary of a finished task.

    `documents`, `held_out` (those that the recipe names) and `lines` (that are compared) are counts, `lowest` the
    lowest id of the others with its row, `dropped` rows of (reason, language, licence, count), `examples` rows of what
    was dropped by reason, `encodings` counts of documents that are not UTF-8, `replaced` pieces of personal data,
    `not_read` rows of files that could not be read and why, `noted` what readers chose, by file, `talks` the number of
    conversations in the part's `TALKS`, `read` all documents, `bad` are lines about the first unreadable documents, and
    `leaks` the questions of tasks that were found: the fields of `question_windows.Leak`, and where; `row` is `DROPPED`
    if the document was.
    """
    return storage.read_json(task.result)


def arrays_of_part(part: Part, *names: str) -> list[np.ndarray]:
    """Some arrays of the facts of a finished part: see `_arrays_of_facts`."""
    with part.beside(".npz").open("rb") as file, np.load(file) as found:
        return [found[name] for name in names]


def _documents_of_task(task: Task) -> Iterator[tuple[Raw, str, bool, CorpusConfig]]:
    """Each document, the name of its file, whether that is held out, and the settings of the filters for it."""
    if task.source.kind == "tenki":
        texts = tenki.documents(task.source.documents, task.seed)
        yield from ((Raw(text, "ja"), "", False, task.config) for text in texts)
    for file in task.files:
        name, config = name_of(file, task.source), _settings_for_file(file, task)
        yield from ((raw, name, file.held_out, config) for raw in readers.read(file, task.source))


def _settings_for_file(file: File, task: Task) -> CorpusConfig:
    """The settings of the filters for a file: no least length if its records are short as a rule.

    A page of a few words is empty. A short paragraph of a novel, a quotation, or an utterance is not. All ranges of a
    file look at its beginning, so they decide alike.
    """
    if not task.source.filter or file.kind not in ("jsonl", "parquet"):
        return task.config
    beginning = readers.read(dataclasses.replace(file, start=0, stop=None, is_part=False), task.source)
    lengths = [len(raw.text.strip()) for raw in itertools.islice(beginning, LOOKED_AT) if not raw.dropped]
    least = task.config.minimum_characters
    if len(lengths) < FEW or statistics.median(lengths) >= LONG_TIMES * least:
        return task.config
    return dataclasses.replace(task.config, minimum_characters=0)
