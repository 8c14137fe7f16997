"""The reduce of collect on made signatures: memory and time of each round, and what one process does alone.

    python benchmarks/reduce.py --documents 100000000 --folder /tmp/reduce

The folder needs 400 bytes a document. One document in forty is an exact copy of an earlier one, and one in forty
shares a band with one. Each round runs in this process, one task after the other, so the figures are of one core.
"""

import argparse
import json
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np

from tpullm.corpus import datacard_counts, dedup, document_files, reduce, repeated_lines
from tpullm.corpus.document_files import Part
from tpullm.corpus.tasks import Task
from tpullm.recipe.schema import CorpusConfig, Source
from tpullm.system import storage

PART_DOCUMENTS = 10_000
SOURCE = Source("made", "jsonl", licence="CC0-1.0")


def make(documents: Path, count: int) -> list[Task]:
    """Parts with made facts; their texts are empty, and one file serves all."""
    parts = [
        Part(documents, f"{number:032x}", SOURCE.name, SOURCE.licence) for number in range(count // PART_DOCUMENTS)
    ]
    with document_files.Writer(parts[0].path) as writer:
        for _ in range(PART_DOCUMENTS):
            writer.write("", "", "en", "", "", "", "", "")
    for number, part in enumerate(parts):
        if number:
            os.link(parts[0].path, part.path)
        _write_facts(part, number)
    return [Task(part, SOURCE, (), 0, CorpusConfig(), 0) for part in parts]


def _write_facts(part: Part, number: int) -> None:
    generator, size = np.random.default_rng(number), PART_DOCUMENTS
    keys, bands = _random(generator, size), _random(generator, size, dedup.BANDS)
    earlier = np.random.default_rng(generator.integers(number + 1))
    keys[1::20] = _random(earlier, size)[1::20]
    bands[2::20, 3] = _random(earlier, size, dedup.BANDS)[2::20, 3]
    ids = _random(generator, size)
    np.savez(
        part.beside(".npz"),
        ids=ids,
        keys=keys,
        bands=bands,
        signed=np.arange(size, dtype=np.int32),
        characters=np.full(size, 3000, np.int32),
        held_out=np.zeros(size, bool),
        kind=np.zeros(size, np.int32),
        kinds=np.array(json.dumps([["en", SOURCE.licence]])),
    )
    summary = {"documents": size, "held_out": 0, "dropped": [], "examples": {}, "encodings": {}}
    storage.write_json(part.beside(".json"), summary | {"lowest": [int(ids.min()), int(ids.argmin())]})


def _random(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.integers(0, 2**64, shape, dtype=np.uint64)


def main() -> None:
    """Make the parts, run the rounds, print a line of figures for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    documents = arguments.folder / "documents"
    shutil.rmtree(arguments.folder, ignore_errors=True)
    tasks = make(documents, arguments.documents)
    clock = Clock()
    placed = reduce.place([SOURCE], tasks, CorpusConfig())
    groups, ranges = reduce.divide(placed, arguments.folder / "work", documents / "marks" / "corpus")
    alone = clock.lap(f"plan: {len(groups)} groups, {len(ranges)} ranges")
    shared = 0.0
    for name, step, items in (
        ("scatter", reduce.scatter, groups),
        ("gather", reduce.gather, ranges),
        ("mark", repeated_lines.mark, groups),
    ):
        for item in items:
            step(item)
        shared += clock.lap(name)
    counts = datacard_counts.Counts()
    for group in groups:
        counts.add_group(storage.read_json(group.counts), set())
    document_files.write_parts(documents, [part for group in groups for part in group.marked()])
    alone += clock.lap("finish")
    print(f"copies: {counts.reasons(SOURCE.name)}")
    print(f"one process alone does {alone / (alone + shared):.2%} of the reduce")


class Clock:
    """Wall time and processor time of each step, and the most memory so far."""

    def __init__(self):
        self._wall, self._processor = time.monotonic(), time.process_time()

    def lap(self, what: str) -> float:
        """Print the figures of the step that ends here; its processor time in seconds."""
        wall, processor = time.monotonic(), time.process_time()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        used = processor - self._processor
        print(f"{what:40} {wall - self._wall:8.1f} s, processor {used:8.1f} s, at most {most:6.0f} MiB", flush=True)
        self._wall, self._processor = wall, processor
        return used


if __name__ == "__main__":
    main()
