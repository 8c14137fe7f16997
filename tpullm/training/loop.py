"""The training loop, one for pretraining and for every kind of tuning."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tpullm.data.batch import Batch
from tpullm.data.prompts import PromptStream
from tpullm.data.stream import Stream
from tpullm.formats.checkpoints import Checkpoints
from tpullm.formats.local_saves import REQUEST, LocalSaves
from tpullm.formats.models import Model, load_state
from tpullm.hardware.peak_flops import peak
from tpullm.model.adapter import with_lengths
from tpullm.model.architecture import Architecture, parameter_count, training_flops_per_token
from tpullm.model.platform import compute_dtype, long_step
from tpullm.model.rows import put
from tpullm.recipe.schema import AdapterConfig, ModelConfig, TrainConfig
from tpullm.run.hours import Hours
from tpullm.system.cluster import hosts
from tpullm.system.cluster.requests import Requests
from tpullm.system.cluster.watchdog import Watchdog
from tpullm.system.errors import Interrupted, UserError
from tpullm.system.log import say, warn
from tpullm.system.process import environment, memory
from tpullm.training.evaluation import held_out, make_evaluation
from tpullm.training.meter import Meter, part_names
from tpullm.training.metrics import MetricsLog, NoLog
from tpullm.training.optimizer.chain import decay_begin, learning_rates, make_optimizer
from tpullm.training.profile import Profile
from tpullm.training.resume import Start
from tpullm.training.rewards.known_failures import SUM
from tpullm.training.state import abstract, initial, with_params
from tpullm.training.step import make_step
from tpullm.training.trackers import Trackers
from tpullm.training.wrong_bits import Check

Tree = Any


SECONDS_BETWEEN_LOOKS = 0.002
DOCUMENTS = 32  # of a skipped step that are named, and as many of old text


class Answers(Protocol):
    """What answers the prompts of a step, if a stage learns from that: `inference.rollouts.Rollouts`."""

    def batch(self, step: int, params: Tree, chosen: np.ndarray) -> tuple[Batch, dict | None]:
        """This host's rows of the batch of `step`, by the parameters before it, and figures for the log."""

    def evaluate(self, params: Tree) -> dict:
        """Held-out results, beside the losses."""

    def watch(self, row: dict) -> None:
        """Warn of what goes wrong, by a new row of the log."""


class Measures(Protocol):
    """What measures the model on the way, if a training asks for it: `measuring.while_training.WhileTraining`."""

    def due(self, step: int) -> bool:
        """Whether it measures after `step`."""

    def measure(self, step: int, params: Tree, between: Callable[[], None]) -> dict:
        """A row of the log, on every host the same.

        Args:
            between: called on all hosts after each batch of requests; what it raises ends the measurement.
        """


class CutOff(Exception):
    """A stop came during a measurement."""


@dataclass(frozen=True)
class Job:
    """Everything one stage of training needs.

    Args:
        directory: the stage's folder.
        model: resolved config of the model.
        config: of the training.
        seed: of initialization and dropout.
        mesh: devices.
        stream: of this host's rows of the batches; of prompts, if there is `answers`.
        evaluations: this host's rows of the held-out batches, by source.
        bytes_per_token: UTF-8 bytes of each token id, `[V]`, for bits per byte.
        load: reads the parameters to start from if not from a checkpoint; None is fresh parameters. They become the
            state, so there is one copy.
        branch: a checkpoint of another training, whose whole state this one continues.
        adapter: what is trained instead of the parameters of `load`, which stay as they are.
        prepare: called before training, when the stage has its folder, with the number of batches that it reads or
            leaves out; again if it rolls back.
        begins: the parameters that the adapter begins with; None is fresh ones.
        answers: makes the batch of a step from its prompts and from the parameters before it.
        text: of this host's rows of old text beside the batches, which are then answers.
        share: of the text in the loss, of 1.
        measures: measures the model on the way.
        before: the checkpoint that `load` reads: its stage, which is in the same run, its step, and
            the identity of the stage.
    """

    directory: Path
    model: ModelConfig
    config: TrainConfig
    seed: int
    mesh: Mesh
    stream: Stream | PromptStream
    evaluations: dict[str, list[Batch]]
    bytes_per_token: np.ndarray
    load: Callable[[], Tree] | None = field(default=None, repr=False)
    branch: Model | None = None
    adapter: AdapterConfig | None = None
    prepare: Callable[[int], None] | None = None
    begins: Tree = None
    answers: Answers | None = None
    text: Stream | None = None
    share: float = 0.0
    measures: Measures | None = None
    before: tuple[str, int, str] | None = None

    @property
    def first(self) -> int:
        """The step that the training begins at."""
        return self.branch.step if self.branch else 0


