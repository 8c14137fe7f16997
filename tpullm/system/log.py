"""What the user sees during work: lines and progress bars on stderr; stdout is for results only.

They are written in English, and shown in the language of the terminal (`language`).
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TextIO

from tpullm.system.language import spoken
from tpullm.system.words import size

SECONDS_TO_FIRST_LINE = 5.0
SECONDS_BETWEEN_LINES = 60.0


def console():
    """The rich console for messages (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


_name = ""  # begins each line of one of several processes
_only_warns = False


def speak_as(name: str, only_warns: bool = False) -> None:
    """Name this process, one of several; of the hosts of a training, all but host 0 only warn."""
    global _name, _only_warns
    _name, _only_warns = name, only_warns


def say(message: str) -> None:
    """Print one line to the user."""
    if not _only_warns:
        console().print(_process_prefix() + spoken(message), markup=False)


def warn(message: str) -> None:
    """Print one line about this process, also on a host that only warns."""
    console().print(_process_prefix() + spoken(message), markup=False)


def one_line(text: str, most: int = 2_000) -> str:
    """`text` as one printable line of at most `most` characters: messages quote names and errors of other people."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= most else f"{line[:most]}…"


def last_words(message: str, to: TextIO | None = None) -> None:
    """Print the one line with which a command fails; without rich, since a thread may print it while others hang.

    Args:
        to: default is stderr.
    """
    print(f"{_process_prefix()}tpullm: {one_line(spoken(message))}", file=to or sys.stderr, flush=True)


def _process_prefix() -> str:
    return f"[{_name}] " if _name else ""


@contextlib.contextmanager
def progress(
    description: str, total: float | None, unit: str, completed: float = 0, lines: bool = False
) -> Iterator[Callable]:
    """A progress bar with rate and time left; yields `advance(count, note)`. Silent without a terminal.

    Args:
        completed: how much is done already.
        lines: whether lines tell the same of bytes, where there is no terminal.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {spoken(unit)}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} " + spoken(unit)),
        Rate(),
        TimeElapsedColumn(),
        TextColumn(spoken("left")),
        TimeRemainingColumn(),
    )
    terminal = console()
    told, before, pause = time.monotonic(), completed, SECONDS_TO_FIRST_LINE
    with Progress(*columns, console=terminal, transient=True, disable=_only_warns or not terminal.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=completed)

        def advance(count: float = 1, note: str = "") -> None:
            nonlocal told, before, pause
            bar.update(task, advance=count, description=f"{description}: {note}" if note else description)
            seconds, done = time.monotonic() - told, bar.tasks[0].completed
            if not lines or terminal.is_terminal or seconds < pause:
                return
            rate = (done - before) / seconds  # since the last line: nodes come and go
            left = str(timedelta(seconds=round((total - done) / rate))) if rate else "-:--:--"
            share = done / total if total else 1.0
            say(f"{description}: {note}; {share:.0%} of {size(total)}, {size(rate)}/s, {left} left")
            told, before, pause = time.monotonic(), done, SECONDS_BETWEEN_LINES

        yield advance
