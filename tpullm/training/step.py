"""The state of a training, and the programs of a step, `(state, batch) -> state, metrics`, and of an evaluation.

The state is a plain dict of arrays. With an adapter it holds the adapter alone. The frozen matrices are the third
argument of the step, and in memory once, in the type of the matmuls.

A step is pure, compiled once, and its state is donated. Its loss is a sum of weighted losses, divided by the weight of
the whole batch. So micro-batches, padding and any mesh give the same number. A loss that needs the whole batch before
its gradient (KTO's divergence) gets it from a forward pass over all micro-batches.

With `norms_every` a step also returns the norms of parameters, gradient and update, of each part of each layer.

Shapes: B batch, T length, A micro-batches, L layers, G parts of a layer, N named parts of the model.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpullm.data.batch import Batch, MixedBatch, PairBatch, TaughtBatch
from tpullm.model.architecture import Architecture, Tree
from tpullm.model.mesh import RULES
from tpullm.model.platform import compiler_options
from tpullm.model.rows import to_zigzag_order
from tpullm.recipe.schema import ModelConfig, TrainConfig
from tpullm.training.losses import Sum, Sums, balance_losses, cross_entropy, expert_load_metrics, rebalanced_experts
from tpullm.training.objectives.distillation import taught_loss
from tpullm.training.objectives.policy import answer_count, answer_loss
from tpullm.training.objectives.preferences import kto_divergence, pair_count, pair_loss
from tpullm.training.optimizer.chain import applied_unless_skipped

jax.tree_util.register_dataclass(Batch)


def initial_state(architecture: Architecture, optimizer: optax.GradientTransformation, key: jax.Array) -> Tree:
    """Step 0: `{"params", "optimizer", "step"}`, of the parameters that are trained."""
    return with_params(architecture.trained(architecture.init(key)), optimizer)


def with_params(params: Tree, optimizer: optax.GradientTransformation) -> Tree:
    """Step 0 of a stage that starts from these parameters."""
    return {"params": params, "optimizer": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def abstract_state(architecture: Architecture, optimizer: optax.GradientTransformation, mesh: Mesh) -> Tree:
    """Shapes, types and shardings of the state: the target of restoring a checkpoint, from any mesh.

    The optimizer's array of a parameter (same path in the tree, as many dimensions) is sharded like the parameter. If
    it is reduced over a dimension, that dimension has size 1 and is not sharded.
    """
    shapes = jax.eval_shape(lambda params: with_params(params, optimizer), architecture.trained(architecture.shapes))
    parameters = flatten_dict(architecture.trained(architecture.placed(mesh)))

    def place(path, leaf):
        names = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        of = next((parameters[names[i:]] for i in range(len(names)) if names[i:] in parameters), None)
        spec = PartitionSpec(*[None] * leaf.ndim)
        if of is not None and leaf.ndim == len(of.shape):
            sizes = zip(leaf.shape, of.shape, of.sharding.spec, strict=True)
            spec = PartitionSpec(*(axis if size == whole else None for size, whole, axis in sizes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, shapes)


def batch_loss(architecture: Architecture, params: Tree, batch: Batch, *, dtype, z_loss=0.0, chunks=0, key=None):
    """The summed loss of a batch and its `Sums`; divide by the global weight to get a mean.

    Of old text beside answers (`with_text_weights`), the `Sums` have only `text_loss`.
    """
    options = {"dtype": dtype, "chunks": chunks, "key": key}
    if isinstance(batch, MixedBatch):
        of_batch = pair_loss if isinstance(batch, PairBatch) else answer_loss
        loss, sums = of_batch(architecture, params, replace(batch, beside=None), **options)
        if batch.beside is None:
            return loss, sums
        of_text, text = batch_loss(architecture, params, batch.beside, **options)
        return loss + of_text, sums._replace(told=sums.told | {"text_loss": Sum(text.loss, text.weight)})
    model, batch = architecture.model(params), jax.tree.map(to_zigzag_order, batch)
    config, taught = architecture.config, isinstance(batch, TaughtBatch)
    branched = taught and batch.branched
    out = model(batch.inputs, batch.segment_ids, batch.positions, dtype=dtype, key=key, branched=branched)
    with jax.named_scope("loss"):
        arguments, options = (out.hidden, model.output_parameter()), (config.logit_softcap, config.gradients, chunks)
        if taught:
            loss, sums = taught_loss(*arguments, batch, *options)
        else:
            loss, sums = cross_entropy(*arguments, batch.targets, batch.weights, z_loss, *options)
    if out.routing is None:
        return loss, sums
    # Each token has the balance loss of its row, so this too is a weighted sum to divide by the global weight.
    of_rows_B = balance_losses(out.routing, (batch.segment_ids > 0).sum(axis=1), config)
    balance = jnp.sum(of_rows_B * batch.weights.sum(axis=1))
    loss, loads = loss + config.balance_loss * balance, out.routing.loads.sum(axis=(1, 2))
    return loss, sums._replace(balance=balance, loads=loads)


def make_step(
    architecture: Architecture, optimizer: optax.GradientTransformationExtraArgs, config: TrainConfig, dtype, seed: int
):
    """The compiled step function; `optimizer` is one that skips bad steps (`optimizer.skip`).

    Its third argument are the parameters that are not trained, if the architecture has an adapter.

    The gradient is that of `sum(weights * loss) / sum(weights)` over the whole batch, however it is cut into
    `config.accumulation` micro-batches.
    """

    def gradients(params: tuple[Tree, Tree], batch: Batch, key: jax.Array) -> tuple[Tree, Sums]:
        trained, frozen = params

        def loss(trained):
            options = {"z_loss": config.optimizer.z_loss, "chunks": config.loss_chunks}
            return batch_loss(architecture, architecture.whole(trained, frozen), batch, dtype=dtype, key=key, **options)

        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        return grads, sums

    def step(state: Tree, batch: Batch, frozen: Tree = ()) -> tuple[Tree, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"]) if architecture.config.dropout else None
        whole = architecture.whole(state["params"], frozen)
        batch = with_text_weights(batch)
        batch = with_divergence(architecture, whole, batch, config.accumulation, dtype, config.loss_chunks, key)
        grads, sums = accumulate_gradients(gradients, config.accumulation, (state["params"], frozen), batch, key)
        grads = jax.tree.map(lambda g: g / sums.weight, grads)
        loss = sums.loss / sums.weight
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"], loss=loss)
            params = optax.apply_updates(state["params"], updates)
            if architecture.config.balance_rate and not architecture.adapter and sums.loads is not None:
                params = rebalanced_experts(params, state["params"], sums.loads, architecture.config.balance_rate)
            params = applied_unless_skipped(params, state["params"], optimizer_state)
        metrics = {
            "loss": loss,
            **({} if sums.correct is None else {"accuracy": sums.correct / sums.weight}),
            "grad_norm": optax.tree.norm(grads),
            "tokens": sums.weight,
            "skipped": optimizer_state.skipped,
            "updates": optimizer_state.updates,
        }
        if config.norms_every:
            metrics["norms"] = step_norms(params, grads, updates, optimizer_state.skipped, architecture.config)
        if sums.told is not None:
            metrics["told"] = {name: total / weight for name, (total, weight) in sums.told.items()}
        if sums.loads is not None:
            metrics["balance_loss"] = sums.balance / sums.weight / len(sums.loads)
            metrics |= expert_load_metrics(sums.loads)
        return {"params": params, "optimizer": optimizer_state, "step": state["step"] + 1}, metrics

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options(config.compiler) or None)


@functools.cache  # the stages of one command share the compiled program
def make_evaluation(architecture: Architecture, dtype, accumulation: int = 1, chunks: int = 0):
    """The compiled `(params, batch) -> Sums`, without dropout or gradients.

    Args:
        accumulation, chunks: as in the training's step, which then has a larger peak of memory than the evaluation.
    """

    def sums(params: Tree, batch: Batch, key: None) -> Sums:
        return batch_loss(architecture, params, batch, dtype=dtype, chunks=chunks)[1]

    def evaluate(params: Tree, batch: Batch) -> Sums:
        batch = with_divergence(architecture, params, batch, accumulation, dtype, chunks)
        return accumulate_gradients(sums, accumulation, params, batch, None)

    return jax.jit(evaluate)


def part_names(params: Tree, config: ModelConfig) -> list[str]:
    """The names of the norms, N of them, in the order of `part_norms`: `embedding`, ..., `layer_0.attention`, ..."""
    alone, found = sorted(params.keys() - config.stacks.keys()), []
    for name, (_, numbers) in config.stacks.items():
        found += [f"layer_{layer}.{part}" for layer in numbers for part in sorted(params.get(name, ()))]
    return [*alone, *found]


def part_norms(tree: Tree, config: ModelConfig) -> jax.Array:
    """The norm of each part, `[N]` float32, of parameters, or of a tree like them. Layers are stacked: `[L, ...]`."""

    def squares(part: Tree, stacked: bool) -> jax.Array:
        each = (jnp.square(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(part))
        return sum(jnp.sum(square, axis=tuple(range(stacked, square.ndim))) for square in each)

    alone_N = [squares(tree[name], False)[None] for name in sorted(tree.keys() - config.stacks.keys())]
    stacks = [tree[name] for name in config.stacks if name in tree]
    parts = [[squares(stacked[part], True) for part in sorted(stacked)] for stacked in stacks]
    return jnp.sqrt(jnp.concatenate([*alone_N, *(jnp.stack(of_L, axis=1).reshape(-1) for of_L in parts)]))


def step_norms(params: Tree, grads: Tree, updates: Tree, skipped: jax.Array, config: ModelConfig) -> jax.Array:
    """The norms of a step, `[3, N]`: of the parameters after it, the gradient before it is clipped, and the update.

    Args:
        skipped: whether the step was skipped (not 0): its update is 0.
    """
    params_N, grads_N, updates_N = (part_norms(tree, config) for tree in (params, grads, updates))
    return jnp.stack([params_N, grads_N, jnp.where(skipped > 0, 0.0, updates_N)])


def with_text_weights(batch: Batch) -> Batch:
    """The batch with the weights that its old text has in the summed loss, of all micro-batches.

    The step divides that by the number of pairs or answers, or of their tokens. Times that number, the weights are
    those of a mean over the tokens of the text, which counts `share / (1 - share)` times as much as the answers' mean.
    """
    if not isinstance(batch, MixedBatch) or batch.beside is None:
        return batch
    count = pair_count(batch) if isinstance(batch, PairBatch) else answer_count(batch)
    weights = batch.beside.weights
    weight = batch.share / (1 - batch.share) * count / jnp.sum(weights)
    return replace(batch, beside=replace(batch.beside, weights=weights * weight))


def with_divergence(
    architecture: Architecture, params: Tree, batch: Batch, parts: int, dtype, chunks: int, key=None
) -> Batch:
    """The batch with what its micro-batches have to know of all of it: of judged answers, KTO's divergence.

    One micro-batch finds it in its own forward pass. Several need a forward pass before.
    """
    if parts == 1 or not (isinstance(batch, PairBatch) and batch.settings.kind == "kto"):
        return batch

    def of_part(params: Tree, batch: PairBatch, key) -> Sum:
        return kto_divergence(architecture, params, batch, dtype=dtype, chunks=chunks, key=key)

    total, count = accumulate_gradients(of_part, parts, params, batch, key)
    return replace(batch, kl=jnp.zeros_like(batch.weights) + total / jnp.maximum(count, 1))


def accumulate_gradients(gradients: Callable, parts: int, params: Any, batch: Batch, key) -> tuple[Tree, Sums]:
    """Sum `gradients` over `parts` micro-batches `[B / parts, T]`, one after the other.

    `reshape(B/A, A, T).swapaxes(0, 1)` takes every A-th row, so each micro-batch has rows of all devices.
    """
    if parts == 1:
        return gradients(params, batch, key)
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    # With one row a device, JAX drops mesh axes of size 1 from the sharding; arrays added to it later have them.
    micro = jax.reshard(micro, RULES.spec(None, "batch", "time"))
    keys = None if key is None else jax.random.split(key, parts)

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    rest = jax.tree.map(lambda x: x[1:], (micro, keys))
    # A barrier orders the rest after the first. For two parts XLA would run both forward passes first and keep
    # the activations of both (125 M parameters with 6 layers on v5e 2x2: 5.6 GiB a chip, and 3.0 with the barrier).
    total, params = jax.lax.optimization_barrier((gradients(params, *first), params))

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradients(params, *part)), None

    total, _ = jax.lax.scan(add, total, rest)
    return total
