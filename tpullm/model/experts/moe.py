"""A mixture of experts in place of the MLP: a router chooses a few experts for each token, and no token is dropped.

Each device along `expert` holds some experts whole, or their share along `tensor`. One half of the tokens is exchanged
while the other half is multiplied. Loads are counted in integers over the whole batch. A loss (`balance_loss`) or a
bias that each step moves (`balance_rate`) keeps them even, the same on any mesh.

Shapes: B batch, T length, D model width, F feed-forward width, E experts. On one device: M = B T tokens with k experts
each, R = M k pairs of a token and an expert, sorted by expert; G of the E experts, and S, the rows that it can receive
for them in a round.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.model.collectives import all_gather, all_gather_local, reduce_gradient
from tpullm.model.experts.exchange import (
    Pairs,
    all_to_all_dispatch,
    all_to_all_return,
    combine,
    contiguous_row,
    dispatch,
    has_ragged_all_to_all,
    plan_round,
    received_sizes,
    round_capacity,
    round_count,
    sent_in_round,
    sort_by_expert,
    varying_over,
)
from tpullm.model.experts.grouped import grouped_matmul
from tpullm.model.linear import Linear, parameter, vector_axes
from tpullm.model.mesh import RULES
from tpullm.model.mlp import MLP, activated, residual_scale
from tpullm.model.quantized import Quantized, gathered_local_matrix, is_quantized
from tpullm.recipe.schema import ModelConfig

# The name in a compiled program of the loop over all rounds but the first. Usually there are none.
FURTHER_ROUNDS = "further_rounds"


class Routing(NamedTuple):
    """What the router of a layer did with the tokens of each row, without padding.

    Attributes:
        loads: `[B, P, E]` int32, how many tokens chose each expert; P parts of a row, one for each device along it.
        scores: `[B, P, E]` float32, the sums of the tokens' scores; the scores of one token sum to 1.
    """

    loads: jax.Array
    scores: jax.Array


class Part(NamedTuple):
    """What the experts of a layer multiply with: a weight `[E, inputs, outputs]`, and what there may be beside it.

    `bias`: `[E, outputs]`; `adapter`: `[E, inputs, R]` and `[E, R, outputs]`, whose product is added to the weight.
    """

    weight: jax.Array | Quantized
    bias: jax.Array | None = None
    adapter: tuple[jax.Array, jax.Array] | None = None


class Experts(nnx.Module):
    """A weight `[E, inputs, outputs]`, and a bias `[E, outputs]` if there is one."""

    def __init__(self, config: ModelConfig, rngs, shape, axes, bias: bool, scale: float | None = None):
        experts, inputs, outputs = shape
        self.weight = parameter(rngs, shape, ("experts", *axes), scale or inputs**-0.5)
        self.axes, self.bias_axes = axes, vector_axes(axes[1:])
        self.reduce_dtype = config.gradients
        self.bias = parameter(rngs, (experts, outputs), ("experts", *self.bias_axes), 0.0) if bias else None
        self.inputs, self.adapter = 1, None  # see `adapter.with_adapters`

    def cast(self, dtype: jnp.dtype) -> Part:
        """The parts, sharded as at rest; a bias over the model width is whole, as it is added on tokens' devices.

        If gradients are reduced in float32, weight and bias stay in float32, and so do their gradients.
        """
        dtype = jnp.dtype("float32") if self.reduce_dtype == "float32" else dtype
        weight = self.weight[...]
        if not is_quantized(weight):
            weight = jax.reshard(weight.astype(dtype), RULES.spec("experts", *self.axes))
        part, adapter = Part(weight), self.adapter
        if self.bias is not None:
            experts = None if self.bias_axes == ("width",) else "experts"
            part = part._replace(bias=all_gather(self.bias[...], experts, *self.bias_axes, dtype=dtype))
        if adapter is None:
            return part
        first = jax.reshard(adapter.a[...].astype(dtype), RULES.spec(*adapter.axes_a))
        second = jax.reshard((adapter.scale * adapter.b[...]).astype(dtype), RULES.spec(*adapter.axes_b))
        return part._replace(adapter=(first, second))


class MixtureOfExperts(nnx.Module):
    """Dropless token-choice routing (Shazeer et al. 2017; Gale et al. 2023) to experts that are MLPs.

    Each device along `expert` holds some experts whole, or their share along `tensor`; tokens are sent there and back.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        E, D, F, bias = config.experts, config.width, config.mlp_width, config.mlp_bias
        self.config = config
        self.router = Linear(config, rngs, (D,), (E,), ("embed", "routes"), bias, matmuls="compute")
        # Moved by the step and not by a gradient: see training/losses.py.
        self.balance = parameter(rngs, (E,), ("routes",), 0.0) if config.balance_rate else None
        self.gate = Experts(config, rngs, (E, D, F), ("embed", "mlp"), bias)
        self.up = Experts(config, rngs, (E, D, F), ("embed", "mlp"), bias) if config.gated else None
        self.down = Experts(config, rngs, (E, F, D), ("mlp", "embed"), bias, residual_scale(F, config.layers))
        shared = dataclasses.replace(config, mlp_width=config.shared_experts * F)
        self.shared = MLP(shared, rngs) if config.shared_experts else None

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array | None = None) -> tuple[jax.Array, Routing | None]:
        """`[B, T, D]` to `[B, T, D]`, and the `Routing` if `real_BT` says which tokens are not padding."""
        spec, dtype = RULES.spec("batch", "time", None), x_BTD.dtype
        # A TPU would otherwise round float32 operands to bfloat16, and two experts with close scores would be swapped.
        with jax.default_matmul_precision("highest"):
            logits_BTE = self.router("btd,de->bte", x_BTD.astype(jnp.float32), spec)
        balance_E = None if self.balance is None else jax.lax.stop_gradient(self.balance[...])
        parts = [None if part is None else part.cast(dtype) for part in (self.gate, self.up, self.down)]
        # Routing depends on values, so each device sorts and multiplies its own tokens, in a shard_map.
        specs = spec, None if real_BT is None else Routing(spec, spec)
        tokens = (jax.reshard(x_BTD, spec), logits_BTE, real_BT, balance_E)
        out_BTD, routing = jax.shard_map(self._mix, out_specs=specs)(*tokens, *parts)
        return out_BTD if self.shared is None else out_BTD + self.shared(x_BTD), routing

    def _mix(self, x_BTD, logits_BTE, real_BT, balance_E, gate, up, down):
        """On one device: the output for its tokens, and its part of the `Routing`."""
        D, E = x_BTD.shape[-1], self.config.experts
        scores_ME, weights_Mk, experts_Mk = route_to_experts(logits_BTE.reshape(-1, E), self.config, balance_E)
        chosen_ME = jnp.any(experts_Mk[..., None] == jnp.arange(E), axis=1)
        # Devices along `tensor` compute the same tokens with their shares of F. Their gradients are summed here, for
        # tokens, which are fewer than pairs.
        tokens = varying_over(x_BTD.reshape(-1, D), RULES.mlp), varying_over(weights_Mk, RULES.mlp)
        dtype = x_BTD.dtype
        whole = _all_gather_part(down._replace(bias=None), self.down.axes, dtype)
        gate, up = (of and _all_gather_part(of, self.gate.axes, dtype) for of in (gate, up))
        mix = _on_one_device if jax.lax.axis_size(RULES.experts) == 1 else _over_devices
        out_MD = mix(self.config, *tokens, (gate, up, whole), experts_Mk)
        out_MD = jax.lax.psum(out_MD.astype(dtype), RULES.mlp)
        if down.bias is not None:  # added on the token's device, once, after the sum
            # In float32: a matmul on a TPU would round the weights.
            bias_MkD = down.bias.astype(dtype)[experts_Mk]
            out_MD += jnp.sum(weights_Mk[..., None] * bias_MkD.astype(jnp.float32), axis=1).astype(dtype)
        if real_BT is None:
            return out_MD.reshape(x_BTD.shape), None

        def of_rows(x_ME, dtype):
            x_BTE = x_ME.reshape(*real_BT.shape, -1)
            return jnp.sum(jnp.where(real_BT[..., None], x_BTE, 0), axis=1, keepdims=True, dtype=dtype)

        routing = Routing(of_rows(chosen_ME, jnp.int32), of_rows(scores_ME, jnp.float32))
        return out_MD.reshape(x_BTD.shape), routing


