"""The tasks of collect: worker processes read and filter one part of a source each. Tasks are independent.

A task writes two files, first its spool and then its result. A task whose result exists is finished, whichever process
ran it.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from tpullm import storage
from tpullm.corpus import dedup, filters, language_detection, readers
from tpullm.corpus.cutting import cut
from tpullm.corpus.document import Raw, Record
from tpullm.corpus.source_files import File
from tpullm.corpus.text_hashes import text_hash
from tpullm.process import parallel_parts
from tpullm.recipe.schema import CorpusConfig, Source

# Two workers take 0.2 s to start and import their modules. One process reads less text than this in about that time.
PARALLEL_BYTES = 3_000_000


@dataclass(frozen=True)
class Task:
    """A part of a source that one worker reads: some of its files, or all of a generated source.

    Args:
        source: the source.
        files: the files to read; none for `tenki`.
        bytes: about how many bytes are read.
        spool: the file of the texts that pass, one JSON string a line.
        result: the file of the result, for `load`.
        config: the settings of the filters.
        seed: of what is generated.
    """

    source: Source
    files: tuple[File, ...]
    bytes: int
    spool: Path
    result: Path
    config: CorpusConfig
    seed: int


@dataclass
class Result:
    """The result of a task.

    Args:
        records: one for each line of its spool.
        keys: exact keys of the same documents; none if the source keeps duplicates.
        signatures: MinHash signatures of the same documents; none if near duplicates are kept.
        dropped: how many documents were dropped, by reason.
        encodings: how many documents were read in an encoding other than UTF-8, by encoding.
    """

    records: list[Record] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    signatures: list[np.ndarray] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    encodings: Counter = field(default_factory=Counter)


def run_all(tasks: Sequence[Task], workers: int, finished: Callable[[], None]) -> None:
    """Run the tasks in `workers` processes (0: one for each core); `finished` is called after each."""
    parallel_parts.run_all("collect", run, tasks, [task.bytes for task in tasks], workers, PARALLEL_BYTES, finished)


def run(task: Task) -> None:
    """Read the files of a task, drop what should not be used, write the other texts to the spool, then the result."""
    with storage.atomic_file(task.spool) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as spool:
        result = _filtered(task, spool)
    with storage.atomic_file(task.result) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            hashes=np.array([bytes.fromhex(record.hash) for record in result.records], "V32"),
            characters=np.array([record.characters for record in result.records], np.int64),
            languages=np.array([record.language for record in result.records], "U"),
            held_out=np.array([record.held_out for record in result.records], bool),
            keys=np.array(result.keys, np.uint64),
            signatures=np.array(result.signatures, np.uint64),
            counts=np.array(json.dumps([result.dropped, result.encodings])),
        )


def load(task: Task) -> Result:
    """The result of a finished task."""
    with task.result.open("rb") as file, np.load(file) as arrays:
        found = {name: arrays[name].tolist() for name in ("hashes", "characters", "languages", "held_out")}
        found["hashes"] = [digest.hex() for digest in found["hashes"]]
        found["languages"] = map(sys.intern, found["languages"])  # else a copy for each document
        records = [Record(*values) for values in zip(*found.values(), strict=True)]
        counts = map(Counter, json.loads(str(arrays["counts"])))
        return Result(records, arrays["keys"].tolist(), list(arrays["signatures"]), *counts)


def _filtered(task: Task, spool: IO[str]) -> Result:
    result, source, taken = Result(), task.source, 0
    for raw, held_out in _raw_documents(task):
        reason, name = (raw.dropped, "") if raw.dropped else _judge(raw, task, held_out)
        if reason:
            result.dropped[reason] += 1
            continue
        if raw.encoding:
            result.encodings[raw.encoding] += 1
        for text in cut(raw.text, task.config.maximum_characters):
            spool.write(json.dumps(text) + "\n")
            result.records.append(Record(text_hash(text), len(text), name, held_out))
            _sign(result, text, task)
            taken += not held_out
        if source.documents and taken >= source.documents:
            break
    return result


def _raw_documents(task: Task) -> Iterator[tuple[Raw, bool]]:
    if task.source.kind == "tenki":
        yield from ((raw, False) for raw in readers.generate(task.source, task.seed))
    for file in task.files:
        yield from ((raw, file.held_out) for raw in readers.read(file, task.source))


def _judge(raw: Raw, task: Task, held_out: bool) -> tuple[str, str]:
    """Why a document is dropped ("" if it is kept), and its language. What the recipe holds out passes every filter."""
    source = task.source
    reason = filters.unreadable(raw.text)
    if not reason and source.filter and not held_out:
        expected = "code" if raw.language == "code" else source.language or raw.language
        reason = filters.unwanted(raw.text, expected, task.config)
    return reason, "" if reason else raw.language or source.language or language_detection.guess(raw.text)


def _sign(result: Result, text: str, task: Task) -> None:
    """Add the exact key and the signature of a text, by which duplicates are found."""
    if task.source.deduplicate:
        result.keys.append(dedup.exact_key(text))
        if task.config.near_duplicate_similarity < 1:
            result.signatures.append(dedup.signature(text))
