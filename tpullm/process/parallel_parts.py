"""The parts of one stage, each done by a worker process or, if there is little to do, all by this process."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from typing import TypeVar

from tpullm.process.workers import pool

Part = TypeVar("Part")


def run_all(
    work: Callable[[Part], None],
    parts: Sequence[Part],
    sizes: Sequence[int],
    workers: int,
    parallel_bytes: int,
    finished: Callable[[int], None],
) -> None:
    """Call `work` with each of `parts`.

    Args:
        sizes: bytes of each part.
        workers: processes; 0 is one for each core.
        parallel_bytes: if all parts together are no larger, this process does them.
        finished: called here with the number of each part that is done.
    """
    workers = min(workers or os.cpu_count() or 1, len(parts)) if sum(sizes) > parallel_bytes else 1
    with contextlib.closing(_done(work, parts, workers)) as done:
        for number in done:
            finished(number)


def _done(work: Callable[[Part], None], parts: Sequence[Part], workers: int) -> Iterator[int]:
    """The number of each part, as soon as the part is done."""
    if workers <= 1:
        for number, part in enumerate(parts):
            work(part)
            yield number
        return
    with pool(workers) as executor:
        futures = {executor.submit(work, part): number for number, part in enumerate(parts)}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
