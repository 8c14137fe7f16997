"""The data card: what the corpus is made of, in numbers (`datacard.json`) and for people (`datacard.md`).

`leaks.jsonl` beside it lists the questions of tasks that documents hold. A line of the file is one of them:

    task, question   the name of the task, and the number of the question in it, from 0
    asked, passage   the beginning of the question, and the first words of it that the document holds, folded
    share            of the passages of the question, those that the document holds
    source, file, record, url, hash   of the document
    use              train, held_out, or why the document was dropped
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tpullm import __version__
from tpullm.corpus import domains, question_windows, tasks
from tpullm.corpus.document import LEAKED, REASONS
from tpullm.corpus.document_files import APART, BEGINNING, COMPARED, EXAMPLES, HELD_OUT, MARKS, TRAIN, USED
from tpullm.corpus.files.source_files import Found, name_of
from tpullm.corpus.held_out import FEW
from tpullm.corpus.question_windows import CHARACTERS, WORDS, TaskQuestions
from tpullm.corpus.reduce import Group
from tpullm.corpus.repeated_lines import MOST
from tpullm.corpus.tasks import Task
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.system import storage

FILE = "leaks.jsonl"
NAMES = 20  # of files, listed at most


@dataclass
class Counts:
    """Counts over the whole corpus.

    Args:
        kept: by (source, language, licence), of what is used: `documents`, `characters`, documents for `training` and
            `held_out`, and `training_characters`.
        dropped: by (source, reason, language, licence).
        examples: of what was dropped, by source and reason: columns of `document_files.DROPPED_COLUMNS`.
        encodings: documents that were read in an encoding other than UTF-8, by source and encoding.
        replaced: pieces of personal data that were replaced, by source.
    """

    kept: defaultdict[tuple[str, str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    dropped: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    examples: defaultdict[str, dict[str, list[dict[str, str]]]] = field(default_factory=lambda: defaultdict(dict))
    encodings: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    replaced: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, language: str, licence: str, mark: int, documents: int, characters: int) -> None:
        """Add documents with one mark. What is beyond a limit was not asked for, so it is not counted."""
        if mark in (USED, APART):
            trained_on = {"training": documents, "training_characters": characters}
            own = trained_on if mark == USED else {"held_out": documents}
            self.kept[source, language, licence].update(documents=documents, characters=characters, **own)
        elif mark in COMPARED:
            self.dropped[source, MARKS[mark], language, licence] += documents

    def add_part(self, source: str, summary: Mapping[str, Any]) -> None:
        """Add what was dropped of a part before its documents were compared."""
        for reason, language, licence, count in summary["dropped"]:
            self.dropped[source, reason, language, licence] += count
        for reason, examples in summary["examples"].items():
            self._add_examples(source, reason, examples)
        self.encodings[source].update(summary["encodings"])
        self.replaced[source] += summary["replaced"]

    def add_files(self, source: str, skipped: Mapping[str, list[str]]) -> None:
        """Add the files of a source that were not read, by reason."""
        for reason, names in skipped.items():
            self.dropped[source, reason, "", ""] += len(names)

    def add_group(self, counted: Mapping[str, Any], few: Collection[str]) -> None:
        """Add what `repeated_lines.mark` counted. Documents of the sources in `few` are replaced by their stretches."""
        for source, language, licence, mark, documents, characters in counted["rows"]:
            if not (source in few and mark in (USED, APART)):
                self.add(source, language, licence, mark, documents, characters)
        for example in counted["examples"]:
            rest = {key: value for key, value in example.items() if key not in ("source", "mark")}
            self._add_examples(example["source"], MARKS[example["mark"]], [rest])

    def total(self, source: str, what: str) -> int:
        """How many of `what` a source has: see `kept`."""
        return sum(counts[what] for (name, *_), counts in self.kept.items() if name == source)

    def reasons(self, source: str) -> dict[str, int]:
        """How many documents of a source were dropped, by reason."""
        found: Counter[str] = Counter()
        for (name, reason, *_), count in self.dropped.items():
            if name == source:
                found[reason] += count
        return dict(sorted(found.items()))

    def _add_examples(self, source: str, reason: str, examples: list[dict[str, str]]) -> None:
        known = self.examples[source].setdefault(reason, [])
        known += examples[: EXAMPLES - len(known)]


def card_numbers(sources: Sequence[Source], counts: Counts, files: dict[str, Found], recipe: Recipe) -> dict[str, Any]:
    """The numbers of the card, by source in the recipe's order; `files` by source name."""
    total = sum(own["characters"] for own in counts.kept.values())
    rows = [
        {"source": name, "licence": licence, "language": language}
        | {"documents": own["documents"], "characters": own["characters"], "share": own["characters"] / total}
        | {"training": own["training"], "held_out": own["held_out"]}
        for source in sources
        for (name, language, licence), own in sorted(counts.kept.items())
        if name == source.name
    ]
    return {
        "tpullm": __version__,
        "seed": recipe.seed,
        "held_out_fraction": recipe.corpus.held_out_fraction,
        "documents": sum(row["documents"] for row in rows),
        "characters": total,
        "training_characters": {source.name: counts.total(source.name, "training_characters") for source in sources},
        "rows": rows,
        "by_licence": _shares_by_key(rows, "licence"),
        "by_language": _shares_by_key(rows, "language"),
        "dropped": {source.name: counts.reasons(source.name) for source in sources},
        "dropped_rows": [  # of files that were not read, language and licence are empty
            {"source": source.name, "reason": reason, "language": language, "licence": licence, "documents": count}
            for source in sources
            for (name, reason, language, licence), count in sorted(counts.dropped.items())
            if name == source.name
        ],
        "dropped_examples": {source.name: dict(sorted(counts.examples[source.name].items())) for source in sources},
        "read_in_part": {
            source.name: {
                "bytes": found.bytes_read,
                "of_bytes": found.bytes_there,
                "files": len(found.read),
                "of_files": found.files_there,
                "names": [name_of(file, source) for file in found.read][:NAMES],
            }
            for source in sources
            if (found := files[source.name]).is_part
        },
        "packages": {
            source.name: [
                {"name": package.name, "version": package.version(), "licence": package.licence}
                for package in domains.packages(source.kind, source.path)
            ]
            for source in sources
            if source.kind in domains.SOURCES
        },
        "encodings": {name: dict(sorted(found.items())) for name, found in counts.encodings.items() if found},
        "tokens_of_others": {source.name: source.licence for source in sources if source.kind == "tokens"},
        "personal_data_replaced": dict(sorted((+counts.replaced).items())),
        "skipped_files": {
            source.name: {reason: names[:NAMES] for reason, names in files[source.name].skipped.items()}
            for source in sources
            if files[source.name].skipped
        },
    }


