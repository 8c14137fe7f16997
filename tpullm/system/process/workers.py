"""The parts of one stage, done by worker processes, and shared with other shares of the verb.

`run_all` does parts here: in worker processes that end with their parent process, however it ends, or, if there is
little to do, in this process. `Rounds` makes the parts of a round together with the other shares: each makes its own,
then waits for those of the others. A part of another share is known by the file that it leaves, so the folder of the
files is listed: every few seconds, and in a twentieth of the time at most.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from tpullm.system import log
from tpullm.system.cluster import shares
from tpullm.system.cluster.shares import SharedWork
from tpullm.system.process import cores


@contextlib.contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """An executor with `workers` processes; if the block raises, they are terminated at once."""
    # A fork of a process with threads (JAX, rich) may deadlock; the fork server has no threads.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as executor:
        try:
            yield executor
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _end_with_parent() -> None:
    """End this worker silently on Ctrl-C, and when its parent ends, even by kill -9.

    If the parent ignores Ctrl-C (in a shell's background), so do its workers.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    workers = min(workers or cores(), len(parts)) if sum(sizes) > parallel_bytes else 1
    if workers <= 1:
        for number, part in enumerate(parts):
            work(part)
            finished(number)
        return
    with pool(workers) as executor:
        futures = {executor.submit(work, part): number for number, part in enumerate(parts)}
        for future in as_completed(futures):
            future.result()
            finished(futures[future])


class Rounds:
    """The rounds of a stage; none is done once the stage is finished.

    Args:
        workers: processes of this share; 0 is one for each core.
        work: of all shares.
        is_finished: whether the stage is.
    """

    def __init__(self, workers: int, work: SharedWork, is_finished: Callable[[], bool]):
        self._workers, self._work, self._is_finished = workers, work, is_finished

    def do(self, title: str, work: Callable, items: Sequence, files: list[Path], sizes: list[int], few: int) -> None:
        """Call `work` with this share's items whose file is missing, then wait for the files of all shares.

        Args:
            title: of what is shown.
            files: what each item leaves, all in one folder.
            sizes: bytes of each item; if this share's are `few` together, one process does them.

        Raises:
            UserError: this share or another one failed.
        """
        share, self._files, self._sizes, self._missing = self._work.share, files, sizes, set(range(len(files)))
        self._look()  # before the question: share 0 removes the files of a finished stage
        if self._is_finished():
            return
        own = [part for part in share.of(range(len(files))) if part in self._missing]
        missing = sum(sizes[part] for part in self._missing)
        total = sum(sizes) if share.count > 1 else missing
        with log.progress(title, total, "bytes", total - missing, share.count > 1) as self._advance:
            given = [items[part] for part in own], [sizes[part] for part in own]
            run_all(work, *given, self._workers, few, lambda done: self._show_own(own[done]))
            self._work.wait(self._is_over)

    def _show_own(self, part: int) -> None:
        """Show that this share has made a part. Every few seconds, look for failures and parts of the others."""
        count, are_shared = self._made([part]), self._work.share.count > 1
        if are_shared and time.monotonic() > self._next_look:
            self._work.look()
            count += self._look()
        self._advance(count, self._how_many() if are_shared else "")

    def _is_over(self) -> bool:
        """Whether no part is missing, or the stage is finished: then share 0 has removed the files."""
        if self._missing:
            count, note = self._look(), self._how_many()
            if them := sorted({part % self._work.share.count for part in self._missing}):
                named = ", ".join(map(str, them[:20])) + ", ..." * (len(them) > 20)
                note = f"waits for {len(self._missing):,} of {len(self._files):,} parts, from share {named}"
            self._advance(count, note)
        return not self._missing or self._is_finished()

    def _look(self) -> int:
        """See which parts are there now; their bytes."""
        began = time.monotonic()
        there = shares.names(self._files[0].parent) if self._missing else set()
        count = self._made([part for part in self._missing if self._files[part].name in there])
        took = time.monotonic() - began
        # Of the time at most a twentieth goes into listing: on gs://, 100,000 objects take 10 s.
        self._next_look = began + took + max(shares.SECONDS_BETWEEN_LOOKS, 20 * took)
        return count

    def _made(self, parts: Collection[int]) -> int:
        """Parts are not missing any more; their bytes."""
        self._missing -= set(parts)
        return sum(self._sizes[part] for part in parts)

    def _how_many(self) -> str:
        return f"{len(self._files) - len(self._missing):,} of {len(self._files):,} parts"
