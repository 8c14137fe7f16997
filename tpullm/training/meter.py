"""From the metrics of steps to rows of the log: rates since the last row, losses of each step, and a line to read.

An MFU is a share of a peak that is published or measured (`hardware/peak_flops.py`). On a processor that stays busy
with other programs there is none.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax

from tpullm.run.hours import Hours
from tpullm.system.cluster import hosts
from tpullm.system.log import say, warn
from tpullm.system.words import clock
from tpullm.training.job import Job
from tpullm.training.metrics import MetricsLog, NoLog
from tpullm.training.optimizer.chain import learning_rates
from tpullm.training.programs import Programs
from tpullm.training.trackers import Trackers

KINDS = ("parameter_norms", "gradient_norms", "update_norms")  # of a step, in the order of `step.step_norms`
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Meter:
    """Turns the metrics of steps into log lines: rates over the steps since the last line, time left, MFU.

    Args:
        log: where the lines go.
        hours: where the time of this process goes.
        steps: of the whole stage.
        step: the last step before training.
        every: steps between lines.
        tokens_per_step: positions in a global batch, padding included.
        peak_tokens_per_second: of all devices at their peak FLOP/s; None if the peak is not known.
        learning_rate: by the number of updates before.
        documents: the documents of a step, from 1, for a skipped one.
        norms_every: steps between rows of norms; 0 is none.
        parts: the names of the norms of a step.
        watch: is given the rows that say how a training goes.

    Attributes:
        skipped: how many steps in a row were skipped, by step, of the last steps that were read.
    """

    log: MetricsLog | NoLog
    hours: Hours
    steps: int
    step: int
    every: int
    tokens_per_step: int
    peak_tokens_per_second: float | None
    learning_rate: Callable[[int], float]
    documents: Callable[[int], list[str]] = lambda step: []
    norms_every: int = 0
    parts: Sequence[str] = ()
    watch: Callable[[dict], None] = lambda row: None
    skipped: dict[int, int] = field(default_factory=dict)
    _pending: deque[tuple[int, dict]] = field(default_factory=deque)
    _losses: list[float | None] = field(default_factory=list)
    _bad: list[dict] = field(default_factory=list)
    _sound: dict = field(default_factory=dict)
    _all_skipped: int = 0
    _last: int = 0
    _since: float = field(default_factory=time.monotonic)
    _waited: float = 0.0
    _last_line: float = 0.0
    _answer_tokens: dict[int, float] = field(default_factory=dict)
    _learned_from: float = 0.0

    def oldest(self, ahead: int = 0) -> jax.Array | None:
        """An array of the oldest step that `read` would read, which is ready when the step is computed."""
        return self._pending[0][1]["loss"] if len(self._pending) > ahead else None

    @property
    def newest(self) -> jax.Array | None:
        """The same of the last step that was dispatched; None if all are read."""
        return self._pending[-1][1]["loss"] if self._pending else None

    def dispatched(self, step: int, values: dict[str, jax.Array]) -> None:
        """Take the metrics of `step`, which may still be computed."""
        self._pending.append((step, values))

    def answered(self, step: int, figures: dict) -> None:
        """Log what the answers are like that `step` learns from. Speed is then that of their tokens."""
        self.log.write({"step": step, **figures})
        self.watch({"step": step, **figures})
        self._answer_tokens[step] = figures["answers"] * figures["answer_tokens"]

    def read(self, ahead: int = 0) -> None:
        """Read the metrics of all steps but the last `ahead`; waits until they are computed. Lines are written."""
        while len(self._pending) > ahead:
            step, arrays = self._pending.popleft()
            self._take(step, jax.tree.map(lambda value: value.tolist(), jax.device_get(arrays)))

    def _take(self, step: int, values: dict) -> None:
        self._last = step
        self.skipped = {step - 1: self.skipped.get(step - 1, 0), step: values["skipped"]}
        self._losses.append(values["loss"] if math.isfinite(values["loss"]) else None)
        if values["skipped"]:
            self._skip(step, values)
        else:
            self._sound = values
        if self.norms_every and step % self.norms_every == 0:
            rows = {kind: zip(self.parts, row, strict=True) for kind, row in zip(KINDS, values["norms"], strict=True)}
            norms = {kind: {part: readable(norm) for part, norm in row} for kind, row in rows.items()}
            self.log.write({"step": step, "tokens": step * self.tokens_per_step, **norms})
        if step % self.every == 0 or step == self.steps:
            self._report(step, values)

    def _skip(self, step: int, values: dict) -> None:
        self._all_skipped += 1
        loss, norm = (readable(values[name]) for name in ("loss", "grad_norm"))
        self._bad.append({"step": step, "loss": loss, "grad_norm": norm, "documents": self.documents(step)})
        shown = f"loss {loss}, gradient norm {norm}; its documents: tpullm data --step {step - 1}"
        warn(f"step {step:,} is skipped and changes nothing: {shown}")

    def _report(self, step: int, values: dict) -> None:
        # The next interval begins now: the next step is already in flight.
        now = time.monotonic()
        elapsed = now - self._since
        seconds = elapsed / (step - self.step)
        rate = self._tokens(step) / elapsed
        waited = self.hours.seconds["data"] - self._waited
        row = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            **{name: self._sound[name] for name in ("loss", "grad_norm", "accuracy") if name in self._sound},
            "learning_rate": float(self.learning_rate(max(values["updates"] - 1, 0))),
            "tokens_per_second": rate,
            "step_seconds": seconds,
            "data_wait_share": waited / elapsed,
            **self._each_step(),
        }
        # Without the means of nothing, as of bad answers where all are good.
        row |= self._mfu(rate) | {name: of for name, of in values.get("told", {}).items() if math.isfinite(of)}
        row |= {name: values[name] for name in ("balance_loss", "expert_load", "expert_loads") if name in values}
        self.log.write(row)
        self.watch(row)
        self.log.write_hours(self.hours.line(step, self._all_skipped))
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self.steps:
            say(line(row, self.steps))
            self._last_line = now
        self._restart(step, now)

    def _tokens(self, step: int) -> float:
        """Tokens of the steps since the last line: of answers, if the model gives them itself, else all places."""
        total = 0.0
        for done in range(self.step + 1, step + 1):
            self._learned_from = self._answer_tokens.pop(done, self._learned_from)
            total += self._learned_from or self.tokens_per_step
        return total

    def _each_step(self) -> dict[str, list]:
        """What the next line says of each step since the last one: its loss, and whether it was skipped."""
        row = {"losses": self._losses} | ({"skipped": self._bad} if self._bad else {})
        self._losses, self._bad = [], []
        return row

    def sync(self) -> None:
        """Before a checkpoint: all that is known of its steps is in the log, and the log where it stays."""
        self.read()
        if self._losses:
            self.log.write({"step": self._last, **self._each_step()})
        self.log.sync()

    def _mfu(self, rate: float) -> dict[str, float]:
        """The share of the peak, if the peak is known. A peak that is exceeded was measured wrong and is discarded."""
        if self.peak_tokens_per_second is not None and rate > self.peak_tokens_per_second:
            warn("training is faster than the measured peak of this machine, so that is wrong: MFU is not shown")
            self.peak_tokens_per_second = None
        return {} if self.peak_tokens_per_second is None else {"mfu": rate / self.peak_tokens_per_second}

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Write held-out results; the time that they took does not count as training."""
        self.log.write({"step": step, "tokens": step * self.tokens_per_step, **results})
        self.watch({"step": step, **results})
        right = results.get("eval_accuracy", {})
        losses = [f"{source} {loss:.4f}" for source, loss in results["eval_loss"].items() if source not in right]
        told = [f"loss (nats a token): {', '.join(losses)}"] if losses else []
        told += [
            f"{source}: loss {results['eval_loss'][source]:.4f}, {share:.0%} right" for source, share in right.items()
        ]
        if taught := results.get("eval_divergence"):
            told.append("from the teacher " + ", ".join(f"{source} {value:.4f}" for source, value in taught.items()))
        if reward := results.get("eval_reward"):
            told.append("reward " + ", ".join(f"{name} {value:.3f}" for name, value in reward.items()))
            told.append(f"{results['eval_perfect']:.0%} perfect")
        say(f"step {step:>6,}  held-out {'; '.join(told)}")
        self._restart(step, time.monotonic())

    def measured(self, step: int, figures: dict) -> None:
        """Write what was measured on the way; its time does not count as training."""
        self.log.write({"step": step, "tokens": step * self.tokens_per_step, **figures})
        self._restart(step, time.monotonic())

    def _restart(self, step: int, now: float) -> None:
        self.step, self._since, self._waited = step, now, self.hours.seconds["data"]

    def close(self, whole: bool = True) -> None:
        """Read all steps and close the log.

        Args:
            whole: False if an error ended the training: then no step is waited for.
        """
        if whole:
            self.read()
            self.log.write_hours(self.hours.line(self.step, self._all_skipped))
        self.log.close(whole)


