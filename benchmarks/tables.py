"""The results as tables: on stdout, and the table in docs/en/speed.md from recorded results.

`python benchmarks/tables.py benchmarks/results/*.json` prints that table, in Markdown.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from figures import OURS
from rich.console import Console
from rich.table import Table


def show(results: dict) -> None:
    """Print a table of every part that was measured."""
    console = Console()
    for part, made in (("train", training), ("decode", decoding), ("data", data), ("start", start)):
        if part in results:
            console.print(made(results[part]))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    machine = results["machine"]
    flags = " ".join(machine["flags"])
    console.print(f"{versions}\n{machine['cores']} cores of {machine['cpu']} ({flags}), {machine['memory_gib']} GiB")


def training(found: dict) -> Table:
    """Tokens a second by program, a column for each size; the ratio and its spread over the rounds; MFU."""
    sizes = found["sizes"]
    table = _table("Training, tokens/s", *sizes)
    for name in _programs(sizes):
        table.add_row(name, *(_median(of["tokens_per_second"].get(name)) for of in sizes.values()))
    table.add_section()
    _add_ratio(table, "ratio to the best of torch", sizes)
    table.add_row("MFU", *(f"{of['mfu']:.0%}" for of in sizes.values()))
    table.caption = f"MFU: of {found['peak']['flops'] / 1e9:,.0f} GFLOP/s in bfloat16, as measured"
    return table


def decoding(found: dict) -> Table:
    """Tokens a second by program, a column for each batch; the ratios."""
    batches = found["batches"]
    table = _table(f"Decoding with {found['size']}, tokens/s", *(f"batch {batch}" for batch in batches))
    for name in _programs(batches):
        table.add_row(name, *(_median(of["tokens_per_second"].get(name)) for of in batches.values()))
    table.add_section()
    _add_ratio(table, "ratio to generate", batches)
    table.add_row("ratio to the fastest", *(f"{of['ratio_to_fastest']:.2f}" for of in batches.values()))
    return table


def data(found: dict) -> Table:
    """Millions of tokens a second by store, a column for each way of reading."""
    ways = list(next(iter(found["tokens_per_second"].values())))
    table = _table("Data, million tokens/s in one process", *ways)
    for store, of in found["tokens_per_second"].items():
        table.add_row(store, *(f"{of[way]['median'] / 1e6:.1f}" for way in ways))
    table.caption = f"training waits {found['wait_share']:.2%} of its time for data"
    return table


def start(found: dict) -> Table:
    """Seconds to the first step."""
    table = _table("Start of `tpullm pretrain`, seconds to the end of its first step", "median", "spread")
    table.add_row("first, with an empty cache", f"{found['first']:.1f}", "")
    table.add_row("second", f"{found['second']['median']:.1f}", _spread(found["second"], 1))
    table.add_row("going on from a save", f"{found['resumed']['median']:.1f}", _spread(found["resumed"], 1))
    return table


def markdown(recorded: Sequence[dict]) -> str:
    """The table in docs/en/speed.md: a column for each result of a whole run."""
    heads = [f"Python {of['versions']['python']}, JAX {of['versions']['jax']}" for of in recorded]
    rows = [_rows(of) for of in recorded]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    lines += [f"| {what} | {' | '.join(row[what] for row in rows)} |" for what in rows[0]]
    return "\n".join(lines)


def _rows(results: dict) -> dict[str, str]:
    rows = {}
    for size, of in results["train"]["sizes"].items():
        rows[f"training, {size}"] = _against(of)
    rows |= {f"of the processor's peak, {size}": f"{mfu:.0%}" for size, mfu in results["mfu"].items()}
    for batch, of in results["decode"]["batches"].items():
        fastest = f"; {of['ratio_to_fastest']:.2f} times the fastest, {of['fastest_peer']}"
        rows[f"decoding, batch {batch}"] = _against(of) + fastest
    slowest = min(of["batches"]["median"] for of in results["data"]["tokens_per_second"].values())
    rows["reading data"] = f"{slowest / 1e6:.0f} M tokens/s; training waits {results['data']['wait_share']:.1%}"
    first, second = results["start"]["first"], results["start"]["second"]["median"]
    rows["first step after, first / second start"] = f"{first:.1f} s / {second:.1f} s"
    return rows


def _against(of: dict) -> str:
    """`36,000 tokens/s, 1.50 times torch bf16`."""
    return f"{_median(of['tokens_per_second'][OURS])} tokens/s, **{of['ratio']:.2f}** times {of['best_peer']}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _programs(found: dict) -> list[str]:
    return list(dict.fromkeys(name for of in found.values() for name in of["tokens_per_second"]))


def _add_ratio(table: Table, name: str, found: dict) -> None:
    table.add_row(name, *(f"{of['ratio']:.2f}" for of in found.values()))
    table.add_row("  by round", *(_spread(of["ratio_by_round"], 2) for of in found.values()))


def _median(summary: dict | None) -> str:
    return f"{summary['median']:,.0f}" if summary else "failed"


def _spread(summary: dict, digits: int) -> str:
    return f"{summary['min']:,.{digits}f} to {summary['max']:,.{digits}f}"


if __name__ == "__main__":
    print(markdown([json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]))
