"""The parts of a stage, made by an engine: processes of this machine (`workers.py`), or a Ray cluster (`ray_tasks.py`).

One process, the driver, owns the run directory: it plans, hands out the parts, and finishes the stage. A part is known
by the file that it leaves, which is there as a whole or not at all. So a driver that was killed makes what is missing
when its command is given again, with the same engine or another, and the result is the same bytes.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from tpullm.system import log, storage
from tpullm.system.process import cores, ray_tasks, workers

# Parts that an engine is given at a time, so that a million of them are not all in its memory. More than a cluster's
# cores: what waits has its place when another part ends.
IN_FLIGHT = 4096


class Engine:
    """Makes parts. A context manager: what the engine has started ends with the block.

    Args:
        kind: `processes` or `ray`; `UserError` if Ray is not installed.
        workers: most parts at a time; 0 is one a core of this machine, or of the cluster.
        run: the run directory. Every node of a cluster has to see it.
    """

    def __init__(self, kind: str, workers: int, run: Path):
        self._workers = workers
        self._cluster = ray_tasks.Cluster(run) if kind == "ray" else None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._cluster:
            self._cluster.leave()

    def map(
        self,
        title: str,
        function: Callable[[Any], None],
        parts: Sequence[Any],
        files: Sequence[Path],
        sizes: Sequence[int],
        few: int,
    ) -> None:
        """Call `function` with each part whose file is missing; raises what it raises.

        Args:
            title: of the bar, and of the tasks in Ray's dashboard.
            function: at the top of a module: it is called in other processes.
            parts: the parts; they are pickled.
            files: what each part leaves, all in one folder.
            sizes: bytes of each part.
            few: if the missing parts have no more bytes, this process makes them: starting others takes longer.
        """
        there = storage.names(files[0].parent) if files else set()
        missing = [number for number, file in enumerate(files) if file.name not in there]
        total, left = sum(sizes), sum(sizes[number] for number in missing)
        count = min(self._workers or (IN_FLIGHT if self._cluster else cores()), len(missing))
        is_here = left <= few or count <= 1
        # Taken from the end: in their order here, else the largest first, which would be waited for at the end.
        missing.sort(key=lambda number: (0 if is_here else sizes[number], -number))
        with contextlib.ExitStack() as closing:
            lines = self._cluster is not None
            advance = closing.enter_context(log.progress(title, total, "bytes", total - left, lines))
            submit, most = _call_here, 1
            if not is_here:
                own = self._cluster.tasks(title) if self._cluster else workers.pool(count)
                submit, most = closing.enter_context(own).submit, count if self._cluster else IN_FLIGHT
            running: dict[Future, int] = {}
            while missing or running:
                while missing and len(running) < most:
                    number = missing.pop()
                    running[submit(function, parts[number])] = number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    number = running.pop(future)
                    made = len(files) - len(missing) - len(running)
                    advance(sizes[number], f"{made:,} of {len(files):,} parts")


def _call_here(function: Callable[[Any], None], part: Any) -> Future:
    done: Future = Future()
    done.set_result(function(part))
    return done
