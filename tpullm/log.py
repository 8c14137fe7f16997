"""What the user sees while work goes on: lines and progress on stderr; stdout is for results only."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def console():
    """The rich console for messages (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


_name = ""  # what the lines of one of several processes begin with
_only_warns = False


def speak_as(name: str, only_warns: bool = False) -> None:
    """This process is one of several. Of hosts only the first speaks, each share speaks for itself."""
    global _name, _only_warns
    _name, _only_warns = name, only_warns


def say(message: str) -> None:
    """One line to the user."""
    if not _only_warns:
        console().print(_prefix() + message, markup=False)


def warn(message: str) -> None:
    """One line to the user about this very process."""
    console().print(_prefix() + message, markup=False)


def moment(seconds: float) -> str:
    """A time in three digits and the unit that suits, `57.5 ms`."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def last_words(message: str) -> None:
    """The line that a command ends with when it fails; without rich, since a thread may say it while all else hangs."""
    print(f"{_prefix()}tpullm: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _prefix() -> str:
    return f"[{_name}] " if _name else ""


@contextlib.contextmanager
def progress(description: str, total: float | None, unit: str) -> Iterator:
    """A progress bar with rate and time left; yields `advance(count)`. Silent without a terminal."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} " + unit),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    terminal = console()
    with Progress(*columns, console=terminal, transient=True, disable=_only_warns or not terminal.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count=1: bar.update(task, advance=count)


def track(items: Iterable[Item], description: str, total: float | None, unit: str) -> Iterator[Item]:
    """Yield `items` under a progress bar."""
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance(1)
