"""Rounds of work that all shares of a verb do together; a round ends when the work of all of them is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tpullm.cluster.shares import SharedWork
from tpullm.process.parallel_parts import run_all

Item = TypeVar("Item")


@dataclass(frozen=True)
class Rounds:
    """The rounds of one stage; nothing is done once the stage is finished.

    Args:
        workers: processes of each share; 0 is one for each core.
        work: the shares.
        is_finished: whether the stage is finished.
    """

    workers: int
    work: SharedWork
    is_finished: Callable[[], bool]

    def do(
        self,
        title: str,
        function: Callable[[Item], None],
        items: Sequence[Item],
        files: Sequence[Path],
        size: Callable[[Item], int],
        few: int,
    ) -> None:
        """Call `function` with this share's items whose file is missing, then wait for the files of all shares.

        Args:
            title: of the progress bar.
            function: makes the file of an item.
            items: of all shares.
            files: the file of each item, all in one folder.
            size: bytes of an item; it is asked for those alone that this share has to do.
            few: if these have no more bytes together, one process does them.
        """
        unfinished = [items[number] for number in self.work.unfinished(files)]
        if not self.is_finished():
            sizes = [size(item) for item in unfinished]
            run_all(title, function, unfinished, sizes, self.workers, few, self.work.look_sometimes)
            self.work.wait_for_parts(files, self.is_finished)
