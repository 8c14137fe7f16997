"""Step 1: raw sources → clean, licensed, deduplicated documents and a data card.

Each file is read and filtered by itself, in worker processes on any number of machines (`sharing.py`), and what passes
waits on the disk; then the whole is looked at once, by hashes, for duplicates and held-out documents; then the
documents are written in order. So the result is the same, byte for byte, with any number of workers and of shares.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.cluster.shares import SharedWork
from tpullm.corpus import (
    datacard,
    datacard_page,
    document_files,
    download,
    selection,
    source_files,
    source_hashes,
    split,
)
from tpullm.corpus import sources as corpus_sources
from tpullm.corpus.document_files import HELD_OUT, TRAIN
from tpullm.corpus.selection import Candidate
from tpullm.corpus.source_files import File, Found
from tpullm.corpus.tasks import Task, load, run_all
from tpullm.errors import UserError
from tpullm.recipe import changes
from tpullm.recipe.schema import CorpusConfig, Recipe, Source

TASK_BYTES = 2_000_000
TENKI_BYTES = 300  # about what one generated document costs, in bytes read


def inputs(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the documents depend on, for the manifest: the slice of the recipe, and hashes of what is read.

    The weights of the sources are left out: they change no document.
    """
    found = corpus_sources.sources(recipe)
    corpus_sources.check(found)
    sources = [{key: value for key, value in vars(source).items() if key != "weight"} for source in found]
    config = changes.result(recipe.corpus) | {"sources": sources}
    if any(source.kind == "tenki" for source in found):
        config["seed"] = recipe.seed
    return config, source_hashes.upstream(found)


@dataclass(frozen=True)
class Plan:
    """What there is to do for a corpus.

    Args:
        sources: of the recipe, and the user's own.
        tasks: of all sources, in their order.
        files: by source, what is read of its files and what is not.
    """

    sources: list[Source]
    tasks: list[Task]
    files: dict[str, Found]


def plan(recipe: Recipe, depends_on: dict[str, Any], downloads: Path, work: SharedWork) -> Plan:
    """What there is to do, the same for every share; files from the web are fetched first, by one of them.

    Args:
        depends_on: what the documents depend on, as the manifest says it.

    Raises `UserError` for sources that cannot be read, or that are others than another share's.
    """
    found = corpus_sources.sources(recipe)
    if not work.share.is_first:
        urls = [path for source in found for path in (source.path, source.held_out) if download.is_url(path)]
        work.wait_for_first("the downloads", lambda: all(download.place(url, downloads).exists() for url in urls))
    parts: list[tuple[Source, tuple[File, ...], int]] = []
    files: dict[str, Found] = {}
    for source in found:
        files[source.name] = source_files.find(source, downloads)
        parts += _parts(source, files[source.name].files)
    # The same text may lie in another place on another machine: not its path is compared, but its name and size.
    named = [(source.name, [file.path.name for file in group], size) for source, group, size in parts]
    folder = work.begin(depends_on | {"files": named})
    tasks = [
        Task(*part, folder / f"{number:06}.jsonl", folder / f"{number:06}.npz", recipe.corpus, recipe.seed)
        for number, part in enumerate(parts)
    ]
    return Plan(found, tasks, files)


def read(planned: Plan, workers: int, work: SharedWork, is_finished: Callable[[], bool]) -> None:
    """Do what is not done yet of this share's tasks; `UserError` for sources that cannot be read."""
    unfinished = work.unfinished([task.result for task in planned.tasks])
    if not is_finished():
        run_all([planned.tasks[number] for number in unfinished], workers, work.look_sometimes)


