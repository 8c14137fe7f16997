"""How fast tpullm is on a CPU, against transformers on torch on the same CPU, in one run.

    make benchmark                                   everything, in ten minutes on two cores
    python benchmarks/cpu.py --json                  the last line is the result, as JSON
    python benchmarks/cpu.py --only train --sizes 12M --rounds 3

Every program lives in a process of its own and they take turns, so that a figure is always a ratio from the same
minutes. Training: `Size` by `Size`, the real step of tpullm against four ways to train the peer. Decoding: against
`generate`. Data and start: tpullm alone.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import train
from clock import Clock
from figures import machine, versions
from sizes import SIZES
from turns import WorkerError

from tpullm import storage
from tpullm.cli import ALLOCATOR
from tpullm.errors import UserError
from tpullm.log import say

PARTS = ("train",)
# The allocator that the command line starts with, for the peer too: it gains from it as well.
ENVIRONMENT = {"GLIBC_TUNABLES": ALLOCATOR, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def arguments_of(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/cpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, help="turns of each program (default: by size)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    parser.add_argument("--output", metavar="FILE", help="write the JSON there too; {python} is the Python's version")
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds: {arguments.rounds} is too few; use 1 or more")
    return arguments


def need_the_peer() -> None:
    """`UserError` if torch or transformers is not installed."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; run `make benchmark`, which installs the extra `benchmark`")


def measure(arguments: argparse.Namespace) -> dict:
    """All parts that were asked for; the ratios first."""
    expected = {f"train {size}": train.SECONDS[size] for size in arguments.sizes if "train" in arguments.only}
    clock, results, detail = Clock(expected), {}, {}
    if "train" in arguments.only:
        need_the_peer()
        detail["train"] = train.measure(arguments.sizes, arguments.rounds, ENVIRONMENT, clock)
        sizes = detail["train"]["sizes"]
        results |= {key: {size: of[key] for size, of in sizes.items()} for key in ("ratio", "mfu")}
    settings = {
        "environment": ENVIRONMENT,
        "sizes": {size: dataclasses.asdict(SIZES[size]) for size in arguments.sizes},
    }
    return results | detail | {"versions": versions(), "machine": machine(), "settings": settings}


def main(argv: list[str]) -> int:
    """Measure, print, and write if asked; 2 for what the user can correct."""
    arguments = arguments_of(argv)
    try:
        results = measure(arguments)
    except (UserError, WorkerError) as error:
        print(f"benchmarks/cpu.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    if arguments.output:
        python = ".".join(results["versions"]["python"].split(".")[:2])
        path = Path(arguments.output.replace("{python}", python))
        storage.write_json(path, results)
        say(f"written: {path}")
    if arguments.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
