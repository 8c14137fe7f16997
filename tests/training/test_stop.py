"""A stop is heard at once, and waits for no more than the step that is computed."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from tpullm.cli.main import main
from tpullm.formats.models import steps
from tpullm.training import loop
from tpullm.training.meter import Meter

SECONDS = 1.5  # of a slow step


class Slow:
    """An array of a step that a device needs `SECONDS` for; it does one step after the other."""

    free = 0.0

    def __init__(self, array):
        self._array, began = array, max(Slow.free, time.monotonic())
        Slow.free = self._ends = began + SECONDS

    def is_ready(self):
        """Whether the step is done."""
        return time.monotonic() >= self._ends


@pytest.fixture
def slow(monkeypatch):
    """Steps that take long on the device and no time on the host; how many were dispatched, and when the stop came."""
    seen, dispatched = SimpleNamespace(steps=0, asked=0.0), Meter.dispatched

    def slowly(self, step, values):
        seen.steps = step
        dispatched(self, step, values | {"loss": Slow(values["loss"])})
        if step == 3:
            threading.Timer(SECONDS / 2, ask).start()

    def ask():
        seen.asked = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(jax, "device_get", lambda tree, get=jax.device_get: get(jax.tree.map(plain, tree)))
    monkeypatch.setattr(Meter, "dispatched", slowly)
    return seen


def plain(value):
    return value._array if isinstance(value, Slow) else value


@pytest.mark.ci
def test_after_long_steps_a_stop_waits_for_one_step_and_the_save(slow, tiny_tokens):
    """In the middle of the third step: the fourth is never dispatched."""
    assert main(["pretrain", "--run", str(tiny_tokens), "--pretrain.checkpoint.every_steps=0"]) == 130
    assert slow.steps == 3 and steps(tiny_tokens / "pretrain" / "checkpoints") == [3]
    assert Slow.free - slow.asked <= SECONDS


def test_how_far_the_host_runs_ahead():
    assert loop._lead(0.1) == 1 and loop._lead(0.5) == loop._lead(3.0) == 0