def write(planned: Plan, recipe: Recipe, documents: Path, work: SharedWork) -> dict[str, Any]:
    """Make the folder `documents` from what all shares have read, and return the numbers of its data card.

    Nothing is at `documents` until all is written. Raises `UserError` for a source that has no document left.
    """
    config, found, tasks = recipe.corpus, planned.sources, planned.tasks
    dropped = {
        name: Counter({reason: len(names) for reason, names in files.skipped.items()})
        for name, files in planned.files.items()
    }
    work.wait_for_parts([task.result for task in tasks])
    results = [load(task) for task in tasks]
    chosen = selection.select(found, tasks, results, config, dropped)
    storage.remove_partials(documents.parent)
    with storage.atomic_directory(documents) as folder:
        counts: Counter = Counter()
        for source in found:
            own = [task for task in tasks if task.source is source]
            counts += _write(folder, source, own, chosen[source.name], config)
            _check_not_empty(source, counts, dropped[source.name])
        encodings = {source.name: Counter() for source in found}
        for task, result in zip(tasks, results, strict=True):
            encodings[task.source.name] += result.encodings
        card = datacard.numbers(found, counts, dropped, planned.files, encodings, config, recipe.seed)
        storage.write_json(folder / "datacard.json", card)
        storage.write_text(folder / "datacard.md", datacard_page.markdown(card, config))
    return card


def _parts(source: Source, files: list[File]) -> Iterator[tuple[Source, tuple[File, ...], int]]:
    """The parts of a source, each of about `TASK_BYTES`, and their sizes; what is generated is one part."""
    groups = [((), source.documents * TENKI_BYTES)] if source.kind == "tenki" else _groups(files)
    for group, size in groups:
        yield source, group, size


def _groups(files: list[File]) -> Iterator[tuple[tuple[File, ...], int]]:
    """Consecutive files of together at least `TASK_BYTES`, with their size."""
    group: list[File] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.bytes
        if size >= TASK_BYTES or file is files[-1]:
            yield tuple(group), size
            group, size = [], 0


def _write(folder: Path, source: Source, tasks: list[Task], own: list[Candidate], config: CorpusConfig) -> Counter:
    """Write the documents of one source; documents and characters by (source, language, split, what)."""
    documents: Iterator[tuple[str, str, str]] = _decided(tasks, own)
    if all(one.split != HELD_OUT for one in own) and config.held_out_fraction > 0:
        documents = _cut(list(documents), config)
    counts: Counter = Counter()
    with (
        document_files.Writer(folder, source, TRAIN) as train,
        document_files.Writer(folder, source, HELD_OUT) as held_out,
    ):
        for text, name, which in documents:
            (train if which == TRAIN else held_out).write(text, name)
            counts[source.name, name, which, "documents"] += 1
            counts[source.name, name, which, "characters"] += len(text)
    return counts


def _decided(tasks: list[Task], own: list[Candidate]) -> Iterator[tuple[str, str, str]]:
    """Text, language and split of each document that is kept, from the spools."""
    position = 0
    for task in tasks:
        with task.spool.open(encoding="utf-8") as spool:
            for line in spool:
                candidate = own[position]
                position += 1
                if candidate.split:
                    yield json.loads(line), candidate.record.language, candidate.split


def _cut(documents: list[tuple[str, str, str]], config: CorpusConfig) -> Iterator[tuple[str, str, str]]:
    """A source of few documents: stretches of them are held out."""
    texts = [text for text, _, _ in documents]
    training, held_out = split.stretches(texts, config.held_out_fraction, config.maximum_characters)
    for which, pieces in ((TRAIN, training), (HELD_OUT, held_out)):
        for number, text in pieces:
            yield text, documents[number][1], which


def _check_not_empty(source: Source, counts: Counter, dropped: Counter) -> None:
    kept = {which for name, _, which, _ in counts if name == source.name}
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none, there was no text"
    if TRAIN not in kept:
        advice = "give it more text, or set filter: false or a lower corpus.minimum_characters"
        if set(dropped) <= {"not UTF-8", "broken encoding"} and dropped:
            advice = "convert it to UTF-8, for example: iconv -f GB18030 -t UTF-8 OLD.txt > NEW.txt"
        raise UserError(f"corpus.sources: {source.name}: no document left to train on (dropped: {reasons}); {advice}")
    if source.held_out and HELD_OUT not in kept:
        raise UserError(
            f"corpus.sources: {source.name}: no document left in held_out {source.held_out} (dropped: {reasons}); "
            "name another file, or leave it out to hold documents out by hash"
        )