def open_meter(
    job: Job, programs: Programs, first: int, hours: Hours, documents: Callable[[int], list[str]], description: dict
) -> Meter:
    """The meter of a training that resumes after step `first`; host 0 alone writes a log.

    Args:
        documents: as of `Meter`.
        description: what a checkpoint says of itself; the trackers get its recipe.
    """
    config, log, watch = job.config, NoLog(), lambda row: None
    if hosts.is_first():
        log = MetricsLog(job.directory, first, Trackers(job.directory, description["recipe"]))
        watch = job.answers.watch if job.answers else watch
    return Meter(
        log=log,
        hours=hours,
        steps=config.steps,
        step=first,
        every=config.log_every,
        tokens_per_step=job.rows * config.sequence_length,
        peak_tokens_per_second=programs.peak_tokens_per_second,
        learning_rate=learning_rates(config.optimizer, config.steps).item,
        documents=documents,
        norms_every=config.norms_every,
        parts=programs.parts,
        watch=watch,
    )


def readable(value: float) -> float | str:
    """A number for JSON, which has no NaN and no infinity: those are text."""
    return value if math.isfinite(value) else str(value)


def line(row: dict, steps: int) -> str:
    """One log line for people."""
    left = clock(row["step_seconds"] * (steps - row["step"]))
    loss = f"loss {row['loss']:.4f}  grad norm {row['grad_norm']:.2f}  " if "loss" in row else ""
    mfu = f"MFU {row['mfu']:.0%}  " if "mfu" in row else ""
    return (
        f"step {row['step']:>6,}/{steps:,}  {loss}"
        f"lr {row['learning_rate']:.1e}  {row['tokens_per_second']:,.0f} tokens/s  {mfu}"
        f"waiting for data {row['data_wait_share']:.1%}  {left} left"
    )
