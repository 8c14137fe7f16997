"""Step 1: raw sources → clean, licensed, deduplicated documents and a data card.

    plan      the files of the sources, in parts
    read      an engine (`system/process/parts.py`) reads and filters the parts (`tasks.py`); then it finds copies and
              repeated lines over the whole corpus, by hashes and a range of them each (`reduce.py`,
              `repeated_lines.py`, `near_copies.py`)
    finish    one process adds up what all found, and writes the list of the parts and the data card

The result is the same, byte for byte, for any engine and number of workers. A part that is there is not made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpullm.corpus import (
    datacard,
    document_files,
    held_out,
    near_copies,
    question_windows,
    reduce,
    repeated_lines,
    tasks,
    told,
)
from tpullm.corpus import sources as corpus_sources
from tpullm.corpus.datacard import Counts
from tpullm.corpus.document import BAD, NOT_READ
from tpullm.corpus.document_files import Part
from tpullm.corpus.files import opened, readers, source_files
from tpullm.corpus.files.source_files import Found
from tpullm.corpus.question_windows import TaskQuestions
from tpullm.corpus.reduce import Placed
from tpullm.corpus.tasks import Task
from tpullm.recipe import fields
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.run import manifest
from tpullm.run.unfinished import Unfinished
from tpullm.system import log, storage
from tpullm.system.errors import UserError
from tpullm.system.process.parts import Engine

TENKI_BYTES = 300  # generating one document takes about as long as reading this many bytes
# Two workers take 0.2 s to start and import their modules. One process reads less text than this in about that time,
# and compares documents with less in their entries.
PARALLEL_BYTES, PARALLEL_ENTRY_BYTES = 3_000_000, 100_000_000


def inputs(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of the documents, for the manifest: the slice of the recipe, and hashes of what is read.

    The weights of the sources are no inputs: they change no document.
    """
    found = corpus_sources.sources(recipe)
    corpus_sources.check(found)
    sources = [{key: value for key, value in vars(source).items() if key != "weight"} for source in found]
    config = fields.result(recipe.corpus) | {"sources": sources}
    if any(source.kind == "tenki" for source in found):
        config["seed"] = recipe.seed
    upstream = corpus_sources.upstream(found)
    lists = [*recipe.corpus.opted_out, recipe.corpus.classifier.good, recipe.corpus.classifier.bad]
    if any(lists):
        upstream["lists"] = corpus_sources.hashes_at(*lists)
    if recipe.corpus.leaks.tasks:
        upstream["leaks"] = corpus_sources.hashes_at(*recipe.corpus.leaks.tasks)
    return config, upstream


@dataclass(frozen=True)
class Plan:
    """The tasks of a corpus.

    Args:
        sources: the sources of the recipe, and the user's own text.
        tasks: the tasks of all sources, in the order of the sources.
        files: by source name, which of its files are read and which are not.
        documents: the folder of the documents.
        folder: where the rounds leave what they find, until the documents are finished.
        marks: the folder of the marks, named by all that they depend on.
        questions: of the tasks that documents are searched for.
    """

    sources: list[Source]
    tasks: list[Task]
    files: dict[str, Found]
    documents: Path
    folder: Path
    marks: Path
    questions: Sequence[TaskQuestions] = ()


def plan(
    recipe: Recipe, depends_on: dict[str, Any], run: Path, work: Unfinished, questions: Sequence[TaskQuestions] = ()
) -> Plan:
    """The plan. Files from the web are downloaded first.

    Args:
        depends_on: the inputs of the documents, as the manifest has them.
        run: the run directory.
        questions: of the tasks of `corpus.leaks`.

    Raises:
        UserError: a source cannot be read.
    """
    found, downloads, documents = corpus_sources.sources(recipe), run / "downloads", run / "documents"
    planned: list[Task] = []
    files: dict[str, Found] = {}
    windows = question_windows.windows_of(questions) if questions else None
    identity = windows.identity if windows else ""
    for source in found:
        files[source.name] = source_files.find(source, downloads)
        generated = [((), source.documents * TENKI_BYTES)] if source.kind == "tenki" else []  # one part
        for group, size in [*generated, *source_files.parts(files[source.name].files)]:
            key = corpus_sources.part_key(source, group, recipe.corpus, recipe.seed, identity)
            part = Part(documents, key, source.name, source.licence)
            planned.append(Task(part, source, group, size, recipe.corpus, recipe.seed))
    keys = [task.part.key for task in planned]
    folder = work.folder(depends_on | {"code": corpus_sources.code_identity(), "files": keys})
    if windows:
        path = folder / f"windows-{identity}.npz"
        windows.save(path)
        planned = [replace(task, windows=path) for task in planned]
    marks = documents / "marks" / storage.hash_json([depends_on, keys])[:16]
    return Plan(found, planned, files, documents, folder, marks, questions)


