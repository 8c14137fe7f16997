"""The data card: what the corpus is made of, in numbers (`datacard.json`) and for people (`datacard.md`).

`leaks.jsonl` beside it lists the questions of tasks that documents hold. A line of the file is one of them:

    task, question   the name of the task, and the number of the question in it, from 0
    asked, passage   the beginning of the question, and the first words of it that the document holds, folded
    share            of the passages of the question, those that the document holds
    source, file, record, url, hash   of the document
    use              train, held_out, or why the document was dropped
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpullm import __version__
from tpullm.corpus import domains, question_windows, tasks
from tpullm.corpus.datacard_counts import REASONS, Counts
from tpullm.corpus.document import LEAKED
from tpullm.corpus.document_files import BEGINNING, HELD_OUT, MARKS, TRAIN
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
        "dropped_rows": [  # of files that were not read, language and licence are empty
            {"source": source.name, "reason": reason, "language": language, "licence": licence, "documents": count}
            for source in sources
            for (name, reason, language, licence), count in sorted(counts.dropped.items())
            if name == source.name
        ],
        "dropped_examples": {source.name: counts.examples_of(source.name) for source in sources},
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


COLUMNS = {
    "source": "where the text comes from, as the recipe names it",
    "licence": "what allows its use",
    "language": "what it is written in (`code` is source code, `und` could not be told)",
    "documents": "how many separate texts",
    "characters": "how long they are together",
    "share": "of all characters; how often a source is read in training is set by its weight in the recipe",
    "training": "documents the model learns from",
    "held out": "documents kept away from training, to measure how well the model does on text it has not seen",
}


def markdown(card: dict[str, Any], config: CorpusConfig) -> str:
    """The text of `datacard.md`."""
    return "\n\n".join(_sections(card, config)) + "\n"


def _sections(card: dict[str, Any], config: CorpusConfig) -> Iterable[str]:
    yield "# Data card"
    yield (
        f"{card['documents']:,} documents with {card['characters']:,} characters. Anything trained on them should name "
        "their sources and licences: they are listed here."
    )
    header = ("source", "licence", "language", "documents", "characters", "share", "training", "held out")
    yield _table(header, [[_cell(key, row[key]) for key in row] for row in card["rows"]])
    yield "\n".join(f"- **{name}**: {meaning}." for name, meaning in COLUMNS.items())
    for key in ("licence", "language"):
        shares = card[f"by_{key}"].items()
        yield f"## Share by {key}"
        yield _table((key, "share"), [[name, _cell("share", share)] for name, share in shares])
    yield "## What was dropped, and why"
    yield from _dropped(card)
    yield from _leaks(card)
    yield from _files(card)
    yield "## How it was made"
    yield _how(card, config)


def _dropped(card: dict[str, Any]) -> Iterable[str]:
    """What was dropped by source, reason, language and licence, and the beginnings of some of it."""
    rows = [
        [*(row[key] for key in ("source", "reason", "language", "licence")), f"{row['documents']:,}"]
        + [REASONS.get(row["reason"], "a file that this source does not read")]
        for row in card["dropped_rows"]
    ]
    header = ("source", "reason", "language", "licence", "documents", "meaning")
    yield _table(header, [[str(cell).replace("|", "\\|") for cell in row] for row in rows]) if rows else "Nothing."
    for source, reasons in card["dropped_examples"].items():
        for reason, examples in reasons.items():
            yield f"Of {source}, {reason}:"
            yield "\n".join(f"- {_place(example)}: {_quoted(example['beginning'])}" for example in examples)


def _leaks(card: dict[str, Any]) -> Iterable[str]:
    """How much of each task was found."""
    if "leaks" not in card:
        return
    yield "## Questions of tasks"
    header = ("task", "questions", "found in training text", "in documents", "documents dropped", "too short to find")
    keys = ("questions", "found", "trained_on", "dropped", "too_short")
    tasks = card["leaks"]["tasks"].items()
    yield _table(header, [[_cell("", name), *(_cell(key, task[key]) for key in keys)] for name, task in tasks])
    yield (
        f"A document holds a question if it holds {WORDS} words of it in a row, or {CHARACTERS} characters of "
        "Japanese; width, case, white space and punctuation do not count. Of a shorter question it must hold all. "
        f"`{FILE}` names the documents."
    )
    if card["tokens_of_others"]:
        yield "Tokens of others were not searched."


def _place(example: dict[str, str]) -> str:
    """Where a document is: its address, or its file and record."""
    return example["url"] or " ".join(filter(None, (example["file"], example["record"]))) or "no file"


def _quoted(text: str) -> str:
    """The beginning of a text in one line, as code, so that nothing in it is Markdown."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`" if text.strip() else "no text"


