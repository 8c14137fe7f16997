"""Step 1: raw sources → clean, licensed, deduplicated documents and a data card.

Each file is read and filtered by itself, in worker processes, and what passes waits on the disk; then the whole is
looked at once, by hashes, for duplicates and held-out documents; then the documents are written in order. So the
result is the same, byte for byte, with any number of workers.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.config import CorpusConfig, Recipe, Source
from tpullm.corpus import datacard, selection, split, store
from tpullm.corpus import sources as corpus_sources
from tpullm.corpus.process import Result, Task, process_all
from tpullm.corpus.selection import Candidate
from tpullm.corpus.store import HELD_OUT, TRAIN
from tpullm.errors import UserError

TASK_BYTES = 2_000_000
TENKI_BYTES = 300  # about what one generated document costs, in bytes read


def inputs(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the documents depend on, for the manifest: the slice of the recipe, and hashes of what is read.

    Neither the weights nor the number of workers change a document.
    """
    found = corpus_sources.sources(recipe)
    corpus_sources.check(found)
    config = {
        "sources": [{key: value for key, value in vars(source).items() if key != "weight"} for source in found],
        **{key: value for key, value in vars(recipe.corpus).items() if key not in ("sources", "workers")},
    }
    if any(source.kind == "tenki" for source in found):
        config["seed"] = recipe.seed
    return config, corpus_sources.fingerprint(found)


def collect(recipe: Recipe, documents: Path, downloads: Path) -> dict[str, Any]:
    """Make the folder `documents` and return the numbers of its data card.

    Nothing is at `documents` until all is written. Raises `UserError` for sources that cannot be read, are not
    licensed, or have no document left.
    """
    config, found = recipe.corpus, corpus_sources.sources(recipe)
    corpus_sources.check(found)
    storage.remove_partials(documents.parent)
    with storage.atomic_directory(documents) as folder:
        spool = folder / ".spool"
        spool.mkdir()
        tasks, dropped = _plan(found, recipe, downloads, spool)
        results = process_all(tasks, config.workers)
        chosen = _select(found, tasks, results, config, dropped)
        counts: Counter = Counter()
        for source in found:
            own = [task for task in tasks if task.source is source]
            counts += _write(folder, source, own, chosen[source.name], config)
            _check_not_empty(source, counts, dropped[source.name])
        card = datacard.numbers(found, counts, dropped, config, recipe.seed)
        datacard.write(folder, card, config)
        shutil.rmtree(spool)
    return card


def _plan(found: list[Source], recipe: Recipe, downloads: Path, spool: Path) -> tuple[list[Task], dict[str, Counter]]:
    """The tasks of all sources in order, each of about `TASK_BYTES`, and what was dropped before reading."""
    tasks: list[Task] = []
    dropped: dict[str, Counter] = {}
    for source in found:
        files, dropped[source.name] = corpus_sources.files(source, downloads)
        groups = [((), source.documents * TENKI_BYTES)] if source.kind == "tenki" else _groups(files)
        for group, size in groups:
            path = spool / f"{len(tasks):06}.jsonl"
            tasks.append(Task(source, group, size, path, recipe.corpus, recipe.seed))
    return tasks, dropped


def _groups(files: list[corpus_sources.File]) -> Iterator[tuple[tuple[corpus_sources.File, ...], int]]:
    """Consecutive files of together at least `TASK_BYTES`, with their size."""
    group: list[corpus_sources.File] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.path.stat().st_size
        if size >= TASK_BYTES or file is files[-1]:
            yield tuple(group), size
            group, size = [], 0


def _select(
    found: list[Source], tasks: list[Task], results: list[Result], config: CorpusConfig, dropped: dict[str, Counter]
) -> dict[str, list[Candidate]]:
    """The candidates of each source, decided except for sources of few documents, which are cut as they are written."""
    everything = selection.candidates(tasks, results)
    chosen = {source.name: [one for one in everything if one.source == source.name] for source in found}
    for task, result in zip(tasks, results, strict=True):
        dropped[task.source.name] += result.dropped
    few = set()
    for source in found:
        own = chosen[source.name]
        selection.limit(own, source.documents)
        if selection.is_few(own, source, config):
            few.add(source.name)
        elif not source.held_out:
            selection.hold_out(own, config.held_out_fraction)
    for name, reasons in selection.drop_duplicates(
        everything, tasks, results, config.near_duplicate_similarity
    ).items():
        dropped[name] += reasons
    for source in found:
        if source.name not in few and config.held_out_fraction > 0:
            selection.hold_one_out(chosen[source.name])
    return chosen


def _write(folder: Path, source: Source, tasks: list[Task], own: list[Candidate], config: CorpusConfig) -> Counter:
    """Write the documents of one source; documents and characters by (source, language, split, what)."""
    documents: Iterator[tuple[str, str, str]] = _decided(tasks, own)
    if all(one.split != HELD_OUT for one in own) and config.held_out_fraction > 0:
        documents = _cut(list(documents), config)
    counts: Counter = Counter()
    with store.Writer(folder, source, TRAIN) as train, store.Writer(folder, source, HELD_OUT) as held_out:
        for text, name, which in documents:
            (train if which == TRAIN else held_out).write(text, name)
            counts[source.name, name, which, "documents"] += 1
            counts[source.name, name, which, "characters"] += len(text)
    return counts


def _decided(tasks: list[Task], own: list[Candidate]) -> Iterator[tuple[str, str, str]]:
    """Text, language and split of each document that is kept, from the spools."""
    position = 0
    for task in tasks:
        with open(task.spool, encoding="utf-8") as spool:
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
        raise UserError(
            f"corpus.sources: {source.name}: no document left to train on (dropped: {reasons}); give it more text, or "
            "set filter: false or a lower corpus.minimum_characters"
        )
    if source.held_out and HELD_OUT not in kept:
        raise UserError(
            f"corpus.sources: {source.name}: no document left in held_out {source.held_out} (dropped: {reasons}); "
            "name another file, or leave it out to hold documents out by hash"
        )
