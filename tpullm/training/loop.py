"""The training loop, one for pretraining and for every kind of tuning."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tpullm.checkpoint.local_saves import REQUEST, LocalSaves
from tpullm.checkpoint.models import Model, load_state
from tpullm.checkpoint.saving import Checkpoints
from tpullm.cluster import hosts
from tpullm.cluster.requests import Requests
from tpullm.data.batch import Batch
from tpullm.data.stream import Stream
from tpullm.errors import Interrupted, UserError
from tpullm.hardware.peak_flops import peak
from tpullm.log import say, warn
from tpullm.mesh.rows import put
from tpullm.model.count import parameter_count, training_flops_per_token
from tpullm.model.platform import compute_dtype
from tpullm.process import compile_cache, environment
from tpullm.recipe.schema import ModelConfig, TrainConfig
from tpullm.training.evaluation import held_out, make_evaluation
from tpullm.training.meter import Meter
from tpullm.training.metrics import MetricsLog, NoLog
from tpullm.training.optimizer.chain import decay_begin, learning_rates, make_optimizer
from tpullm.training.state import Architecture, abstract, initial, with_params
from tpullm.training.step import make_step

Tree = Any


@dataclass(frozen=True)
class Job:
    """Everything one stage of training needs.

    Args:
        directory: the stage's folder.
        model: resolved config of the model.
        config: of the training.
        seed: of initialization and dropout.
        mesh: devices.
        stream: of this host's rows of the batches.
        evaluations: this host's rows of the held-out batches, by source.
        bytes_per_token: UTF-8 bytes of each token id, `[V]`, for bits per byte.
        params: where to start from if not from a checkpoint; None is fresh parameters.
        branch: a checkpoint of another training, whose whole state this one continues.
    """

    directory: Path
    model: ModelConfig
    config: TrainConfig
    seed: int
    mesh: Mesh
    stream: Stream
    evaluations: dict[str, list[Batch]]
    bytes_per_token: np.ndarray
    params: Tree | None = field(default=None, repr=False)
    branch: Model | None = None

    @property
    def first(self) -> int:
        """The step that the training begins at."""
        return self.branch.step if self.branch else 0


def train(job: Job, description: dict, resumed: int = 0) -> dict:
    """Train to the last step; returns the last evaluation.

    Args:
        description: what a checkpoint says of itself.
        resumed: the step of the checkpoint to resume from; 0 starts anew.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    config, steps = job.config, job.config.steps
    dtype = compute_dtype(config.compute)
    architecture = Architecture(job.model)
    with jax.set_mesh(job.mesh), _stop_signal() as stopped:
        # ---------------------------------------------------------------- the state: where training starts
        # 1. a checkpoint of this stage, or a newer local save;  2. what the job starts from;  3. fresh parameters.
        optimizer = make_optimizer(config.optimizer, steps, architecture.axes, dtype)
        stable = decay_begin(config.optimizer, steps) if config.optimizer.schedule == "wsd" else 0
        checkpoints = Checkpoints(job.directory / "checkpoints", config.checkpoint, always=stable)
        local = LocalSaves(job.directory, config.checkpoint, description)
        target = abstract(architecture, optimizer, job.mesh)
        if step := local.newest(target, after=resumed):
            state = local.restore(step, target)
        else:
            state = _start(job, resumed, checkpoints, architecture, optimizer, target)
        first = int(state["step"])

        # ---------------------------------------------------------------- the programs, and what they are measured by
        step_function = make_step(architecture, optimizer, config, dtype, job.seed)
        evaluate = make_evaluation(architecture, dtype)
        of_device = peak(dtype)
        flops = None if of_device.disturbed else of_device.flops * job.mesh.size
        meter = Meter(
            log=MetricsLog(job.directory, first) if hosts.is_first() else NoLog(),
            steps=steps,
            step=first,
            tokens_per_step=config.batch_size * config.sequence_length,
            peak_tokens_per_second=flops and flops / training_flops_per_token(job.model, config.sequence_length),
            learning_rate=learning_rates(config.optimizer, steps).item,
        )
        say(
            f"{job.directory.name}: {parameter_count(architecture.shapes):,} parameters, {dtype.name} matmuls, "
            f"step {first:,} of {steps:,}, {config.batch_size} x {config.sequence_length} tokens a step, "
            f"peak {f'{flops / 1e9:,.0f} GFLOP/s' if flops else 'not known'} on {job.mesh.size} device(s)"
        )
        say(f"{job.directory.name}: the allocator {environment.allocator()}; programs are {compile_cache.described()}")

        # ---------------------------------------------------------------- the loop
        results: dict = {}
        if first == steps:  # killed after the last save, before the stage was marked as finished
            results = held_out(evaluate, state["params"], job.mesh, job.evaluations, job.bytes_per_token)
        batches = job.stream.batches(first, steps, config.data_workers)
        requests, now = Requests(first, hosts.connection()), set()
        hosts.barrier("training begins")
        last_save, done = time.monotonic(), first
        for done in range(first + 1, steps + 1):
            with meter.waiting():
                batch = put(job.mesh, next(batches))
            state, values = step_function(state, batch)
            meter.report()  # of an earlier step, while this one is in flight: the device never waits for the log
            final = done == steps
            if done % config.log_every == 0 or final:
                meter.keep(done, values)

            if final or (config.evaluate_every and done % config.evaluate_every == 0):
                meter.report()
                results = held_out(evaluate, state["params"], job.mesh, job.evaluations, job.bytes_per_token)
                meter.evaluation(done, results)
                if results["eval_loss"]:
                    checkpoints.evaluated(done, float(np.mean(list(results["eval_loss"].values()))))

            minutes = (time.monotonic() - last_save) / 60
            save = config.checkpoint
            late = save.every_minutes and minutes >= save.every_minutes and hosts.is_first()  # by one clock
            now = requests.ended(done, ["save"] * bool(late) + ["stop"] * stopped() + local.asks())
            if now - {REQUEST} or final or done == stable or (save.every_steps and done % save.every_steps == 0):
                meter.report()
                _check_finite(values, done, job.directory)
                meter.log.sync()  # before the save: lines of saved steps are never lost
                checkpoints.check()
                checkpoints.save(done, state, description)
                last_save = time.monotonic()
            elif local.due(done, now):
                meter.report()
                _check_finite(values, done, job.directory)
                meter.log.sync()
                local.save(done, state)
            if "stop" in now:
                break
        checkpoints.close()
        local.close(finished=done == steps)
        meter.close()
        if any(hosts.gather("training ends", stopped())):
            raise Interrupted(f"{job.directory.name}: stopped and saved at step {done:,}; the same command resumes")
    return results


def _check_finite(values: dict[str, jax.Array], step: int, directory: Path) -> None:
    """A training that has diverged must not replace its last good save."""
    if not np.isfinite(float(values["loss"])):
        raise UserError(
            f"{directory}: the loss is {float(values['loss'])} at step {step:,}, the last good save is kept; "
            f"lower optimizer.peak_lr or raise warmup_steps"
        )


def _start(job: Job, resumed: int, checkpoints: Checkpoints, architecture, optimizer, target: Tree) -> Tree:
    if resumed:
        return checkpoints.restore(resumed, target)
    if job.branch:
        return load_state(job.branch, target)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    if job.params is not None:
        return jax.jit(lambda params: with_params(params, optimizer), out_shardings=shardings)(job.params)
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
