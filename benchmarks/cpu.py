"""The speed of tpullm on a CPU, compared with transformers on torch on the same CPU, in one run.

    make benchmark                                      everything, in about ten minutes on two cores
    python benchmarks/cpu.py --json                     the last line is the result, as JSON
    python benchmarks/cpu.py --only train --sizes 12M --rounds 3

Compared programs take turns, each in its own process, so that both sides of a ratio are from the same minutes. Training
(`train.py`): the real step of tpullm against four ways to train the peer. Decoding (`decode.py`): against `generate`.
Data (`data.py`) and start (`start.py`): tpullm alone. The programs are in `ours.py` and `peers.py`.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import signal
import sys

import data
import decode
import quickstart
import start
import tables
import train
from clock import Clock
from figures import machine, versions
from sizes import NEW_TOKENS, PROMPT_TOKENS, SIZES
from turns import WorkerError

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.system.process.allocator import ALLOCATOR

PARTS = ("train", "decode", "data", "start")
# The allocator that the command line starts with. The peer gets it too: it gains a tenth.
ENVIRONMENT = {"GLIBC_TUNABLES": ALLOCATOR, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/cpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, help="turns of each program that is compared (default: by size)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    parser.add_argument("--output", metavar="FILE", help="write the JSON there too; {python} is the Python's version")
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds: {arguments.rounds} is too few; use 1 or more")
    return arguments


def main(argv: list[str]) -> int:
    """Measure, print, and write if asked; returns 2 for a user error."""
    arguments = parse(argv)
    # SIGTERM ends it like Ctrl-C, and its programs too: one that kept running would disturb the next measurement.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = measure(arguments.only, arguments.sizes, arguments.rounds)
        if arguments.output:
            python = ".".join(results["versions"]["python"].split(".")[:2])
            path = storage.path(arguments.output.replace("{python}", python))
            storage.write_json(path, results)
            say(f"written: {path}")
    except UserError as error:
        return _fail(error, 2)
    except WorkerError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130)
    if arguments.json:
        print(json.dumps(results))
    else:
        tables.show(results)
    return 0


def measure(parts: list[str], sizes: list[str], rounds: int | None) -> dict:
    """The requested results: ratios, the figures behind them, the machine and the versions."""
    if {"train", "decode"} & set(parts):
        need_the_peer()
    clock, found = Clock(expected(parts, sizes)), {}
    with contextlib.ExitStack() as stack:
        # This is first, while the processor is as busy as it will be for the rest of the run.
        if "train" in parts:
            found["train"] = train.measure(sizes, rounds, ENVIRONMENT, clock)
        if "decode" in parts:
            found["decode"] = decode.measure(rounds, ENVIRONMENT, clock)
        if {"data", "start"} & set(parts):
            trained = stack.enter_context(quickstart.prepared())
        if "data" in parts:
            found["data"] = data.measure(trained, ENVIRONMENT, clock)
        if "start" in parts:
            found["start"] = start.measure(trained, clock)
    settings = {
        "environment": ENVIRONMENT,
        "sizes": {size: dataclasses.asdict(SIZES[size]) for size in sizes},
        "decode": {"prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS},
        "data": {name: {"tokens": tokens, "mean_length": mean} for name, (tokens, mean) in data.STORES.items()},
    }
    return {**ratios(found), **found, "versions": versions(), "machine": machine(), "settings": settings}


def need_the_peer() -> None:
    """`UserError` if torch or transformers is not installed."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; run `make benchmark`, which installs the extra `benchmark`")


def expected(parts: list[str], sizes: list[str]) -> dict[str, float]:
    """Seconds of each part, in order."""
    seconds = {f"train {size}": train.SECONDS[size] for size in sizes if "train" in parts}
    others = {"decode": decode.SECONDS, "data": data.SECONDS, "start": start.SECONDS}
    return seconds | {part: others[part] for part in PARTS if part in set(parts) & set(others)}


def ratios(found: dict) -> dict:
    """The figures by which tpullm is judged, by size or batch."""
    named = {}
    if "train" in found:
        named |= {key: {size: of[key] for size, of in found["train"]["sizes"].items()} for key in ("ratio", "mfu")}
    if "decode" in found:
        batches = found["decode"]["batches"].items()
        named["decode_ratio"] = {batch: of["ratio"] for batch, of in batches}
        named["decode_ratio_to_fastest"] = {batch: of["ratio_to_fastest"] for batch, of in batches}
    return named


def _fail(message: object, code: int) -> int:
    print(f"benchmarks/cpu.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
