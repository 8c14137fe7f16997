"""A training that counts, for the laws of the loop: its state is the number of steps and the batches that they read.

A batch is its number. Saves are kept in memory, steps take no time, and every test of them some milliseconds.
"""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.data.batch import Batch
from tpullm.recipe.schema import CheckpointConfig, OptimizerConfig, SkipConfig, TrainConfig
from tpullm.training import loop, meter, metrics, saves
from tpullm.training.job import Job
from tpullm.training.losses import Sums
from tpullm.training.resume import Start

TOKEN = np.zeros((1, 1), np.int32)
HELD_OUT = Batch(TOKEN, TOKEN, TOKEN + 1, TOKEN, TOKEN.astype(np.float32) + 1)


class Ready(np.float32):
    def is_ready(self):
        return True


class Numbers:
    """A stream whose batches are their numbers."""

    batch_size = 1
    new_text = ()

    def __init__(self, left_out=()):
        self._left_out = left_out

    def without(self, left_out):
        return Numbers(left_out)

    def batches(self, start, stop, workers):
        for step in range(start, stop):
            yield step + sum(count for first, count in self._left_out if step >= first)

    def batch_at(self, step):
        return next(self.batches(step, step + 1, 0))

    def changes(self, step):
        return step in self.new_text

    def documents_at(self, step):
        return []


class Counting:
    """One training by the real loop, in a folder; what its parts did is in `events`, in order.

    Attributes:
        kept: the saved states by step.
        at: by step, what happens while it is dispatched.
        bad: the batches whose steps are skipped; `loss` is theirs.
        usual: whether the model has a usual loss of a batch that it learned.
    """

    loss, usual = math.nan, True

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 10, **config):
        self.folder, self.events, self.kept, self.at, self.bad = folder, [], {}, {}, set()
        checkpoint = CheckpointConfig(**{"every_steps": 0, "every_minutes": 0, **config.pop("checkpoint", {})})
        optimizer = OptimizerConfig(skip=SkipConfig(patience=config.pop("patience", 3)), **config.pop("optimizer", {}))
        options = {"evaluate_every": 0, "log_every": 1, "batch_size": 1, "sequence_length": 1} | config
        self.config = TrainConfig(steps=steps, checkpoint=checkpoint, optimizer=optimizer, **options)
        data = {"stream": Numbers(), "evaluations": {"text": [HELD_OUT]}, "bytes_per_token": np.ones(1, np.int32)}
        self.job = Job(directory=folder, model=None, config=self.config, seed=0, mesh=mesh(), **data)
        monkeypatch.setattr(meter, "learning_rates", lambda config, steps: np.zeros(steps))
        monkeypatch.setattr(saves, "Checkpoints", lambda *_, **__: Checkpoints(self))

        def close(of, whole, plain=meter.Meter.close):
            self.events.append("log closed" if whole else "log closed after an error")
            plain(of, whole)

        monkeypatch.setattr(meter.Meter, "close", close)

    def train(self, step: int = 0, left_out=(), opened=(), **job):
        self.job = dataclasses.replace(self.job, **job)
        start = Start(step, [], list(left_out), list(opened))
        return loop.train(self.job, {"recipe": {"trackers": []}}, start, lambda job: Programs(self))

    def rows(self, key: str) -> list[int]:
        """The steps of the log's rows that have `key`."""
        return [row["step"] for row in metrics.read_rows(self.folder / metrics.FILE) if key in row]

    def did(self, *kinds: str) -> list[str]:
        return [event for event in self.events if event.startswith(kinds)]


class Programs:
    parts, peak_tokens_per_second, target = (), None, {}

    def __init__(self, counting: Counting):
        self._of = counting

    def tell(self, first):
        """Nothing."""

    def begin(self):
        return {"step": 0, "read": (), "skipped": 0}

    def place(self, batch):
        self._of.events.append(f"batch {batch}")
        return batch

    def step(self, state, batch):
        """Count; of a bad batch only that it was skipped."""
        step = state["step"] + 1
        self._of.events.append(f"step {step}")
        self._of.at.get(step, lambda: None)()
        bad = batch in self._of.bad
        skipped, read = (state["skipped"] + 1) * bad, state["read"] if bad else (*state["read"], batch)
        values = {name: Ready(self._of.loss if bad else step) for name in ("loss", "grad_norm")}
        values |= {"skipped": np.int32(skipped), "updates": np.int32(len(read))}
        return {"step": step, "read": read, "skipped": skipped}, values

    def open_window(self, state):
        self._of.events.append(f"open after {state['step']}")
        return state

    def is_usual(self, state, batch):
        self._of.events.append(f"judged by batch {batch}")
        return self._of.usual

    def params(self, state):
        return state

    def evaluation(self, state, batch):
        self._of.events.append(f"evaluate {state['step']}")
        return Sums(*(np.float32(value) for value in (1 / (1 + state["step"]), 0, 1, 0)))

    def check(self, state, batch, step):
        self._of.events.append(f"check {step} with {batch}")

    def check_finite(self, state, step):
        self._of.at.get(("finite", step), lambda: None)()


class Checkpoints:
    def __init__(self, counting: Counting):
        self._of, self.best = counting, self

    def save(self, step, state, description):
        assert self._of.rows("losses")[-1] == step, "the log of a saved step is written before"
        self._of.events.append(f"save {step}")
        self._of.kept[step] = jax.tree.map(lambda leaf: leaf, state)

    def check(self):
        """No save fails."""

    def restore(self, step, target):
        return self._of.kept[step]

    def note(self, step, loss):
        self._of.events.append(f"best {step} {loss:.2f}")

    def close(self):
        self._of.events.append("checkpoints closed")
