"""Which documents of the whole corpus are duplicates and which are held out, decided by their hashes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tpullm.corpus import dedup, split
from tpullm.corpus.document import Record
from tpullm.corpus.document_files import HELD_OUT, TRAIN
from tpullm.corpus.tasks import Result, Task
from tpullm.recipe.schema import CorpusConfig, Source


@dataclass(slots=True)
class Candidate:
    """A document that passed the filters, and its split: `train`, `held_out`, or "" if it is dropped."""

    source: str
    record: Record
    split: str


def select(
    found: list[Source], tasks: list[Task], results: list[Result], config: CorpusConfig, dropped: dict[str, Counter]
) -> dict[str, list[Candidate]]:
    """The candidates of each source with their splits.

    A source of few documents is not split here: `collect` cuts it into stretches when it writes them.
    """
    everything = candidates(tasks, results)
    chosen = {source.name: [one for one in everything if one.source == source.name] for source in found}
    for task, result in zip(tasks, results, strict=True):
        dropped[task.source.name] += result.dropped
    few = set()
    for source in found:
        own = chosen[source.name]
        limit(own, source.documents)
        if is_few(own, source, config):
            few.add(source.name)
        elif not source.held_out:
            hold_out(own, config.held_out_fraction)
    for name, reasons in drop_duplicates(everything, tasks, results, config.near_duplicate_similarity).items():
        dropped[name] += reasons
    for source in found:
        if source.name not in few and not source.held_out and config.held_out_fraction > 0:
            hold_one_out(chosen[source.name])
    return chosen


def candidates(tasks: list[Task], results: list[Result]) -> list[Candidate]:
    """One candidate for each line of the spool files, in their order."""
    return [
        Candidate(task.source.name, record, HELD_OUT if record.held_out else TRAIN)
        for task, result in zip(tasks, results, strict=True)
        for record in result.records
    ]


def limit(own: list[Candidate], documents: int) -> None:
    """Keep the first `documents` of a source (0: all). Documents that the recipe holds out stay and do not count."""
    training = [candidate for candidate in own if candidate.split == TRAIN]
    for candidate in training[documents or len(training) :]:
        candidate.split = ""


def is_few(own: list[Candidate], source: Source, config: CorpusConfig) -> bool:
    """Whether the source has so few documents that stretches of them are held out (`split.stretches`)."""
    kept = sum(candidate.split == TRAIN for candidate in own)
    return not source.held_out and config.held_out_fraction > 0 and kept < split.FEW


def hold_out(own: list[Candidate], fraction: float) -> None:
    """Hold out the documents of a source whose hash is in the lowest `fraction`."""
    for candidate in own:
        if candidate.split == TRAIN and split.is_held_out(candidate.record.hash, fraction):
            candidate.split = HELD_OUT


def hold_one_out(own: list[Candidate]) -> None:
    """Hold out the document with the lowest hash if no document is held out yet."""
    training = [candidate for candidate in own if candidate.split == TRAIN]
    if len(training) > 1 and not any(candidate.split == HELD_OUT for candidate in own):
        for index in split.lowest([candidate.record.hash for candidate in training]):
            training[index].split = HELD_OUT


def drop_duplicates(
    all_candidates: list[Candidate], tasks: list[Task], results: list[Result], similarity: float
) -> dict[str, Counter]:
    """Drop duplicates over all sources, and count them by source and reason. Of two copies the held-out one is kept."""
    signed = [task.source.deduplicate for task, result in zip(tasks, results, strict=True) for _ in result.records]
    rows = [candidate for candidate, is_signed in zip(all_candidates, signed, strict=True) if is_signed]
    keys = _joined(result.keys for result in results)
    signatures = _joined(result.signatures for result in results)
    signatures_DP = np.stack(signatures) if signatures else np.zeros((len(keys), dedup.PERMUTATIONS), np.uint64)
    order = [index for which in (HELD_OUT, TRAIN) for index, row in enumerate(rows) if row.split == which]
    dropped: dict[str, Counter] = {}
    for index, reason in dedup.duplicates(keys, signatures_DP, similarity, order).items():
        if rows[index].record.held_out:  # the recipe holds it out by name, so all of it is evaluated
            continue
        rows[index].split = ""
        dropped.setdefault(rows[index].source, Counter())[reason] += 1
    return dropped


def _joined(lists: Iterable[list]) -> list:
    return [item for items in lists for item in items]
