"""Step 1: raw sources → clean, licensed, deduplicated documents and a data card.

Worker processes on any number of machines (`cluster/shares.py`) read and filter each file by itself, and store the
documents that pass in spool files. One process then finds duplicates and held-out documents over the whole corpus, by
hashes, and writes the documents in order. The result is the same, byte for byte, for any number of workers and shares.
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
    datacard_markdown,
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
TENKI_BYTES = 300  # generating one document takes about as long as reading this many bytes


def inputs(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of the documents, for the manifest: the slice of the recipe, and hashes of what is read.

    The weights of the sources are no inputs: they change no document.
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
    """The tasks of a corpus.

    Args:
        sources: the sources of the recipe, and the user's own text.
        tasks: the tasks of all sources, in the order of the sources.
        files: by source name, which of its files are read and which are not.
    """

    sources: list[Source]
    tasks: list[Task]
    files: dict[str, Found]


def plan(recipe: Recipe, depends_on: dict[str, Any], downloads: Path, work: SharedWork) -> Plan:
    """The plan, which is the same for every share. Share 0 downloads files first; the other shares wait for them.

    Args:
        depends_on: the hash of the inputs of the documents, as the manifest has it.

    Raises:
        UserError: a source cannot be read, or it differs from the source of another share.
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
    # Machines may keep the same text in different folders, so shares compare names and sizes, and no paths.
    named = [(source.name, [file.path.name for file in group], size) for source, group, size in parts]
    folder = work.begin(depends_on | {"files": named})
    tasks = [
        Task(*part, folder / f"{number:06}.jsonl", folder / f"{number:06}.npz", recipe.corpus, recipe.seed)
        for number, part in enumerate(parts)
    ]
    return Plan(found, tasks, files)


def read(planned: Plan, workers: int, work: SharedWork, is_finished: Callable[[], bool]) -> None:
    """Run this share's unfinished tasks; `UserError` if a source cannot be read."""
    unfinished = work.unfinished([task.result for task in planned.tasks])
    if not is_finished():
        run_all([planned.tasks[number] for number in unfinished], workers, work.look_sometimes)


def write(planned: Plan, recipe: Recipe, documents: Path, work: SharedWork) -> dict[str, Any]:
    """Write the folder `documents` from the results of all shares, and return the numbers of its data card.

    The folder appears when it is complete. Raises `UserError` if no document of a source is left.
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
            if source.kind != "tokens":
                _check_not_empty(source, counts, dropped[source.name])
        encodings = {source.name: Counter() for source in found}
        for task, result in zip(tasks, results, strict=True):
            encodings[task.source.name] += result.encodings
        card = datacard.numbers(found, counts, dropped, planned.files, encodings, config, recipe.seed)
        storage.write_json(folder / "datacard.json", card)
        storage.write_text(folder / "datacard.md", datacard_markdown.markdown(card, config))
    return card


def _parts(source: Source, files: list[File]) -> Iterator[tuple[Source, tuple[File, ...], int]]:
    """The parts of a source, each of about `TASK_BYTES`, and their sizes. A generated source is one part."""
    groups = [((), source.documents * TENKI_BYTES)] if source.kind == "tenki" else _groups(files)
    for group, size in groups:
        yield source, group, size


def _groups(files: list[File]) -> Iterator[tuple[tuple[File, ...], int]]:
    """Groups of consecutive files that hold at least `TASK_BYTES` together, and the size of each group."""
    group: list[File] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.bytes
        if size >= TASK_BYTES or file is files[-1]:
            yield tuple(group), size
            group, size = [], 0


def _write(folder: Path, source: Source, tasks: list[Task], own: list[Candidate], config: CorpusConfig) -> Counter:
    """Write the documents of one source, and count its documents and characters by (source, language, split, what)."""
    documents: Iterator[tuple[str, str, str]] = _decided(tasks, own)
    if not source.held_out and config.held_out_fraction > 0 and all(one.split != HELD_OUT for one in own):
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
    """Text, language and split of each document that is kept, from the spool files."""
    position = 0
    for task in tasks:
        with task.spool.open(encoding="utf-8") as spool:
            for line in spool:
                candidate = own[position]
                position += 1
                if candidate.split:
                    yield json.loads(line), candidate.record.language, candidate.split


def _cut(documents: list[tuple[str, str, str]], config: CorpusConfig) -> Iterator[tuple[str, str, str]]:
    """Text, language and split of the documents of a source that has few: stretches of them are held out."""
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
