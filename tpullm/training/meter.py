"""From the metrics of steps to rows of the log: rates since the last row, losses of each step, and a line to read.

An MFU is a share of a peak that is published or measured (`hardware/peak_flops.py`). On a processor that stays busy
with other programs there is none.
"""

import math
import time
from collections import deque
from collections.abc import Callable

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


class Meter:
    """Turns the metrics of steps into log lines: rates over the steps since the last line, time left, MFU.

    Host 0 alone writes a log.

    Args:
        first: the last step before the training.
        hours: where the time of this process goes.
        documents: the documents of a step, from 1, for a skipped one.
        recipe: as a dictionary, for the trackers.

    Attributes:
        skipped: how many steps in a row were skipped, by step, of the last steps that were read.
        last_not_finite: the last step whose loss or gradient norm was not finite.
    """

    def __init__(
        self, job: Job, programs: Programs, first: int, hours: Hours, documents: Callable[[int], list], recipe: dict
    ):
        self._config, self._parts, self._documents, self.hours = job.config, programs.parts, documents, hours
        self.log, self._watch = NoLog(), lambda row: None
        if hosts.is_first():
            self.log = MetricsLog(job.directory, first, Trackers(job.directory, recipe))
            self._watch = job.answers.watch if job.answers else self._watch
        self._tokens_per_step = job.rows * job.config.sequence_length  # padding included
        self._peak = programs.peak_tokens_per_second
        self._rates = learning_rates(job.config.optimizer, job.config.steps)
        self._last = first
        self.skipped: dict[int, int] = {}
        self.last_not_finite = -1
        self._pending: deque[tuple[int, dict]] = deque()
        self._losses, self._bad, self._sound = [], [], {}  # of steps since the last line; of the last good one
        self._all_skipped, self._last_line = 0, 0.0
        self._answer_tokens, self._learned_from = {}, 0.0
        self._restart(first, time.monotonic())

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
        self.log.write(row := {"step": step, **figures})
        self._watch(row)
        self._answer_tokens[step] = figures["answers"] * figures["answer_tokens"]

    def read(self, ahead: int = 0) -> None:
        """Read the metrics of all steps but the last `ahead`; waits until they are computed. Lines are written."""
        while len(self._pending) > ahead:
            step, arrays = self._pending.popleft()
            values = jax.tree.map(lambda value: value.tolist(), jax.device_get(arrays))
            self._last = step
            self.skipped = {step - 1: self.skipped.get(step - 1, 0), step: values["skipped"]}
            self._losses.append(values["loss"] if math.isfinite(values["loss"]) else None)
            if values["skipped"]:
                self._all_skipped += 1
                if not math.isfinite(values["loss"] + values["grad_norm"]):
                    self.last_not_finite = step
                loss, norm = (json_number(values[name]) for name in ("loss", "grad_norm"))
                self._bad.append({"step": step, "loss": loss, "grad_norm": norm, "documents": self._documents(step)})
                shown = f"loss {loss}, gradient norm {norm}; its documents: tpullm data --step {step - 1}"
                warn(f"step {step:,} is skipped and changes nothing: {shown}")
            else:
                self._sound = values
            if self._config.norms_every and step % self._config.norms_every == 0:
                rows = [dict(zip(self._parts, map(json_number, norms), strict=True)) for norms in values["norms"]]
                self._write(step, dict(zip(KINDS, rows, strict=True)))
            if step % self._config.log_every == 0 or step == self._config.steps:
                self._report(step, values)

    def _report(self, step: int, values: dict) -> None:
        # The next interval begins now: the next step is already in flight.
        now, tokens = time.monotonic(), 0.0
        elapsed, waited = now - self._since, self.hours.seconds["data"] - self._waited
        for done in range(self._step + 1, step + 1):  # of answers, if the model gives them itself, else all places
            self._learned_from = self._answer_tokens.pop(done, self._learned_from)
            tokens += self._learned_from or self._tokens_per_step
        rate = tokens / elapsed
        row = {
            **{name: self._sound[name] for name in ("loss", "grad_norm", "accuracy") if name in self._sound},
            "learning_rate": self._rates.item(max(values["updates"] - 1, 0)),
            "tokens_per_second": rate,
            "step_seconds": elapsed / (step - self._step),
            "data_wait_share": waited / elapsed,
            **self._each_step(),
        }
        if self._peak and rate > self._peak:
            warn("training is faster than the measured peak of this machine, so that is wrong: MFU is not shown")
            self._peak = None
        row |= {"mfu": rate / self._peak} if self._peak else {}
        # Without the means of nothing, as of bad answers where all are good.
        row |= {name: of for name, of in values.get("told", {}).items() if math.isfinite(of)}
        row |= {name: values[name] for name in ("balance_loss", "expert_load", "expert_loads") if name in values}
        row = self._write(step, row)
        self._watch(row)
        self.log.write_hours(self.hours.line(step, self._all_skipped))
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self._config.steps:
            say(log_line(row, self._config.steps))
            self._last_line = now
        self._restart(step, now)

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

    def evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Write held-out results; the time that they took does not count as training."""
        self._watch(self._write(step, results))
        right = results.get("eval_accuracy", {})
        losses = [f"{source} {loss:.4f}" for source, loss in results["eval_loss"].items() if source not in right]
        told = [f"loss (nats a token): {', '.join(losses)}"] if losses else []
        told += [f"{name}: loss {results['eval_loss'][name]:.4f}, {share:.0%} right" for name, share in right.items()]
        if taught := results.get("eval_divergence"):
            told.append("from the teacher " + ", ".join(f"{source} {value:.4f}" for source, value in taught.items()))
        if reward := results.get("eval_reward"):
            told.append("reward " + ", ".join(f"{name} {value:.3f}" for name, value in reward.items()))
            told.append(f"{results['eval_perfect']:.0%} perfect")
        say(f"step {step:>6,}  held-out {'; '.join(told)}")
        self._restart(step, time.monotonic())

    def measured(self, step: int, figures: dict) -> None:
        """Write what was measured on the way; its time does not count as training."""
        self._write(step, figures)
        self._restart(step, time.monotonic())

    def _write(self, step: int, figures: dict) -> dict:
        row = {"step": step, "tokens": step * self._tokens_per_step, **figures}
        self.log.write(row)
        return row

    def _restart(self, step: int, now: float) -> None:
        self._step, self._since, self._waited = step, now, self.hours.seconds["data"]

    def close(self, whole: bool = True) -> None:
        """Read all steps and close the log.

        Args:
            whole: False if an error ended the training: then no step is waited for.
        """
        if whole:
            self.read()
            self.log.write_hours(self.hours.line(self._step, self._all_skipped))
        self.log.close(whole)


def json_number(value: float) -> float | str:
    """A number for JSON, which has no NaN and no infinity: those are text."""
    return value if math.isfinite(value) else str(value)


def log_line(row: dict, steps: int) -> str:
    """One log line for people."""
    left = clock(row["step_seconds"] * (steps - row["step"]))
    loss = f"loss {row['loss']:.4f}  grad norm {row['grad_norm']:.2f}  " if "loss" in row else ""
    mfu = f"MFU {row['mfu']:.0%}  " if "mfu" in row else ""
    return (
        f"step {row['step']:>6,}/{steps:,}  {loss}"
        f"lr {row['learning_rate']:.1e}  {row['tokens_per_second']:,.0f} tokens/s  {mfu}"
        f"waiting for data {row['data_wait_share']:.1%}  {left} left"
    )
