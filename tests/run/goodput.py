"""Kill a training at random moments, start it again at once, and compare its goodput with what `plan` expects.

    python -m tests.run.goodput --kills 20 --seconds 45

A process lives for a random time, exponential with the given mean. The plan is told what it can't know: the mean time
that there was between two kills, and the time of a restart, measured in some starts before. Mind that other work on the
machine makes restarts longer.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT, TINY
from tpullm.run import hours

SETTINGS = (
    *("--pretrain.steps=1000000", "--pretrain.evaluate_every=0", "--pretrain.log_every=5"),
    *("--pretrain.checkpoint.every_steps=0", "--pretrain.checkpoint.every_minutes=0.05"),
)
LINES_OF_A_TRIAL, TRIALS = 20, 3


def tpullm(*words: object) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen([sys.executable, "-m", "tpullm", *map(str, words)], cwd=ROOT, **pipes)


def output(*words: object) -> str:
    process = tpullm(*words)
    out, _ = process.communicate()
    assert process.returncode == 0, words
    return out


def training(run: Path) -> subprocess.Popen:
    return tpullm("pretrain", "--config", TINY, "--run", run, *SETTINGS)


def end(process: subprocess.Popen, number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate()


def restart_seconds(run: Path) -> float:
    """From a kill until the steps of the next process are computed; the mean of some."""
    for trial in range(1, TRIALS + 2):
        process = training(run)
        while len(hours.read(run / "pretrain" / hours.FILE)) < trial * LINES_OF_A_TRIAL:
            assert process.poll() is None
            time.sleep(0.1)
        end(process, signal.SIGKILL)
    lines = hours.read(run / "pretrain" / hours.FILE)
    first = [line for line in lines if line["process"] == lines[0]["process"]]
    return (_starting(lines) - _starting(first)) / TRIALS


def _starting(lines: list[dict]) -> float:
    spent = hours.summary(lines)
    return sum(spent[kind] for kind in ("start", "compile", "restore", "data"))


def main(arguments: list[str] | None = None) -> int:
    """1 if the measured goodput is more than 3 points away from the planned one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=45.0, help="mean time between two kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
        whole, run = Path(folder) / "whole", Path(folder) / "run"
        for verb in ("collect", "tokenize"):
            output(verb, "--config", TINY, "--run", whole)
        shutil.copytree(whole, run)
        restart = restart_seconds(whole)
        moments = random.Random(given.seed)
        for _ in range(given.kills):
            process = training(run)
            time.sleep(moments.expovariate(1 / given.seconds))
            end(process, signal.SIGKILL)
        process = training(run)
        time.sleep(given.seconds)
        end(process, signal.SIGTERM)
        lines = hours.read(run / "pretrain" / hours.FILE)
        total = sum(hours.summary(lines).values())
        often = ["--topology", "local", "--interruptions", total / given.kills / 3600, "--restart", restart, "--json"]
        (plan,) = json.loads(output("plan", "--config", TINY, "--run", run, *SETTINGS, *often))["plans"]
    measured, planned = hours.summary(lines)["train"] / total, plan["run"]["goodput"]
    print(f"{given.kills} kills in {total:.0f} s, {restart:.1f} s to start again: {hours.told(lines)}")
    print(f"measured {measured:.1%}, planned {planned:.1%}, {100 * (measured - planned):+.1f} points")
    return int(abs(measured - planned) > 0.03)


if __name__ == "__main__":
    sys.exit(main())