def _on_one_device(config, x_MD, weights_Mk, parts, experts_Mk):
    """The weighted sum over each token's experts, `[M, D]` float32, on a device that has all experts."""
    pairs, M = sort_by_expert(experts_Mk), x_MD.shape[0]
    weights_R = dispatch(weights_Mk.reshape(-1), pairs, weights_Mk.size)
    out_RD = _expert_mlp(config, dispatch(x_MD, pairs, M), weights_R, _pairs_per_expert(config, experts_Mk), *parts)
    return combine(out_RD, pairs, M)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_devices(config, x_MD, weights_Mk, parts, experts_Mk):
    """The same if experts are split over devices, in as many rounds as the most loaded device needs; usually one.

    A round has room for more than an even load (`round_capacity`). The worst load, all tokens to the experts of one
    device, is as many times an even one as there are devices; it takes more rounds, and no token is dropped. The
    backward pass recomputes each round, so none of its arrays are kept. The forward pass takes the tokens in two
    halves: the rows of one are in flight while those of the other are multiplied.
    """
    cut = [x_MD.shape[0] // 2] if x_MD.shape[0] > 1 else []
    halves = zip(*(jnp.split(x, cut) for x in (x_MD, weights_Mk, experts_Mk)), strict=True)

    def half(x_MD, weights_Mk, experts_Mk):
        plan = _round_plan(config, experts_Mk)
        return _sum_over_rounds(plan, lambda n: _round(config, plan, n, x_MD, weights_Mk, parts))

    return jnp.concatenate([half(*given) for given in halves])


def _over_devices_backward(config, saved, cotangent_MD):
    *inputs, experts_Mk = saved
    plan = _round_plan(config, experts_Mk)
    gradients = lambda n: jax.vjp(partial(_round, config, plan, n), *inputs)[1](cotangent_MD)  # noqa: E731
    return *_sum_over_rounds(plan, gradients), None


_over_devices.defvjp(lambda *given: (_over_devices(*given), given[1:]), _over_devices_backward)


class Plan(NamedTuple):
    """The pairs of some tokens, the chunk sizes of all devices, and how many rows a device can receive in a round."""

    pairs: Pairs
    counts_XE: jax.Array
    capacity: int


def _round_plan(config, experts_Mk):
    (M, k), devices = experts_Mk.shape, jax.lax.axis_size(RULES.experts)
    capacity = round_capacity(M * k, M * min(k, config.experts // devices), devices, has_ragged_all_to_all())
    pairs = sort_by_expert(experts_Mk)
    return Plan(pairs, jax.lax.all_gather(_pairs_per_expert(config, experts_Mk), RULES.experts), capacity)


def _pairs_per_expert(config, experts_Mk):
    """How many pairs each expert has, `[E]`."""
    return jnp.sum(experts_Mk.reshape(-1)[:, None] == jnp.arange(config.experts), axis=0, dtype=jnp.int32)


def _sum_over_rounds(plan, one):
    """The sum of `one` over all rounds. The first round is outside of the loop, so it needs no addition."""
    first = one(0)
    with jax.named_scope(FURTHER_ROUNDS):
        add = lambda n, total: jax.tree.map(jnp.add, total, one(n))  # noqa: E731
        return jax.lax.fori_loop(1, round_count(plan.counts_XE, plan.capacity), add, first)


def _round(config, plan, number, x_MD, weights_Mk, parts):
    """What one round adds to `_over_devices`.

    A row's weight is sent with it and multiplied in before the last matmul, so its gradient needs neither that matmul
    nor another exchange back.
    """
    (M, D), rows, exchange = x_MD.shape, weights_Mk.size, plan_round(plan.counts_XE, number, plan.capacity)
    pairs = plan.pairs._replace(used=sent_in_round(exchange, plan.pairs.inverse))
    there = lambda x_RD: all_to_all_dispatch(x_RD, exchange, rows, plan.capacity)  # noqa: E731
    x_SD = there(dispatch(x_MD.reshape(M, *contiguous_row(D)), pairs, M))
    weights_S1 = there(dispatch(weights_Mk.reshape(-1, 1), pairs, rows))
    out_SD = _expert_mlp(config, x_SD.reshape(-1, D), weights_S1[:, 0], received_sizes(exchange), *parts)
    out_RD = all_to_all_return(out_SD.reshape(x_SD.shape), exchange, rows, plan.capacity)
    return combine(out_RD, pairs, M).reshape(M, D)


def _expert_mlp(config, x_SD, weights_S, sizes_G, gate, up, down):
    """Each row through its expert, times its weight; with `tensor`, the partial sums over this device's share of F."""
    gate_SF = _multiply_by_experts(x_SD, gate, sizes_G)
    up_SF = None if up is None else _multiply_by_experts(x_SD, up, sizes_G)
    hidden_SF = activated(config.activation, config.swiglu_limit, gate_SF, up_SF, weights_S[:, None])
    return _multiply_by_experts(hidden_SF, down, sizes_G)


def route_to_experts(logits_ME: jax.Array, config: ModelConfig, balance_E: jax.Array | None = None):
    """Choose the experts of each token: those of the `experts_per_token` highest scores.

    Args:
        balance_E: added to the scores for this choice, but not to the weights (Wang et al. 2024).

    Returns:
        The scores `[M, E]` float32, which sum to 1 for each token; the weights `[M, k]` float32 of the chosen experts;
        their indices `[M, k]`.
    """
    sigmoid = config.router_scores == "sigmoid"  # DeepSeek-V3, equations 13 to 16
    scores_ME = jax.nn.sigmoid(logits_ME) if sigmoid else jax.nn.softmax(logits_ME, axis=-1)
    # Logits and scores have the same order, but two different logits may round to the same score.
    wanted_ME = logits_ME if balance_E is None else scores_ME + balance_E
    _, experts_Mk = jax.lax.top_k(jax.lax.stop_gradient(wanted_ME), config.experts_per_token)
    if config.normalize_router and not sigmoid:
        weights_Mk = jax.nn.softmax(jnp.take_along_axis(logits_ME, experts_Mk, axis=-1), axis=-1)
    else:
        weights_Mk = jnp.take_along_axis(scores_ME, experts_Mk, axis=-1)
        if config.normalize_router:
            weights_Mk /= weights_Mk.sum(axis=-1, keepdims=True)
    if sigmoid:
        scores_ME /= scores_ME.sum(axis=-1, keepdims=True)
    return scores_ME, weights_Mk * config.router_scale, experts_Mk


# Mesh axes along which devices have other tokens and the same experts, without `embed`, which splits a weight at rest.
REPLICA_AXES = tuple(name for name in (*RULES.batch, RULES.time) if name not in (RULES.embed, RULES.experts))


def _all_gather_part(part: Part, axes, dtype) -> Part:
    """The part of this device's experts in `dtype`, whole along `embed` (FSDP's all-gather).

    Inside the shard_map, so that the weight's gradient is reduced by a reduce-scatter along `embed` and then by an
    all-reduce over the other axes, in the type that the weight comes in.
    """
    weight, bias, adapter = part
    if bias is not None:
        bias = varying_over(bias, *REPLICA_AXES, RULES.embed).astype(dtype)
    if adapter is not None:
        each = ((axes[0], "rank"), ("rank", axes[1]))
        adapter = tuple(_all_gather_weight(axes, dtype, of.dtype, of) for of, axes in zip(adapter, each, strict=True))
    if is_quantized(weight):
        own = jax.tree.map(lambda part: varying_over(part, *_replica_axes(axes)), weight)
        return Part(gathered_local_matrix(own, "experts", *axes, dtype=dtype), bias, adapter)
    return Part(_all_gather_weight(axes, dtype, weight.dtype, weight), bias, adapter)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _all_gather_weight(axes, dtype, reduce_dtype, weight):
    own = varying_over(weight.astype(dtype), *_replica_axes(axes))
    return all_gather_local(own, "experts", *axes) if "embed" in axes else own


def _all_gather_weight_backward(axes, dtype, reduce_dtype, saved, cotangent):
    over = (*([RULES.embed] if "embed" in axes else []), *_replica_axes(axes))
    return (reduce_gradient(cotangent.astype(reduce_dtype), "experts", *axes, over=over),)


def _replica_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Mesh axes along which devices hold the same of a weight and see other tokens, or another part of the MLP.

    A matrix of an adapter is not split along the width of the model, or not along that of the MLP.
    """
    whole = [axis for name, axis in (("mlp", RULES.mlp), ("embed", RULES.embed)) if name not in axes]
    return (*REPLICA_AXES, *whole)


_all_gather_weight.defvjp(lambda *given: (_all_gather_weight(*given), None), _all_gather_weight_backward)


def _multiply_by_experts(x, part: Part, sizes_G):
    """Each row times the weight of its expert. Rows are sorted by expert, `sizes_G` of each; others are undefined."""
    out = grouped_matmul(x, part.weight, sizes_G)
    if part.adapter is not None:
        first, second = part.adapter
        out += grouped_matmul(grouped_matmul(x, first, sizes_G), second, sizes_G)
    if part.bias is None:
        return out
    experts_S = jnp.sum(jnp.arange(x.shape[0])[:, None] >= jnp.cumsum(sizes_G), axis=1)
    # The gradient of rows beyond the groups is dropped.
    return out + part.bias.at[experts_S].get(mode="fill", fill_value=0)