class RollBack(Exception):
    """Too many steps in a row were skipped, up to `step`."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


def train(job: Job, description: dict, start: Start) -> dict:
    """Train to the last step; returns the last evaluation.

    Args:
        description: what a checkpoint says of itself.
        start: which checkpoint to resume from, and what of the stream is left out.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
        RollBack: see there; nothing of the last steps was saved.
    """
    config, steps, stream = job.config, job.config.steps, job.stream.without(start.left_out)
    text = job.text and job.text.without(start.left_out)
    rows = config.batch_size + (text.batch_size if text else 0)
    dtype = compute_dtype(config.compute)
    architecture = Architecture(job.model, job.adapter)
    watchdog = Watchdog(job.directory, 60 * config.patience_minutes, hosts.connection())
    with jax.set_mesh(job.mesh), _stop_signal() as stopped, watchdog:
        # ---------------------------------------------------------------- the state: where training starts
        # 1. a checkpoint of this stage, or a newer local save;  2. what the job starts from;  3. fresh parameters.
        hours = Hours()
        optimizer = make_optimizer(config.optimizer, steps, architecture.trained(architecture.axes), dtype, job.adapter)
        stable = decay_begin(config.optimizer, steps) if config.optimizer.schedule == "wsd" else 0
        checkpoints = Checkpoints(job.directory / "checkpoints", config.checkpoint, always=stable)
        local = LocalSaves(job.directory, config.checkpoint, description)
        target = abstract(architecture, optimizer, job.mesh)
        with hours.of("restore"):
            frozen = job.load() if job.adapter else {}
            if found := local.newest(target, after=start.step):
                state = local.restore(found, target)
            else:
                state = _start(job, start.step, checkpoints, architecture, optimizer, target, frozen)
            first = hours.resumed = int(state["step"])
        local.forget(after=first)

        # ---------------------------------------------------------------- what the training is measured by
        of_device = peak(dtype)
        flops = None if of_device.disturbed else of_device.flops * job.mesh.size
        per_token = training_flops_per_token(job.model, config.sequence_length, frozen=bool(frozen))
        meter = Meter(
            log=_log(job.directory, first, description["recipe"]) if hosts.is_first() else NoLog(),
            hours=hours,
            steps=steps,
            step=first,
            every=config.log_every,
            tokens_per_step=rows * config.sequence_length,
            peak_tokens_per_second=flops / per_token if flops and not job.answers else None,
            learning_rate=learning_rates(config.optimizer, steps).item,
            documents=lambda step: [
                document
                for read in ((stream, text) if text else (stream,))
                for document in list(dict.fromkeys(piece.id for piece in read.documents_at(step - 1)))[:DOCUMENTS]
            ],
            norms_every=config.norms_every,
            parts=part_names(architecture.trained(architecture.shapes), job.model.layers),
            watch=job.answers.watch if job.answers and hosts.is_first() else lambda row: None,
        )
        for step, batches in start.left_out:
            if step == first:
                meter.log.write({"step": step, "rolled_back": batches})

        # ---------------------------------------------------------------- the programs
        step_function = make_step(architecture, optimizer, config, dtype, job.seed)
        profile = Profile(config.profile if hosts.is_first() else "", job.directory / "profile")
        check = Check(step_function, job.mesh)
        program = watchdog.each(make_evaluation(architecture, dtype, config.accumulation, config.loss_chunks))
        trained = f"{parameter_count(architecture.trained(architecture.shapes)):,} of " if frozen else ""
        say(
            f"{job.directory.name}: {trained}{parameter_count(architecture.shapes):,} parameters, "
            f"{dtype.name} matmuls{', those of the layers in fp8' if job.model.matmuls == 'fp8' else ''}, "
            f"step {first:,} of {steps:,}, {rows} x {config.sequence_length} tokens a step, "
            f"peak {f'{flops / 1e9:,.0f} GFLOP/s' if flops else 'not known'} on {job.mesh.size} device(s)"
        )
        memory.watch()
        say(f"{job.directory.name}: the allocator {environment.allocator()}; programs are {environment.described()}")

        def evaluate(step: int) -> dict:
            with hours.of("evaluate"), watchdog.of("evaluate"):
                params = architecture.whole(state["params"], frozen)
                results = held_out(program, params, job.mesh, job.evaluations, job.bytes_per_token)
                if job.answers:
                    results |= job.answers.evaluate(params)
            meter.evaluation(step, results)
            if "eval_reward" in results:
                checkpoints.evaluated(step, -results["eval_reward"][SUM])
            elif results["eval_loss"]:
                checkpoints.evaluated(step, float(np.mean(list(results["eval_loss"].values()))))
            return results

        def due(step: int) -> bool:
            # Of rewards, what they are before is a result too.
            begun = bool(step or job.answers)
            return step == steps or bool(config.evaluate_every and begun and step % config.evaluate_every == 0)

        def measures(step: int) -> bool:
            return job.measures is not None and job.measures.due(step)

        def measured(step: int) -> bool:
            """Measure the model, and write the row; False if a stop came before the end, so that there is none."""

            def between() -> None:
                if any(hosts.gather("measure", stopped())):
                    raise CutOff

            with hours.of("evaluate"), watchdog.of("evaluate"), contextlib.suppress(CutOff):
                params = architecture.whole(state["params"], frozen)
                meter.measured(step, job.measures.measure(step, params, watchdog.each(between)))
                return True
            return False

        def save_state(step: int, saves: bool) -> None:
            with hours.of("save"), watchdog.of("save"):
                _check_finite(state["params"], step, job.directory)
                meter.sync()  # before the save: lines of saved steps are never lost
                if saves:
                    checkpoints.check()
                    checkpoints.save(step, state, description)
                else:
                    local.save(step, state)

        # ---------------------------------------------------------------- the loop
        requests, save = Requests(first, hosts.connection()), config.checkpoint
        batches = stream.batches(first, steps, config.data_workers)
        texts = text and text.batches(first, steps, config.data_workers)

        def following(step: int) -> Batch:
            if job.answers:
                return answered(step)
            began = time.monotonic()
            with watchdog.of("data"):
                batch = placed(next(batches))
            if meter.newest is None or meter.newest.is_ready():  # otherwise the device had work in the meantime
                hours.seconds["data"] += time.monotonic() - began
            return batch

        def answered(step: int) -> Batch:
            with watchdog.of("answers"):
                params = architecture.whole(state["params"], frozen)
                batch, figures = job.answers.batch(step, params, next(batches))
            if figures:
                meter.answered(step + 1, figures)
            return placed(batch)

        def placed(batch: Batch) -> Batch:
            return put(job.mesh, replace(batch, beside=next(texts), share=job.share) if texts else batch)

        def wait(ahead: int) -> None:
            while (oldest := meter.oldest(ahead)) is not None and not oldest.is_ready():
                if stopped():  # at once, so that all hosts stop after this step
                    requests.ask("stop")
                time.sleep(SECONDS_BETWEEN_LOOKS)  # in Python: a signal is not heard while JAX waits
            if not ahead:  # a step's memory is freed a moment after its results are ready; the next one takes as much
                time.sleep(SECONDS_BETWEEN_LOOKS)
            meter.read(ahead)

        results: dict = {}
        if due(first):
            results = hosts.broadcast("evaluated", lambda: meter.log.evaluated(first)) or evaluate(first)
        ready = not measures(first)
        ready = ready or hosts.broadcast("measured", lambda: meter.log.is_measured(first)) or measured(first)
        hosts.barrier("training begins")
        last_save, last_step, seconds, done = time.monotonic(), time.monotonic(), float("inf"), first
        batch = following(first) if first < steps and ready else None
        for done in range(first + 1, steps + 1) if ready else ():
            if config.check_every and done % config.check_every == 0:
                with hours.of("check"):
                    check(state, batch, done, frozen)
            if done == profile.first:
                wait(0)
                profile.begin()
            with hours.of("compile") if done == first + 1 else contextlib.nullcontext():
                state, values = step_function(state, batch, frozen)
            meter.dispatched(done, values)
            batch = following(done) if done < steps else None
            wait(0 if job.answers else _lead(seconds))  # whoever answers has waited for the step anyway
            memory.settle()
            seconds, last_step = time.monotonic() - last_step, time.monotonic()

            if done == profile.last:
                wait(0)
                profile.end()
            final, minutes = done == steps, (time.monotonic() - last_save) / 60
            late = save.every_minutes and minutes >= save.every_minutes and hosts.is_first()  # by one clock
            now = requests.ended(done, ["save"] * bool(late) + ["stop"] * stopped() + local.asks())
            saves = now - {REQUEST} or final or done == stable or (save.every_steps and done % save.every_steps == 0)
            keeps = saves or local.due(done, now)
            looks = keeps or due(done) or measures(done)
            if looks:
                wait(0)
            # With several hosts, all of them have dispatched this step: so the one before decides, on all the same.
            for step in (done - 1, done) if looks else (done - 1,):
                if meter.skipped.get(step, 0) >= config.optimizer.skip.patience:
                    checkpoints.close()
                    local.close(finished=False)
                    meter.close()
                    raise RollBack(step)
            if keeps:
                save_state(done, saves)
                last_save = time.monotonic() if saves else last_save
            watchdog.at(done)
            if "stop" in now:
                break
            if due(done):  # after the save: an evaluation that fails costs no work
                results = evaluate(done)
            if measures(done) and not measured(done):
                if not saves:
                    save_state(done, True)  # the training resumes here, and measures
                break
        profile.end()
        with hours.of("save"):
            checkpoints.close()
            local.close(finished=done == steps)
        meter.close()
        if any(hosts.gather("training ends", stopped())):
            raise Interrupted(f"{job.directory.name}: stopped and saved at step {done:,}; the same command resumes")
    return results


def _log(directory: Path, first: int, recipe: dict) -> MetricsLog:
    return MetricsLog(directory, first, Trackers(directory, recipe))


def _lead(seconds: float) -> int:
    """How many steps the host dispatches before it waits for one, by how long the last step took.

    One, so the device never waits for the host. But a stop has to wait for all steps that were dispatched, so after
    long steps none: the device waits for the host for a few milliseconds.
    """
    return 0 if seconds > long_step() else 1


@jax.jit
def _all_finite(params: Tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


def _check_finite(params: Tree, step: int, directory: Path) -> None:
    """Only finite parameters are saved. Steps never make them otherwise; a base may have come so."""
    if not _all_finite(params):
        raise UserError(
            f"{directory}: the parameters are not finite at step {step:,}, so nothing was saved; the parameters that "
            "training started from, or a device, are broken"
        )


def _start(
    job: Job, resumed: int, checkpoints: Checkpoints, architecture, optimizer, target: Tree, frozen: Tree
) -> Tree:
    if resumed:
        return checkpoints.restore(resumed, target)
    if job.branch:
        return load_state(job.branch, target)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    if frozen:
        fresh = lambda key, frozen: with_lengths(frozen, architecture.trained(architecture.init(key)))  # noqa: E731
        if job.begins is not None:
            make = jax.jit(lambda begins: with_params(begins, optimizer), out_shardings=shardings)
            return make(jax.device_put(job.begins, shardings["params"]))
        make = jax.jit(lambda *of: with_params(fresh(*of), optimizer), out_shardings=shardings)
        return make(jax.random.key(job.seed), frozen)
    if job.load is not None:
        make = jax.jit(lambda params: with_params(params, optimizer), out_shardings=shardings, donate_argnums=0)
        return make(job.load())
    make = jax.jit(lambda key: initial(architecture, optimizer, key), out_shardings=shardings)
    return make(jax.random.key(job.seed))


@contextlib.contextmanager
def _stop_signal() -> Iterator:
    """Yield `stopped()`: whether Ctrl-C or SIGTERM came. A second Ctrl-C ends at once.

    A shell has what runs in the background ignore Ctrl-C, which is meant for another program; only SIGTERM stops it.
    """
    asked = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        warn("stopping after this step; once more to stop at once, without saving")

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    old = {number: signal.signal(number, ask) for number in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
