"""The MLP as a mixture of experts: each token goes through the few that its router chooses; none is dropped.

Shapes: B batch, T length, D model width, F feed-forward width, E experts; of one device M = B T tokens, k experts of
each, R = M k pairs of both, sorted by expert; G experts of those E that are here, S pairs that may come for them.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.mesh.collectives import gather, gathered, summed
from tpullm.mesh.layout import RULES
from tpullm.model.experts.exchange import (
    counted,
    group_sizes,
    has_ragged_exchange,
    most_in_a_round,
    of_round,
    returned,
    rounds,
    row_shape,
    sent,
    travels,
    varying,
)
from tpullm.model.experts.pairs import Pairs, pairs, spread, together
from tpullm.model.linear import Linear, parameter, small
from tpullm.model.mlp import MLP, activated
from tpullm.model.platform import product_dtype
from tpullm.model.residual import residual_scale
from tpullm.recipe.schema import ModelConfig

# The name in a program of the loop over all rounds but the first, of which there usually are none.
FURTHER_ROUNDS = "further_rounds"


class Routing(NamedTuple):
    """What the router of a layer did with the real tokens of each row; padding counts in neither.

    Attributes:
        loads: `[B, P, E]` int32, how many chose each expert; P parts of the time, one for each device along it.
        scores: `[B, P, E]` float32, the sums of their scores, which sum to 1 over the experts for each token.
    """

    loads: jax.Array
    scores: jax.Array


class Experts(nnx.Module):
    """A weight `[E, inputs, outputs]`, and a bias `[E, outputs]` if there is one."""

    def __init__(self, config: ModelConfig, rngs, shape, axes, bias: bool, scale: float | None = None):
        experts, inputs, outputs = shape
        self.weight = parameter(rngs, shape, ("experts", *axes), scale or inputs**-0.5)
        self.axes, self.bias_axes = axes, small(axes[1:])
        self.summed_in = config.gradients
        self.bias = parameter(rngs, (experts, outputs), ("experts", *self.bias_axes), 0.0) if bias else None

    def cast(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
        """Weight and bias where they rest; a bias of the width whole, as it is added where the tokens are.

        If gradients are summed in float32, the weight is in that type still, and so is what comes back to it.
        """
        dtype = jnp.dtype("float32") if self.summed_in == "float32" else dtype
        weight = jax.reshard(self.weight[...].astype(dtype), RULES.spec("experts", *self.axes))
        if self.bias is None:
            return weight, None
        experts = None if self.bias_axes == ("width",) else "experts"
        return weight, gather(self.bias[...], experts, *self.bias_axes, dtype=dtype)


class MixtureOfExperts(nnx.Module):
    """Dropless token-choice routing (Shazeer et al. 2017; Gale et al. 2023) to experts that are MLPs.

    Each device along `expert` holds some experts whole, or their share along `tensor`; tokens travel there and back.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        E, D, F, bias = config.experts, config.width, config.mlp_width, config.mlp_bias
        self.config = config
        self.router = Linear(config, rngs, (D,), (E,), ("embed", "routes"), bias)
        # Moved by the step and not by a gradient: see training/balance.py.
        self.balance = parameter(rngs, (E,), ("routes",), 0.0) if config.balance_rate else None
        self.gate = Experts(config, rngs, (E, D, F), ("embed", "mlp"), bias)
        self.up = Experts(config, rngs, (E, D, F), ("embed", "mlp"), bias) if config.gated else None
        self.down = Experts(config, rngs, (E, F, D), ("mlp", "embed"), bias, residual_scale(F, config.layers))
        shared = dataclasses.replace(config, mlp_width=config.shared_experts * F)
        self.shared = MLP(shared, rngs) if config.shared_experts else None

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array | None = None) -> tuple[jax.Array, Routing | None]:
        """`[B, T, D]` to `[B, T, D]`, and the `Routing` if `real_BT` says which tokens are no padding."""
        spec, dtype = RULES.spec("batch", "time", None), x_BTD.dtype
        # In float32, really: a TPU would round the operands to bfloat16, and two close experts would change places.
        with jax.default_matmul_precision("highest"):
            logits_BTE = self.router("btd,de->bte", x_BTD.astype(jnp.float32), spec)
        balance_E = None if self.balance is None else jax.lax.stop_gradient(self.balance[...])
        parts = [None if part is None else part.cast(dtype) for part in (self.gate, self.up, self.down)]
        # Where a token goes depends on its numbers, so each device sorts and multiplies tokens by hand.
        specs = spec, None if real_BT is None else Routing(spec, spec)
        tokens = (jax.reshard(x_BTD, spec), logits_BTE, real_BT, balance_E)
        out_BTD, routing = jax.shard_map(self._mixed, out_specs=specs)(*tokens, *parts)
        return out_BTD if self.shared is None else out_BTD + self.shared(x_BTD), routing

    def _mixed(self, x_BTD, logits_BTE, real_BT, balance_E, gate, up, down):
        """What one device adds to its tokens, and its part of the `Routing`."""
        D, E = x_BTD.shape[-1], self.config.experts
        scores_ME, weights_Mk, experts_Mk = routed(logits_BTE.reshape(-1, E), self.config, balance_E)
        chosen_ME = jnp.any(experts_Mk[..., None] == jnp.arange(E), axis=1)
        # Every device along `tensor` does the same with its share F: gradients are summed here, over tokens and not
        # over all pairs.
        tokens = varying(x_BTD.reshape(-1, D), RULES.mlp), varying(weights_Mk, RULES.mlp)
        dtype = x_BTD.dtype
        down_whole = _whole((down[0], None), self.down.axes, dtype)
        parts = _whole(gate, self.gate.axes, dtype), up and _whole(up, self.up.axes, dtype), down_whole
        mix = _here if jax.lax.axis_size(RULES.experts) == 1 else _elsewhere
        out_MD = mix(self.config, *tokens, parts, experts_Mk)
        out_MD = jax.lax.psum(out_MD.astype(dtype), RULES.mlp)
        if down[1] is not None:  # added at home and once, after the sum
            out_MD += _weighted(weights_Mk, down[1].astype(dtype)[experts_Mk]).astype(dtype)
        routing = None if real_BT is None else _routing(real_BT, chosen_ME, scores_ME)
        return out_MD.reshape(x_BTD.shape), routing


