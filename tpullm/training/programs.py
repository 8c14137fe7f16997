"""What a training computes: its state, and the programs that begin, change, check and evaluate it.

The loop knows nothing else of the model, so a test can train a counter (`tests/training/counter.py`).
"""

from functools import partial

import jax
import jax.numpy as jnp

from tpullm.data.batch import Batch
from tpullm.formats.models import load_state
from tpullm.hardware.peak_flops import peak
from tpullm.model.adapter import with_magnitudes
from tpullm.model.architecture import Architecture, Tree, parameter_count, training_flops_per_token
from tpullm.model.platform import compute_dtype
from tpullm.model.rows import put_rows
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.system.process import allocator, environment
from tpullm.training.diagnosis import Check
from tpullm.training.job import Job
from tpullm.training.optimizer.chain import make_optimizer, open_window, outlier_bound
from tpullm.training.step import abstract_state, initial_state, make_evaluation, make_step, part_names, with_params


class Programs:
    """The programs of one training. Under an adapter they hold the parameters that are not trained.

    Attributes:
        target: shapes, types and shardings of the state, to restore it.
        parts: the names of the norms of a step.
        evaluation: `(params, batch) -> Sums`, compiled.
        peak_tokens_per_second: of all devices at their peak FLOP/s; None if the peak is not known.
    """

    def __init__(self, job: Job):
        config, dtype = job.config, compute_dtype(job.config.compute)
        self._job, self._architecture = job, Architecture(job.model, job.adapter)
        trained = self._architecture.trained
        axes = trained(self._architecture.axes)
        self._optimizer = make_optimizer(config.optimizer, config.steps, axes, dtype, job.adapter)
        self.target = abstract_state(self._architecture, self._optimizer, job.mesh)
        self._frozen = job.load() if job.adapter else {}
        self._step = make_step(self._architecture, self._optimizer, config, dtype, job.seed)
        self._check = Check(self._step, job.mesh)
        self.evaluation = make_evaluation(self._architecture, dtype, config.accumulation, config.loss_chunks)
        self.parts = part_names(trained(self._architecture.shapes), job.model)
        of_device = peak(dtype)
        flops = None if of_device.disturbed else of_device.flops * job.mesh.size
        per_token = training_flops_per_token(job.model, config.sequence_length, frozen=bool(self._frozen))
        self.peak_tokens_per_second = flops / per_token if flops and not job.answers else None
        some = f"{parameter_count(trained(self._architecture.shapes)):,} of " if self._frozen else ""
        fp8 = ", those of the layers in fp8" if job.model.matmuls == "fp8" else ""
        self._described = (
            f"{some}{parameter_count(self._architecture.shapes):,} parameters, {dtype.name} matmuls{fp8}",
            f"{job.rows} x {config.sequence_length} tokens a step, "
            f"peak {f'{flops / 1e9:,.0f} GFLOP/s' if flops else 'not known'} on {job.mesh.size} device(s)",
        )

    def tell(self, first: int) -> None:
        """Say what is trained, from which step on."""
        name, (model, step) = self._job.directory.name, self._described
        say(f"{name}: {model}, step {first:,} of {self._job.config.steps:,}, {step}")
        say(f"{name}: the allocator {allocator.described()}; programs are {environment.described()}")

    def begin(self) -> Tree:
        """The state that the training begins with: of another training, of given parameters, or fresh."""
        job, optimizer, architecture = self._job, self._optimizer, self._architecture
        if job.branch:
            return load_state(job.branch, self.target)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.target)
        compiled = partial(jax.jit, out_shardings=shardings)
        if not self._frozen and job.load is None:
            return compiled(lambda key: initial_state(architecture, optimizer, key))(jax.random.key(job.seed))
        if not self._frozen:
            return compiled(lambda params: with_params(params, optimizer), donate_argnums=0)(job.load())
        if job.begins is not None:
            begins = jax.device_put(job.begins, shardings["params"])
            return compiled(lambda begins: with_params(begins, optimizer))(begins)
        fresh = lambda key, frozen: with_magnitudes(frozen, architecture.trained(architecture.init(key)))  # noqa: E731
        return compiled(lambda *of: with_params(fresh(*of), optimizer))(jax.random.key(job.seed), self._frozen)

    def place(self, batch: Batch) -> Batch:
        """A batch of this host's rows, on the mesh."""
        return put_rows(self._job.mesh, batch)

    def step(self, state: Tree, batch: Batch) -> tuple[Tree, dict[str, jax.Array]]:
        """Dispatch a step: the next state, and metrics. The state is donated."""
        return self._step(state, batch, self._frozen)

    def open_window(self, state: Tree) -> Tree:
        """The state before a step whose text is other text than that of the steps before it."""
        return state | {"optimizer": open_window(state["optimizer"])}

    def is_usual(self, state: Tree, batch: Batch) -> bool:
        """Whether the model's loss of a batch is no outlier among those of the last updates. False without a bound."""
        sums, guard = jax.device_get(
            (self.evaluation(self.params(state), batch), state["optimizer"]._replace(inner=None))
        )
        bound = outlier_bound(guard.losses, guard.updates, self._job.config.optimizer.skip.deviations)
        return bool(jnp.isfinite(bound) & (sums.loss / sums.weight <= bound))

    def params(self, state: Tree) -> Tree:
        """The parameters of the model, its adapter among them."""
        return self._architecture.whole(state["params"], self._frozen)

    def check(self, state: Tree, batch: Batch, step: int) -> None:
        """Raise `WrongBits` if a device computes `step` wrong, or holds other bits than the others."""
        self._check(state, batch, step, self._frozen)

    def check_finite(self, state: Tree, step: int) -> None:
        """Raise `UserError` if a parameter is not finite. Steps never make them so; a base may have come so."""
        if not _all_finite(state["params"]):
            raise UserError(
                f"{self._job.directory}: the parameters are not finite at step {step:,}, so nothing was saved; the "
                "parameters that training started from, or a device, are broken"
            )


@jax.jit
def _all_finite(params: Tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
