"""Metrics: one JSON line a log, TensorBoard beside it, and a readable line for the terminal."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax

from tpullm import storage
from tpullm.log import say, warn
from tpullm.storage.mirror import mirrored

FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0


class MetricsLog:
    """Writes `metrics.jsonl` and TensorBoard files of one stage.

    Args:
        directory: the stage.
        step: training goes on from here; lines of later steps (written before an interruption) are dropped, since the
            same steps will be made again.
    """

    def __init__(self, directory: Path, step: int):
        self._place = mirrored(directory)
        path, before = self._place.folder / FILE, directory / FILE
        if before.exists():
            kept = [line for line in before.read_text().splitlines() if _step_of(line) <= step]
            storage.write_text(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (kept open for the whole stage)
        self._tensorboard = _tensorboard(self._place.folder / "tensorboard", step + 1)

    def write(self, values: dict) -> None:
        """Append one line; numbers also go to TensorBoard, nested ones as `name/source`, and lists don't."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        step = values["step"]
        for name, value in values.items():
            nested = value if isinstance(value, dict) else {} if isinstance(value, list) else {"": value}
            for suffix, number in nested.items():
                self._tensorboard.add_scalar(f"{name}/{suffix}" if suffix else name, number, step)
        self._place.changed()

    def sync(self) -> None:
        """Have everything on the disk, or on `gs://`."""
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        self._place.wait()

    def close(self) -> None:
        """Everything on the disk, or on `gs://`, and no more to come."""
        self.sync()
        self._file.close()
        self._tensorboard.close()
        self._place.close()


class NoLog:
    """The log of a host that writes none: the first one does."""

    def write(self, values: dict) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _tensorboard(directory: Path, step: int):
    """TensorBoard files in which what was written of `step` and later no longer counts."""
    # tensorboardX imports torch where that is installed: 1.2 s and 0.3 GB of a start, for types that we never give it.
    hidden = {} if "torch" in sys.modules else {"torch": None}
    sys.modules |= hidden
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter(str(directory), purge_step=step)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


def read(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds(path: Path) -> float:
    """Seconds spent in training steps, over all the processes that wrote the log."""
    total, before = 0.0, 0
    for row in read(path):
        if "step_seconds" in row:
            total += row["step_seconds"] * (row["step"] - before)
            before = row["step"]
    return round(total, 1)


def duration(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Meter:
    """Turns what steps return into log lines: rates over the steps since the last line, time left, MFU.

    Args:
        log: where the lines go.
        steps: of the whole stage.
        step: done before.
        tokens_per_step: positions in a global batch, padding included.
        peak_tokens_per_second: what the devices would do at their peak FLOP/s; None if that is not known.
        learning_rate: by step.
    """

    log: MetricsLog | NoLog
    steps: int
    step: int
    tokens_per_step: int
    peak_tokens_per_second: float | None
    learning_rate: Callable[[int], float]
    _kept: tuple[int, dict] | None = None
    _since: float = field(default_factory=time.monotonic)
    _waited: float = 0.0
    _last_line: float = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def keep(self, step: int, values: dict[str, jax.Array]) -> None:
        """The metrics of `step`, still being computed, to report later."""
        self._kept = (step, values)

    def report(self) -> None:
        """Write the line that was kept, if any; waits until its step is computed."""
        if self._kept is None:
            return
        step, arrays = self._kept
        self._kept = None
        values = jax.tree.map(lambda value: value.tolist(), jax.device_get(arrays))
        # The next interval begins at this very moment: the next step is on its way already.
        now = time.monotonic()
        elapsed = now - self._since
        seconds = elapsed / (step - self.step)
        rate = self.tokens_per_step / seconds
        row = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "learning_rate": float(self.learning_rate(step - 1)),
            "tokens_per_second": rate,
            "step_seconds": seconds,
            "accuracy": values["accuracy"],
            "data_wait_share": self._waited / elapsed,
        }
        row |= self._mfu(rate)
        row |= {name: values[name] for name in ("balance_loss", "expert_load", "expert_loads") if name in values}
        self.log.write(row)
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self.steps:
            say(line(row, self.steps))
            self._last_line = now
        self._restart(step, now)

    def _mfu(self, rate: float) -> dict[str, float]:
        """The share of the peak, if the peak is known; one that is exceeded was not the peak."""
        if self.peak_tokens_per_second is not None and rate > self.peak_tokens_per_second:
            warn("training is faster than the measured peak of this machine, so that is wrong: MFU is not shown")
            self.peak_tokens_per_second = None
        return {} if self.peak_tokens_per_second is None else {"mfu": rate / self.peak_tokens_per_second}

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Write held-out results; the time that they took is not counted as training."""
        self.log.write({"step": step, "tokens": step * self.tokens_per_step, **results})
        losses = ", ".join(f"{source} {loss:.4f}" for source, loss in results["eval_loss"].items())
        say(f"step {step:>6,}  held-out loss (nats a token): {losses}")
        self._restart(step, time.monotonic())

    def _restart(self, step: int, now: float) -> None:
        self.step, self._since, self._waited = step, now, 0.0

    def close(self) -> None:
        """Report what is kept and close the log."""
        self.report()
        self.log.close()


def line(row: dict, steps: int) -> str:
    """One log line for people."""
    left = duration(row["step_seconds"] * (steps - row["step"]))
    mfu = f"MFU {row['mfu']:.0%}  " if "mfu" in row else ""
    return (
        f"step {row['step']:>6,}/{steps:,}  loss {row['loss']:.4f}  grad norm {row['grad_norm']:.2f}  "
        f"lr {row['learning_rate']:.1e}  {row['tokens_per_second']:,.0f} tokens/s  {mfu}"
        f"waiting for data {row['data_wait_share']:.1%}  {left} left"
    )
