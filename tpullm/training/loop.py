"""The training loop, one for pretraining and for every kind of tuning.

The order is fixed: a step is dispatched, the metrics of the step before it are read, a checkpoint is saved where one is
due, and evaluations and measurements follow the checkpoint.
"""

import contextlib
from types import TracebackType
from typing import Self

import jax

from tpullm.system.cluster import hosts
from tpullm.system.errors import Interrupted
from tpullm.training.diagnosis import Profile
from tpullm.training.evaluation import Evaluations
from tpullm.training.feed import Feed
from tpullm.training.job import Job, RollBack, Tree
from tpullm.training.meter import Meter
from tpullm.training.pace import Pace, Phases, stop_signal
from tpullm.training.programs import Programs
from tpullm.training.resume import Start
from tpullm.training.saves import CHECKPOINT, Saves


def train(job: Job, description: dict, start: Start, build: type[Programs] = Programs) -> dict:
    """Train to the last step; returns the last evaluation.

    Args:
        description: what a checkpoint says of itself.
        start: which checkpoint to resume from, and which batches are left out.
        build: makes the programs of the job.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
        RollBack: see there; nothing of the last steps was saved.
    """
    with Training(job, description, start, build) as t:
        results, ready = {}, True
        if t.evaluations.due(t.done):  # unless it was evaluated, or measured, before the training resumed
            results = hosts.broadcast("evaluated", lambda: t.meter.log.evaluated(t.done)) or t.evaluate()
        if t.evaluations.measures(t.done):
            measured = hosts.broadcast("measured", lambda: t.meter.log.is_measured(t.done))
            ready = measured or t.evaluations.measure(t.done, t.state)
        hosts.barrier("training begins")
        for step in range(t.done + 1, job.config.steps + 1) if ready else ():
            t.dispatch(step)
            t.pace.wait()
            t.profile.after(step)
            asked = t.pace.ended(step, t.saves.asks())
            save, evaluates, measures = t.saves.due(step, asked), t.evaluations.due(step), t.evaluations.measures(step)
            if looks := bool(save or evaluates or measures):
                t.pace.catch_up()
            # If `step` is not computed, the step before decides: on all hosts the same.
            for read in (step - 1, step) if looks else (step - 1,):
                t.check_skipped(read)
            if save:
                t.save(save)
            t.phase.watchdog.at(step)
            if "stop" in asked:
                break
            if evaluates:  # after the save: an evaluation that fails costs no work
                results = t.evaluate()
            if measures and not t.evaluations.measure(t.done, t.state):
                if save != CHECKPOINT:
                    t.save(CHECKPOINT)  # the training resumes here, and measures
                break
    if any(hosts.gather("training ends", t.pace.stopped())):
        raise Interrupted(f"{job.directory.name}: stopped and saved at step {t.done:,}; the same command resumes")
    return results


class Training:
    """The parts of one training, its state, and the steps that are done.

    Whatever ends the training closes each part once. After an error nobody waits: devices or hosts may have failed.
    """

    def __init__(self, job: Job, description: dict, start: Start, build: type[Programs]):
        self._job, self._description, self._start, self._build = job, description, start, build
        self._ends_well, self._batch = False, None

    def __enter__(self) -> Self:
        job, config, first_host = self._job, self._job.config, hosts.is_first()
        with contextlib.ExitStack() as closing:
            closing.enter_context(jax.set_mesh(job.mesh))
            stopped = closing.enter_context(stop_signal())
            phase = self.phase = Phases(job.directory, config.patience_minutes)
            closing.enter_context(phase.watchdog)
            with phase("restore"):
                programs = self._programs = self._build(job)
                self.saves = Saves(job.directory, config, self._description)
                self.state: Tree = self.saves.restore(programs, self._start.step)
            first = self.done = self._first = phase.hours.resumed = int(self.state["step"])
            feed = self._feed = Feed(job, self._start.left_out, programs, phase)
            meter = Meter(job, programs, first, phase.hours, feed.documents, self._description["recipe"])
            self.meter = meter
            closing.callback(lambda: meter.close(whole=self._ends_well))
            closing.callback(self._close_saves)
            feed.open(first, meter)
            closing.callback(feed.close)
            programs.tell(first)
            self.pace = Pace(meter, first, stopped, ahead=job.answers is None)
            self.evaluations = Evaluations(job, programs, meter, phase, stopped)
            self.profile = Profile(config.profile * first_host, job.directory / "profile", self.pace.catch_up)
            closing.callback(self.profile.close)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ends_well = error is None or isinstance(error, RollBack)
        self._closing.__exit__(kind, error, trace)

    def _close_saves(self) -> None:
        if self._ends_well:
            with self.phase("save"):
                self.saves.close()

    def dispatch(self, step: int) -> None:
        """Dispatch a step, and get the batch of the next one while the devices compute."""
        config, batch = self._job.config, self._batch or self._feed.next(step - 1, self.state)
        if config.check_every and step % config.check_every == 0:
            with self.phase("check"):
                self._programs.check(self.state, batch, step)
        if step - 1 in self._start.opened or self._feed.changes(step):
            self.state = self._programs.open_window(self.state)
        self.profile.before(step)
        with self.phase("compile") if step == self._first + 1 else contextlib.nullcontext():
            self.state, values = self._programs.step(self.state, batch)
        self.meter.dispatched(step, values)
        self._batch, self.done = self._feed.next(step, self.state) if step < config.steps else None, step

    def check_skipped(self, step: int) -> None:
        """Raise `RollBack` if too many steps in a row were skipped: of new text if the model is good."""
        if self.meter.skipped.get(step, 0) >= (patience := self._job.config.optimizer.skip.patience):
            asks = self.meter.last_not_finite <= (learned := step - patience) > 0
            begins = learned <= self._job.first  # a branch that has learned nothing yet, from a model that is good
            raise RollBack(step, asks and (begins or self._programs.is_usual(self.state, self._feed.again(learned))))

    def save(self, kind: str) -> None:
        """Save the state, and before that the log: lines of saved steps are never lost."""
        with self.phase("save"):
            self._programs.check_finite(self.state, self.done)
            self.meter.sync()
            self.saves.save(self.done, self.state, kind)

    def evaluate(self) -> dict:
        """Evaluate the model; the best checkpoints are kept."""
        results = self.evaluations.evaluate(self.done, self.state)
        self.saves.evaluated(self.done, results)
        return results
