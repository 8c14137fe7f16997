"""What a training is judged by: held-out loss, held-out prompts, and the tasks that the recipe asks for.

An evaluation works in the micro-batches of the step, so it needs less memory than the step. Each checkpoint comes
before the evaluation after its step; an evaluation that was cut off is made when the training resumes. Between the
batches of a measurement the hosts agree whether a stop came. If so, the training is saved at this step and measures
after it has resumed: a row of the log is whole or not there.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tpullm.data.batch import Batch, PairBatch, TaughtBatch
from tpullm.model.rows import put_rows
from tpullm.system.cluster import hosts
from tpullm.training.job import Job, Tree
from tpullm.training.meter import Meter
from tpullm.training.pace import Phases
from tpullm.training.programs import Programs


class CutOff(Exception):
    """A stop came during a measurement."""


class Evaluations:
    """The evaluations and the measurements of one training, on every host the same.

    An evaluation is the loss of held-out text and the answers to held-out prompts. A measurement are the figures of
    tasks, and samples.

    Args:
        stopped: whether a signal came.
    """

    def __init__(self, job: Job, programs: Programs, meter: Meter, phase: Phases, stopped: Callable[[], bool]):
        self._job, self._programs, self._meter, self._phase, self._stopped = job, programs, meter, phase, stopped

    def due(self, step: int) -> bool:
        """Whether the model is evaluated after `step`."""
        # At step 0 too, if the model can something already: it answers, or it is an adapter's base.
        every, begun = self._job.config.evaluate_every, bool(step or self._job.answers or self._job.before)
        return step == self._job.config.steps or bool(every and begun and step % every == 0)

    def measures(self, step: int) -> bool:
        """Whether the model is measured after `step`."""
        return self._job.measures is not None and self._job.measures.due(step)

    def evaluate(self, step: int, state: Tree) -> dict:
        """Evaluate the model, and write the row."""
        job = self._job
        with self._phase("evaluate"):
            params, program = self._programs.params(state), self._phase.watchdog.each(self._programs.evaluation)
            results = held_out_losses(program, params, job.mesh, job.evaluations, job.bytes_per_token)
            if job.answers:
                results |= job.answers.evaluate(params)
        self._meter.evaluation(step, results)
        return results

    def measure(self, step: int, state: Tree) -> bool:
        """Measure the model, and write the row; False if a stop came before the end, so that there is none."""

        def between() -> None:
            if any(hosts.gather("measure", self._stopped())):
                raise CutOff

        with self._phase("evaluate"), contextlib.suppress(CutOff):
            params = self._programs.params(state)
            row = self._job.measures.measure(step, params, self._phase.watchdog.each(between))
            self._meter.measured(step, row)
            return True
        return False


@jax.jit
def _text_bytes(bytes_per_token_V: jax.Array, batch: Batch) -> jax.Array:
    """UTF-8 bytes of a batch's targets of weight > 0, over all hosts; int32, exact."""
    sharding = jax.typeof(batch.targets).sharding
    bytes_BT = bytes_per_token_V.astype(jnp.int32).at[batch.targets].get(out_sharding=sharding)
    return jnp.sum(jnp.where(batch.weights > 0, bytes_BT, 0))


def held_out_losses(
    evaluate, params: Tree, mesh: Mesh, batches: Mapping[str, Iterable[Batch]], bytes_per_token: np.ndarray
) -> dict[str, dict[str, float]]:
    """`eval_loss` (nats a token) and `eval_bits_per_byte` of each source.

    Bits per byte include the loss of end-of-document tokens, and divide by the bytes of the text alone. Of preferences
    the loss is a mean over pairs, and `eval_accuracy` the share of pairs whose chosen answer wins; of judged answers it
    is the share of those that are judged right. Where a teacher has said how likely each token is, `eval_divergence` is
    the loss against that, nats a token.

    Args:
        evaluate: of `step.make_evaluation`.
        bytes_per_token: UTF-8 bytes of each token id, `[V]`.
    """
    found: dict[str, dict[str, float]] = {"eval_loss": {}, "eval_bits_per_byte": {}}
    for source, source_batches in batches.items():
        total, batch = Counter(), None
        for batch in source_batches:
            if isinstance(batch, TaughtBatch):
                total["divergence"] += float(evaluate(params, put_rows(mesh, batch)).loss)
                batch = batch.plain
            placed = put_rows(mesh, batch)
            sums, batch_bytes = jax.device_get((evaluate(params, placed), _text_bytes(bytes_per_token, placed)))
            total.update(loss=float(sums.loss), weight=float(sums.weight), correct=float(sums.correct))
            total["bytes"] += float(batch_bytes)
        weight = max(total["weight"], 1.0)
        found["eval_loss"][source] = total["loss"] / weight
        if isinstance(batch, PairBatch):
            found.setdefault("eval_accuracy", {})[source] = total["correct"] / weight
        else:
            found["eval_bits_per_byte"][source] = total["loss"] / np.log(2) / max(total["bytes"], 1.0)
        if "divergence" in total:
            found.setdefault("eval_divergence", {})[source] = total["divergence"] / weight
    return found