def _here(config, x_MD, weights_Mk, parts, experts_Mk):
    """The weighted sum over each token's experts, `[M, D]` float32, on a device that has all of them."""
    of, M = pairs(experts_Mk), x_MD.shape[0]
    weights_R = spread(weights_Mk.reshape(-1), of, weights_Mk.size)
    out_RD = _mlp(config, spread(x_MD, of, M), weights_R, _sizes(config, experts_Mk), *parts)
    return together(out_RD, of, M)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _elsewhere(config, x_MD, weights_Mk, parts, experts_Mk):
    """The same where experts are spread over devices, in as many rounds as the most loaded device needs.

    Usually one: buffers hold more than an even load (`most_in_a_round`), and not what arrives if all tokens choose one
    device's experts, which is as many times more as there are devices; yet none is dropped. The backward pass computes
    each round anew, so that nothing is kept of it. The forward pass takes the tokens in two halves: one's rows travel
    while the other's are multiplied.
    """
    cut = [x_MD.shape[0] // 2] if x_MD.shape[0] > 1 else []
    halves = zip(*(jnp.split(x, cut) for x in (x_MD, weights_Mk, experts_Mk)), strict=True)
    return jnp.concatenate([_half(config, *half, parts) for half in halves])


def _half(config, x_MD, weights_Mk, experts_Mk, parts):
    trip = _trip(config, experts_Mk)
    return _in_rounds(trip, lambda n: _round(config, trip, n, x_MD, weights_Mk, parts))


def _elsewhere_forward(config, *arguments):
    return _elsewhere(config, *arguments), arguments


def _elsewhere_backward(config, saved, cotangent_MD):
    *inputs, experts_Mk = saved
    trip = _trip(config, experts_Mk)
    gradients = lambda n: jax.vjp(partial(_round, config, trip, n), *inputs)[1](cotangent_MD)  # noqa: E731
    return *_in_rounds(trip, gradients), None


_elsewhere.defvjp(_elsewhere_forward, _elsewhere_backward)


class Trip(NamedTuple):
    """The pairs of some tokens, the sizes of all devices' pieces of them, and how many rows may arrive in a round."""

    of: Pairs
    counts_XE: jax.Array
    most: int


def _trip(config, experts_Mk):
    (M, k), devices = experts_Mk.shape, jax.lax.axis_size(RULES.experts)
    most = most_in_a_round(M * k, M * min(k, config.experts // devices), devices, has_ragged_exchange())
    return Trip(pairs(experts_Mk), counted(_sizes(config, experts_Mk)), most)


def _sizes(config, experts_Mk):
    """How many pairs each expert has, `[E]`."""
    return jnp.sum(experts_Mk.reshape(-1)[:, None] == jnp.arange(config.experts), axis=0, dtype=jnp.int32)


def _in_rounds(trip, one):
    """The sum of `one` over all rounds. The first is outside of the loop: nothing is added up in it."""
    first = one(0)
    with jax.named_scope(FURTHER_ROUNDS):
        add = lambda n, total: jax.tree.map(jnp.add, total, one(n))  # noqa: E731
        return jax.lax.fori_loop(1, rounds(trip.counts_XE, trip.most), add, first)


def _round(config, trip, number, x_MD, weights_Mk, parts):
    """What one round adds to `_elsewhere`.

    A row's weight travels with it: multiplied in before the last product, its gradient needs neither that product nor
    the way back once more.
    """
    (M, D), rows, route = x_MD.shape, weights_Mk.size, of_round(trip.counts_XE, number, trip.most)
    of = trip.of._replace(used=travels(route, trip.of.inverse))
    x_SD = sent(spread(x_MD.reshape(M, *row_shape(D)), of, M), route, rows, trip.most)
    weights_S1 = sent(spread(weights_Mk.reshape(-1, 1), of, rows), route, rows, trip.most)
    out_SD = _mlp(config, x_SD.reshape(-1, D), weights_S1[:, 0], group_sizes(route), *parts)
    out_RD = returned(out_SD.reshape(x_SD.shape), route, rows, trip.most)
    return together(out_RD, of, M).reshape(M, D)


def _mlp(config, x_SD, weights_S, sizes_G, gate, up, down):
    """Each row through its expert, times its weight; of the product with `down` the share F of this device."""
    gate_SF = _grouped(x_SD, *gate, sizes_G)
    up_SF = None if up is None else _grouped(x_SD, *up, sizes_G)
    hidden_SF = activated(config.activation, config.swiglu_limit, gate_SF, up_SF, weights_S[:, None])
    return _grouped(hidden_SF, *down, sizes_G)


def routed(logits_ME: jax.Array, config: ModelConfig, balance_E: jax.Array | None = None):
    """Where each token goes: to the `experts_per_token` highest scores.

    Args:
        balance_E: added to the scores for this choice, and not in the weights (Wang et al. 2024).

    Returns:
        The scores `[M, E]` float32, of which a token's sum to 1; the weights `[M, k]` float32 of its experts; their
        numbers `[M, k]`.
    """
    sigmoid = config.router_scores == "sigmoid"  # DeepSeek-V3, equations 13 to 16
    scores_ME = jax.nn.sigmoid(logits_ME) if sigmoid else jax.nn.softmax(logits_ME, axis=-1)
    # The order of the logits is that of the scores, where these have not been rounded to the same number.
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


def _routing(real_BT, chosen_ME, scores_ME) -> Routing:
    def of_rows(x_ME, dtype):
        x_BTE = x_ME.reshape(*real_BT.shape, -1)
        return jnp.sum(jnp.where(real_BT[..., None], x_BTE, 0), axis=1, keepdims=True, dtype=dtype)

    return Routing(of_rows(chosen_ME, jnp.int32), of_rows(scores_ME, jnp.float32))


# Mesh axes along which devices have other tokens and the same experts, beside the one that splits a weight at rest.
OTHERS = tuple(name for name in (*RULES.batch, RULES.time) if name not in (RULES.embed, RULES.experts))


def _whole(part, axes, dtype):
    """Weight and bias of this device's experts in `dtype`, whole along `embed`: FSDP's all-gather of them alone.

    Inside the shard_map, so that the gradient is summed by a reduce-scatter and only then over the other axes; in the
    type that weight and bias come in.
    """
    weight, bias = part
    weight = _whole_weight(axes, dtype, weight.dtype, weight)
    return weight, None if bias is None else varying(bias, *OTHERS, RULES.embed).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _whole_weight(axes, dtype, summed_in, weight):
    return gathered(varying(weight.astype(dtype), *OTHERS), "experts", *axes)


def _whole_weight_forward(axes, dtype, summed_in, weight):
    return _whole_weight(axes, dtype, summed_in, weight), None


def _whole_weight_backward(axes, dtype, summed_in, saved, cotangent):
    return (summed(cotangent.astype(summed_in), "experts", *axes, over=(RULES.embed, *OTHERS)),)


_whole_weight.defvjp(_whole_weight_forward, _whole_weight_backward)


def _grouped(x, weight, bias, sizes_G):
    """Each row times the weight of its expert; rows are sorted by expert, `sizes_G` of each. After these is anything.

    XLA for a TPU has a grouped product, forward and for both gradients: a kernel that neither reads nor writes rows
    beyond the groups (it selects by row, in operands as in results; libtpu 0.0.50). For a CPU it multiplies each row
    with every expert and masks: 2,048 rows of 384 by 512 took 4 ms with one expert, 34 with 8 and 181 with 32, and E
    times the memory of the rows.
    """
    out = jax.lax.ragged_dot(x, weight, sizes_G, preferred_element_type=product_dtype(x.dtype)).astype(x.dtype)
    if bias is None:
        return out
    experts_S = jnp.sum(jnp.arange(x.shape[0])[:, None] >= jnp.cumsum(sizes_G), axis=1)
    return out + bias.at[experts_S].get(mode="fill", fill_value=0)  # the gradient of what is beyond them is dropped


def _weighted(weights_Mk, x_MkD):
    """The sum over a token's experts, in float32: a product of matrices on a TPU would round the weights."""
    return jnp.sum(weights_Mk[..., None] * x_MkD.astype(jnp.float32), axis=1)