def _shares_by_key(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    shares: Counter = Counter()
    for row in rows:
        shares[row[key]] += row["share"]
    return dict(shares.most_common())


def markdown(card: dict[str, Any], config: CorpusConfig) -> str:
    """The text of `datacard.md`."""
    loader = PackageLoader("tpullm.corpus", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": _card_cell, "quoted": _beginning_as_code}
    environment.globals |= {"words": WORDS, "characters": CHARACTERS, "most_repeated": MOST, "few": FEW}
    template = environment.get_template("datacard.md.jinja")
    return template.render(card=card, config=config, reasons=REASONS, leaks_file=FILE) + "\n"


def _card_cell(value: Any) -> str:
    """A number or a text in a table."""
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _beginning_as_code(text: str) -> str:
    """The beginning of a text in one line, as code, so that nothing in it is Markdown."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`" if text.strip() else "no text"


def write_leaks(
    documents: Path, planned: Sequence[Task], groups: Sequence[Group], few: set[str], all_: Sequence[TaskQuestions]
) -> dict[str, dict[str, Any]]:
    """Write `leaks.jsonl`, and return the counts of each task by its name.

    Args:
        documents: the folder.
        planned: the tasks of collect.
        groups: of their parts, which are marked.
        few: the sources whose documents are cut into stretches, some of which are held out: they count as trained on.
        all_: the questions, in the order of the windows.

    Returns:
        of each task its `version`; `questions`, and `too_short`, those that cannot be looked for; `found`, those in
        documents that are trained on; `trained_on` and `dropped`, documents that hold some.
    """
    found, holding = set(), set()
    with storage.atomic_file(documents / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for leak in _leaks_in(planned, groups, few):
            task, question, use = leak["task"], leak["question"], leak["use"]
            holding.add((task, use, leak["hash"]))
            if use == TRAIN:
                found.add((task, question))
            asked = all_[task].questions[question].texts[0][:BEGINNING]
            file.write(json.dumps(leak | {"task": all_[task].name, "asked": asked}, ensure_ascii=False) + "\n")
    windows = next((task.windows for task in planned if task.windows), None)
    totals = question_windows.load(windows).totals.tolist() if windows else []
    return {
        task.name: {
            "version": task.version,
            "questions": len(task.questions),
            "too_short": sum(own == number and count == 0 for own, _, count in totals),
            "found": sum(own == number for own, _ in found),
            "trained_on": sum((own, use) == (number, TRAIN) for own, use, _ in holding),
            "dropped": sum((own, use) == (number, LEAKED) for own, use, _ in holding),
        }
        for number, task in enumerate(all_)
    }


def leak_lines(card: dict[str, Any]) -> list[str]:
    """A line for each task: how much of it the corpus holds.

    Args:
        card: the numbers of the data card.
    """
    return [
        f"{name}: {task['found']:,} of {task['questions']:,} questions are in {task['trained_on']:,} documents to "
        f"train on; {task['dropped']:,} documents were dropped for them, {task['too_short']:,} questions are too short "
        f"to look for; see {FILE}"
        for name, task in card.get("leaks", {}).get("tasks", {}).items()
    ]


def found_in_training(documents: Path, task: str) -> set[int]:
    """The numbers of the questions of a task that documents hold which are trained on."""
    with (documents / FILE).open(encoding="utf-8") as file:
        lines = map(json.loads, file)
        return {line["question"] for line in lines if line["task"] == task and line["use"] == TRAIN}


def _leaks_in(planned: Sequence[Task], groups: Sequence[Group], few: set[str]) -> Iterator[dict[str, Any]]:
    """The leaks of all parts in their order, each with its source and what became of its document."""
    of_parts = {task.part.key: task for task in planned}
    for group in groups:
        with group.marks.open("rb") as file:
            marks = np.load(file)
        for one, own in group.split(marks):
            for leak in tasks.part_summary(of_parts[one.part.key])["leaks"]:
                row = leak.pop("row")
                use = LEAKED if row == tasks.DROPPED else MARKS[own[row]]
                if use == HELD_OUT and one.source.name in few:  # it is cut into stretches, and some are trained on
                    use = TRAIN
                yield leak | {"source": one.source.name, "use": use}
