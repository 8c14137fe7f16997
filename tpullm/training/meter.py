"""Rates of a training: from the metrics of steps to rows of the log and a readable line for the terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax

from tpullm.log import say, warn
from tpullm.training.metrics import MetricsLog, NoLog

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Meter:
    """Turns the metrics of steps into log lines: rates over the steps since the last line, time left, MFU.

    Args:
        log: where the lines go.
        steps: of the whole stage.
        step: the last step before training.
        tokens_per_step: positions in a global batch, padding included.
        peak_tokens_per_second: of all devices at their peak FLOP/s; None if the peak is not known.
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
        """Keep the metrics of `step`, which may still be computed, to report them later."""
        self._kept = (step, values)

    def report(self) -> None:
        """Write the line of the metrics that were kept, if any; waits until their step is computed."""
        if self._kept is None:
            return
        step, arrays = self._kept
        self._kept = None
        values = jax.tree.map(lambda value: value.tolist(), jax.device_get(arrays))
        # The next interval begins now: the next step is already in flight.
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
        """The share of the peak, if the peak is known. A peak that is exceeded was measured wrong and is discarded."""
        if self.peak_tokens_per_second is not None and rate > self.peak_tokens_per_second:
            warn("training is faster than the measured peak of this machine, so that is wrong: MFU is not shown")
            self.peak_tokens_per_second = None
        return {} if self.peak_tokens_per_second is None else {"mfu": rate / self.peak_tokens_per_second}

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Write held-out results; the time that they took does not count as training."""
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
