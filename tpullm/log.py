"""What the user sees during work: lines and progress bars on stderr; stdout is for results only."""

import contextlib
import sys
from collections.abc import Iterator


def console():
    """The rich console for messages (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


_name = ""  # begins each line of one of several processes
_only_warns = False


def speak_as(name: str, only_warns: bool = False) -> None:
    """Name this process, one of several. Every share logs all lines; of the hosts, the others only warn."""
    global _name, _only_warns
    _name, _only_warns = name, only_warns


def say(message: str) -> None:
    """Print one line to the user."""
    if not _only_warns:
        console().print(_prefix() + message, markup=False)


def warn(message: str) -> None:
    """Print one line about this process, also on a host that only warns."""
    console().print(_prefix() + message, markup=False)


def moment(seconds: float) -> str:
    """A time with three digits, in seconds or milliseconds: `57.5 ms`."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def one_line(text: str, most: int = 2_000) -> str:
    """`text` as one printable line of at most `most` characters: messages quote names and errors of other people."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= most else f"{line[:most]}…"


def last_words(message: str) -> None:
    """Print the one line with which a command fails; without rich, since a thread may print it while others hang."""
    print(f"{_prefix()}tpullm: {one_line(message)}", file=sys.stderr, flush=True)


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
