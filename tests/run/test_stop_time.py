"""How long a stop takes: from SIGTERM to the end of all processes, with steps of about 3 s that a processor computes.

    pytest tests/run/test_stop_time.py -m slow -s

The signal comes at a random moment within a step, to a random host. Then the step that is computed ends, it is saved,
and the processes exit. A step that sleeps in a callback would not do: a CPU then computes it when it is dispatched, and
hears no signal meanwhile.
"""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.training.several_hosts import finish, start
from tpullm.formats.models import steps

ROWS = 384  # of a batch; 128 took 0.9 to 1.5 s on two busy cores
# The tiny model's step takes 0.4 s on some machines, and after a step of less than a second two are in flight.
LARGER = ("--model.layers=4", "--model.width=128", "--model.heads=4")
TRIES = 5
SECONDS_TO_EXIT = 10.0  # the programs and threads of a process, on a busy machine


def lines(path: Path) -> list[dict]:
    """Of a log that may not be there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stop(run: Path, hosts: int, moments: random.Random) -> tuple[float, float, float, float]:
    """Train until two steps of this process have ended, then stop at a random moment of the next.

    Returns:
        Seconds of a step, from the signal to the end of the step, from there to the end of the save, and from there to
        the end of the last process.
    """
    stage = run / "pretrain"
    often = ["--pretrain.log_every=1", "--pretrain.evaluate_every=0", "--pretrain.checkpoint.every_steps=0"]
    words = [f"--pretrain.batch_size={ROWS}", "--pretrain.steps=200", f"--mesh.fsdp={hosts}", *LARGER, *often]
    before = len(lines(stage / "metrics.jsonl"))
    started = start(hosts, "tpullm", "pretrain", "--run", run, *words, devices=hosts)
    while len(log := lines(stage / "metrics.jsonl")) < before + 3:
        assert started[0].poll() is None, finish(started)
        time.sleep(0.02)
    time.sleep(moments.uniform(0, log[-1]["step_seconds"]))
    began = time.time()
    moments.choice(started).send_signal(signal.SIGTERM)
    ended, now = finish(started), time.time()
    assert [code for code, _, _ in ended] == [130] * hosts, ended
    step = max(line["step_seconds"] for line in lines(stage / "metrics.jsonl")[before + 1 :])
    last, saved = lines(stage / "hours.jsonl")[-2:]
    assert last["step"] == saved["step"] == steps(stage / "checkpoints")[-1]
    return step, last["ended"] - began, saved["ended"] - last["ended"], now - saved["ended"]


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 4])
def test_from_the_signal_to_the_end_is_one_step_and_the_save(tiny_tokens, hosts):
    moments = random.Random(hosts)
    for number in range(TRIES):
        step, left, save, end = stop(tiny_tokens, hosts, moments)
        print(
            f"{hosts} host(s), try {number}: {left + save + end:.2f} s from the signal to the end: {left:.2f} s of a "
            f"step of {step:.2f} s, {save:.2f} s for the save, {end:.2f} s to exit"
        )
        assert left <= step + 0.5 and end < SECONDS_TO_EXIT