def read(planned: Plan, config: CorpusConfig, engine: Engine) -> list[Placed]:
    """Read the files, then compare documents; the places of all parts. `UserError` if a source cannot be read."""
    files, sizes = [task.result for task in planned.tasks], [task.bytes for task in planned.tasks]
    engine.map("collect", tasks.run, planned.tasks, files, sizes, PARALLEL_BYTES)
    opened.close_child()  # the child that read for this process, if there was only this one
    storage.remove_unread_copies()
    for source in planned.sources:
        own = [tasks.part_summary(task) for task in planned.tasks if task.source is source]
        first = [line for summary in own for line in summary["bad"]]
        bad = sum(count for summary in own for reason, _, _, count in summary["dropped"] if reason in BAD)
        readers.check(source, bad, sum(summary["read"] for summary in own), first)
        if bad:
            log.say(f"documents: {source.name}: {bad:,} could not be read and were put aside, first {first[0]}")
    placed = reduce.placed_parts(planned.sources, planned.tasks, config)
    groups, ranges, line_ranges = reduce.divide(placed, planned.folder, planned.marks, config.repeated_lines)
    entries = [16 * reduce.ENTRIES * group.documents for group in groups]  # bytes
    lines = [16 * group.lines for group in groups]  # bytes of lines and their numbers of documents
    for title, function, items, left, sizes in (
        ("sort keys", reduce.scatter, groups, "entries", entries),
        ("compare", reduce.gather, ranges, "firsts", entries),
        ("pair", reduce.pair, groups, "needed", entries),
        ("count lines", repeated_lines.count, groups if line_ranges else [], "lines", lines),
        ("add up lines", repeated_lines.add_up, line_ranges, "repeated", lines),
        ("sketch", near_copies.sketch, groups if config.near_duplicates else [], "sketches", entries),
        ("mark", repeated_lines.mark, groups, "counts", entries),
    ):
        if items:
            costs = sizes if items is groups else [sum(sizes) // len(items)] * len(items)
            engine.map(title, function, items, [item.file(left) for item in items], costs, PARALLEL_ENTRY_BYTES)
    return placed


def finish(planned: Plan, placed: list[Placed], recipe: Recipe) -> dict[str, Any]:
    """Write which parts there are, and the data card; its numbers. `UserError` if no document of a source is left."""
    groups, *_ = reduce.divide(placed, planned.folder, planned.marks, recipe.corpus.repeated_lines)
    few = {one.source.name for one in placed if one.few}
    counts = Counts()
    for source in planned.sources:
        counts.add_files(source.name, planned.files[source.name].skipped)
    for task in planned.tasks:
        counts.add_part(task.source.name, tasks.part_summary(task))
    for group in groups:
        counts.add_group(storage.read_json(group.file("counts")), few)
    all_parts: list[Part] = []
    for source in planned.sources:
        own = [part for group in groups for part in group.marked() if part.source == source.name]
        if source.name in few and own:
            own, rows = held_out.cut_out(own, planned.marks, recipe.corpus)
            counts.add_group({"rows": rows, "examples": []}, few=())
        all_parts += own
        if source.kind == "tokens":
            continue
        dropped = counts.reasons(source.name)
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none, there was no text"
        name = f"corpus.sources: {source.name}"
        if not counts.total(source.name, "training"):
            advice = "give it more text, or set filter: false or a lower corpus.minimum_characters"
            summaries = (tasks.part_summary(task) for task in planned.tasks if task.source is source)
            if dropped and set(dropped) <= {NOT_READ, "not UTF-8", "broken encoding"}:
                advice = told.why_nothing(summaries) or "save it as UTF-8"
            elif set(dropped) == {"wrong language"}:
                advice = f"its language is said to be {source.language}; correct `language`, or set filter: false"
            elif set(dropped) == {"empty"}:
                advice = "nothing but white space is in it; name another file"
            raise UserError(f"{name}: no document left to train on (dropped: {reasons}); {advice}")
        if source.held_out and not counts.total(source.name, "held_out"):
            advice = "name another file, or leave it out to hold documents out by hash"
            raise UserError(f"{name}: no document left in held_out {source.held_out} (dropped: {reasons}); {advice}")
    card = datacard.card_numbers(planned.sources, counts, planned.files, recipe)
    (planned.documents / datacard.FILE).unlink(missing_ok=True)
    if planned.questions:
        found = datacard.write_leaks(planned.documents, planned.tasks, groups, few, planned.questions)
        card["leaks"] = {"drop": recipe.corpus.leaks.drop, "tasks": found}
    # The list of the parts and the card replace old ones. The stage is finished when the caller writes the manifest.
    (planned.documents / manifest.FILE).unlink(missing_ok=True)
    card["conversations"] = told.write_conversations(planned.documents, planned.tasks)
    document_files.write_parts(planned.documents, all_parts)
    storage.write_json(planned.documents / "datacard.json", card)
    storage.write_text(planned.documents / "datacard.md", datacard.markdown(card, recipe.corpus))
    return card


def remove_old(documents: Path) -> None:
    """Remove what a finished corpus does not use: parts and marks of earlier settings and files, half-written files."""
    used = document_files.parts(documents)
    # A corpus may have tokens of others alone: then these folders do not exist.
    parts, marks = list((documents / "parts").glob("*")), list((documents / "marks").glob("*"))
    for folder in (documents, documents / "parts", *marks):
        storage.remove_partials(folder)
    keys, used_marks = {part.key for part in used}, {Path(part.marked[0]).parent.name for part in used}
    for path in parts:
        if path.name.partition(".")[0] not in keys:
            path.unlink(missing_ok=True)
    for folder in marks:
        if folder.name not in used_marks:
            storage.remove_tree(folder)