def _files(card: dict[str, Any]) -> Iterable[str]:
    """Which packages the text came with; which files were read in part, in another encoding, or not at all."""
    sections = {
        "Text that came with packages of PyPI": [
            f"{source}: `{package['name']}` {package['version']}. Licence: {package['licence']}"
            for source, packages in card["packages"].items()
            for package in packages
        ],
        "Tokens of others": [
            f"{source}: {licence}. They are read as they are; `tokens/manifest.json` counts them"
            for source, licence in card["tokens_of_others"].items()
        ],
        "Files that are not UTF-8": [
            f"{source}: {count:,} read as {name}"
            for source, found in card["encodings"].items()
            for name, count in found.items()
        ],
        "Personal data": [
            f"{source}: {count:,} mail addresses, phone numbers and IP addresses were replaced"
            for source, count in card["personal_data_replaced"].items()
        ],
        "What was read in part": [
            f"{source}: {part['bytes']:,} of {part['of_bytes']:,} bytes, from {part['files']:,} of "
            f"{part['of_files']:,} files, chosen by the hash of their names: {_listed(part['names'], part['files'])}"
            for source, part in card["read_in_part"].items()
        ],
        "Files that were not read": [
            f"{source}, {reason}: {_listed(names, card['dropped'][source][reason])}"
            for source, reasons in card["skipped_files"].items()
            for reason, names in reasons.items()
        ],
    }
    for title, lines in sections.items():
        if lines:
            yield f"## {title}"
            yield "\n".join(f"- {line}." for line in lines)


def _listed(names: list[str], count: int) -> str:
    shown = ", ".join(f"`{name}`" for name in names)
    return f"{shown} and {count - len(names):,} more" if count > len(names) else shown


def _how(card: dict[str, Any], config: CorpusConfig) -> str:
    lines = (
        f" A document was dropped if it had more than {MOST:.0%} of its characters in lines that stand in more than "
        f"{config.repeated_lines:,} documents (unless the recipe says `filter: false` or `deduplicate: false`)."
    )
    return (
        f"By tpullm {card['tpullm']}, seed {card['seed']}. Each source was read, its text extracted. What is "
        f"unreadable, shorter than {config.minimum_characters} characters, repetitive or in another language was "
        f"dropped (unless the recipe says `filter: false`); of exact {'and near ' if config.near_duplicates else ''}"
        "copies one was kept (unless it says `deduplicate: false`): where one is held out, that one. Texts longer than "
        f"{config.maximum_characters:,} characters were cut at a line's end."
        f"{lines if config.repeated_lines else ''}\n\n"
        f"Held out are the documents whose text has a SHA-256 in the lowest {config.held_out_fraction:.1%} of its "
        "range, or those that the recipe names. The choice does not depend on the order of the documents or on other "
        f"documents. A source of fewer than {FEW} documents is cut into stretches first, and those with the lowest "
        "SHA-256 are held out."
    )


def _cell(key: str, value: Any) -> str:
    if key == "share":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_leaks(
    documents: Path,
    planned: Sequence[Task],
    groups: Sequence[Group],
    few: Collection[str],
    all_: Sequence[TaskQuestions],
) -> dict[str, Any]:
    """Write `leaks.jsonl`, and return the counts of each task by its name.

    Args:
        documents: the folder.
        planned: the tasks of collect.
        groups: of their parts, which are marked.
        few: the sources whose documents are cut into stretches, some of which are held out: they count as trained on.
        all_: the questions, in the order of the windows.

    Returns:
        `drop`: whether documents were dropped. `tasks`: of each its `version`; `questions`, and `too_short`, those
        that cannot be looked for; `found`, those in documents that are trained on; `trained_on` and `dropped`,
        documents that hold some.
    """
    found: list[set[int]] = [set() for _ in all_]
    held: list[dict[str, set[str]]] = [{TRAIN: set(), LEAKED: set()} for _ in all_]
    with storage.atomic_file(documents / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for leak in _leaks_in(planned, groups, few):
            task, use = leak["task"], leak["use"]
            held[task].get(use, set()).add(leak["hash"])
            if use == TRAIN:
                found[task].add(leak["question"])
            asked = all_[task].questions[leak["question"]].texts[0][:BEGINNING]
            file.write(json.dumps(leak | {"task": all_[task].name, "asked": asked}, ensure_ascii=False) + "\n")
    windows = next((task.windows for task in planned if task.windows), None)
    totals = question_windows.load(windows).totals if windows else np.zeros((0, 3), np.int64)
    too_short = np.bincount(totals[totals[:, 2] == 0, 0], minlength=len(all_)).tolist()  # questions without a window
    return {
        "drop": planned[0].config.leaks.drop if planned else False,
        "tasks": {
            task.name: {
                "version": task.version,
                "questions": len(task.questions),
                "too_short": too_short[number],
                "found": len(found[number]),
                "trained_on": len(held[number][TRAIN]),
                "dropped": len(held[number][LEAKED]),
            }
            for number, task in enumerate(all_)
        },
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


def _leaks_in(planned: Sequence[Task], groups: Sequence[Group], few: Collection[str]) -> Iterator[dict[str, Any]]:
    """The leaks of all parts in their order, each with its source and what became of its document."""
    of_parts = {task.part.key: task for task in planned}
    for group in groups:
        summaries = {one.part.key: tasks.summary(of_parts[one.part.key])["leaks"] for one in group.placed}
        if not any(summaries.values()):
            continue
        with group.marks.open("rb") as file:
            marks = np.load(file)
        for one, own in group.split(marks):
            for leak in summaries[one.part.key]:
                row = leak.pop("row")
                use = LEAKED if row == tasks.DROPPED else MARKS[own[row]]
                if use == HELD_OUT and one.source.name in few:  # it is cut into stretches, and some are trained on
                    use = TRAIN
                yield leak | {"source": one.source.name, "use": use}
