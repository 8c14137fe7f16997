"""Tables and bars in a terminal: `show` draws all tables of results, `aligned` gives the columns of a plan as text."""

import shutil
from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tpullm.system.language import spoken

COLUMNS = 120  # if the output is no terminal
WIDTH = 30  # of a bar


def show(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str] | None],
    right: Sequence[int] = (),
    folded: Sequence[int] = (),
    lines: str = "none",
    on: Console | None = None,
) -> None:
    """Print a table.

    Args:
        title, header: the name of the table and those of the columns, in English; no line of names if all are empty.
        rows: cells; None is a line between two parts.
        right: the columns whose cells stand at the right.
        folded: the columns whose cells are broken into lines if the table is too wide.
        lines: `none`, `head` (below the names), or `all`.
        on: default is stdout.
    """
    edges = {"none": None, "head": box.SIMPLE_HEAD, "all": box.HEAVY_HEAD}[lines]
    table = Table(title=escape(spoken(title)), title_justify="left", box=edges, show_header=any(header))
    table.pad_edge = lines == "all"
    for number, name in enumerate(header):
        justify = "right" if number in right else "left"
        table.add_column(escape(spoken(name)), justify=justify, overflow="fold", no_wrap=number not in folded)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(escape, row))
    (on or Console(highlight=False)).print(table)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first and the last one left-aligned, in the language that is spoken.

    If a row is wider than the terminal, each row's last cell goes to a line below.
    """
    rows = [[*map(spoken, row)] for row in rows]
    widths = [max(cell_len(row[n]) for row in rows) for n in range(len(rows[0]))]
    wide = sum(widths) + 2 * (len(widths) - 1) > shutil.get_terminal_size((COLUMNS, 0)).columns
    lines = []
    for *cells, last in rows:
        gaps = [" " * (widths[n] - cell_len(cell)) for n, cell in enumerate(cells)]
        told = "  ".join(gap + cell if n else cell + gap for n, (gap, cell) in enumerate(zip(gaps, cells, strict=True)))
        lines.append((told if wide else f"{told}  {last}").rstrip())
        lines += [f"    {last}"] if wide and last else []
    return "\n".join(lines)


def bar(share: float) -> str:
    """A bar, full at a share of 1 and never empty."""
    return "█" * round(min(share, 1.0) * WIDTH) or "▏"
