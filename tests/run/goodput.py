"""Kill a training at random moments, start it again at once, and compare its goodput with what `plan` expects.

    python -m tests.run.goodput --kills 20 --seconds 45

A process lives for a random time, exponential with the given mean. The plan is told what it can't know: the mean time
that there was between two kills, and the time of a restart. That is measured in another training, which is killed once
after every few kills of this one: other work on the machine makes the restarts of both longer.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
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
    # At the tiny recipe's rate, hundreds of thousands of steps would diverge, roll back, and end.
    *("--pretrain.optimizer.peak_lr=1e-3", "--pretrain.optimizer.skip.deviations=0"),
)
LINES_OF_A_TRIAL, KILLS_OF_A_TRIAL = 20, 3


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


def trial(run: Path) -> None:
    """A start of the other training, which is killed when it has computed some steps."""
    begun, process = len(hours.read(run / "pretrain" / hours.FILE)), training(run)
    while len(hours.read(run / "pretrain" / hours.FILE)) < begun + LINES_OF_A_TRIAL:
        assert process.poll() is None
        time.sleep(0.1)
    end(process, signal.SIGKILL)


def restart_seconds(run: Path, starts: list[float]) -> float:
    """From a start until its first step is computed, the mean of all but the first.

    Args:
        starts: when each trial was begun, by the clock of `hours.jsonl`.
    """
    firsts: dict[float, dict] = {}
    for line in hours.read(run / "pretrain" / hours.FILE):
        firsts.setdefault(line["process"], line)
    kinds = ("compile", "restore", "data")
    begun = zip(starts[1:], list(firsts.values())[1:], strict=True)
    return statistics.fmean(
        line["process"] - start + sum(line["seconds"].get(kind, 0.0) for kind in kinds) for start, line in begun
    )


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
        moments, starts, elsewhere = random.Random(given.seed), [time.time()], 0.0
        trial(whole)
        for number in range(given.kills):
            process = training(run)
            time.sleep(moments.expovariate(1 / given.seconds))
            assert process.poll() is None, "it ended by itself"
            end(process, signal.SIGKILL)
            if number % KILLS_OF_A_TRIAL == 0:
                starts.append(time.time())
                trial(whole)
                elsewhere += time.time() - starts[-1]  # no process of this training was there
        restart = restart_seconds(whole, starts)
        process = training(run)
        time.sleep(given.seconds)
        end(process, signal.SIGTERM)
        lines = hours.read(run / "pretrain" / hours.FILE)
        total = sum(hours.summary(lines).values()) - elsewhere
        often = ["--topology", "local", "--interruptions", total / given.kills / 3600, "--restart", restart, "--json"]
        (plan,) = json.loads(output("plan", "--config", TINY, "--run", run, *SETTINGS, *often))["plans"]
    measured, planned = hours.summary(lines)["train"] / total, plan["run"]["goodput"]
    spent = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in hours.summary(lines).items() if seconds)
    print(
        f"{given.kills} kills in {total:.0f} s, {restart:.1f} s to start again; {spent}, {elsewhere:.1f} s of it else"
    )
    print(f"measured {measured:.1%}, planned {planned:.1%}, {100 * (measured - planned):+.1f} points")
    return int(abs(measured - planned) > 0.03)


if __name__ == "__main__":
    sys.exit(main())
