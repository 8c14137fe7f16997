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

from tpullm.config import ModelConfig
from tpullm.model.exchange import by_expert, of_round, permuted, returned, rounds, sent, varying, whole_route
from tpullm.model.layers import MLP, Linear, activated, parameter, residual_scale, small
from tpullm.model.platform import product_dtype
from tpullm.sharding import AXES, RULES, gather, gathered, summed


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
        order_R = jnp.argsort(experts_Mk.reshape(-1))
        sorting = Sorting(order_R, jnp.argsort(order_R), experts_Mk.reshape(-1)[order_R])
        sizes_E, devices = chosen_ME.sum(axis=0, dtype=jnp.int32), jax.lax.axis_size(RULES.experts)
        if devices == 1:
            out_MD = _here(self.config, *tokens, parts, sorting, sizes_E)
        else:
            route = whole_route(sizes_E, order_R.size)
            out_MD = _elsewhere(
                self.config, most_in_a_round(self.config, *experts_Mk.shape, devices), *tokens, parts, sorting, route
            )
        out_MD = jax.lax.psum(out_MD.astype(dtype), RULES.mlp)
        if down[1] is not None:  # added at home and once, after the sum
            out_MD += _weighted(weights_Mk, down[1].astype(dtype)[experts_Mk]).astype(dtype)
        routing = None if real_BT is None else _routing(real_BT, chosen_ME, scores_ME)
        return out_MD.reshape(x_BTD.shape), routing


class Sorting(NamedTuple):
    """The order of a device's pairs by expert, its inverse, and the expert of each in that order; `[R]`."""

    order: jax.Array
    inverse: jax.Array
    experts: jax.Array


def most_in_a_round(config: ModelConfig, tokens: int, k: int, devices: int) -> int:
    """How many pairs one device sends to another in one round: half more than its even share.

    A token goes to k different experts, so never more than `tokens` times that, nor times those on one device.
    """
    return min(tokens * min(k, config.experts // devices), -(-tokens * k * 3 // (2 * devices)))


def _here(config, x_MD, weights_Mk, parts, sorting, sizes_E):
    """The weighted sum over each token's experts, `[M, D]` float32, on a device that has all of them."""
    # Repeated and then permuted: the gradient is a permutation and a sum, and not a scatter with collisions.
    x_RD = permuted(jnp.repeat(x_MD, weights_Mk.shape[1], axis=0), sorting.order, sorting.inverse)
    out_RD = _mlp(config, x_RD, sorting.experts, sizes_E, *parts)
    return _weighted(weights_Mk, permuted(out_RD, sorting.inverse, sorting.order).reshape(*weights_Mk.shape, -1))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _elsewhere(config, most, x_MD, weights_Mk, parts, sorting, route):
    """The same where experts are spread over devices, in as many rounds as the most loaded pair of devices needs.

    Usually one: buffers hold half more than an even load, and not what arrives if all tokens choose one device's
    experts, which is as many times more as there are devices; yet none is dropped. The backward pass computes each
    round anew, so that nothing is kept of it.
    """
    add = lambda n, out_MD: out_MD + _round(config, most, n, sorting, route, x_MD, weights_Mk, parts)  # noqa: E731
    start = varying(jnp.zeros(x_MD.shape, jnp.float32), *AXES)
    return jax.lax.fori_loop(0, rounds(route, most), add, start)


def _elsewhere_forward(config, most, *arguments):
    return _elsewhere(config, most, *arguments), arguments


def _elsewhere_backward(config, most, saved, cotangent_MD):
    *inputs, sorting, route = saved

    def add(n, total):
        _, gradients = jax.vjp(partial(_round, config, most, n, sorting, route), *inputs)
        return jax.tree.map(jnp.add, total, gradients(cotangent_MD))

    start = jax.tree.map(lambda x: varying(jnp.zeros(x.shape, x.dtype), *AXES), tuple(inputs))
    return *jax.lax.fori_loop(0, rounds(route, most), add, start), None, None


_elsewhere.defvjp(_elsewhere_forward, _elsewhere_backward)


def _round(config, most, number, sorting, route, x_MD, weights_Mk, parts):
    """What one round adds to `_elsewhere`."""
    route = of_round(route, number, most)
    order_S, experts_S = by_expert(route, most)
    inverse_S = jnp.argsort(order_S)
    x_RD = permuted(jnp.repeat(x_MD, weights_Mk.shape[1], axis=0), sorting.order, sorting.inverse)
    x_SD = permuted(sent(x_RD, route, most), order_S, inverse_S)
    out_SD = _mlp(config, x_SD, experts_S, route.counts_XG.sum(axis=0), *parts)
    out_RD = returned(permuted(out_SD, inverse_S, order_S), route, most)
    return _weighted(weights_Mk, permuted(out_RD, sorting.inverse, sorting.order).reshape(*weights_Mk.shape, -1))


def _mlp(config, x_SD, experts_S, sizes_G, gate, up, down):
    """Each row through its expert; of the product with `down` the share F of this device."""
    gate_SF = _grouped(x_SD, *gate, experts_S, sizes_G)
    up_SF = None if up is None else _grouped(x_SD, *up, experts_S, sizes_G)
    hidden_SF = activated(config.activation, config.swiglu_limit, gate_SF, up_SF)
    return _grouped(hidden_SF, *down, experts_S, sizes_G)


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


def _grouped(x, weight, bias, experts_S, sizes_G):
    """Each row times the weight of its expert; rows are sorted by expert, `sizes_G` of each, and zero after these.

    XLA for a TPU has a grouped product, forward and for both gradients (a kernel; 8,192 rows by 8 experts are counted
    as 8,192 by one). For a CPU it multiplies each row with every expert and masks: 2,048 rows of 384 by 512 took 4 ms
    with one expert, 34 with 8 and 181 with 32, and E times the memory of the rows.
    """
    out = jax.lax.ragged_dot(x, weight, sizes_G, preferred_element_type=product_dtype(x.dtype)).astype(x.dtype)
    if bias is not None:
        out += bias[jnp.minimum(experts_S, bias.shape[0] - 1)]
    # A kernel may leave what is beyond the groups as it was in memory.
    return jnp.where((experts_S < weight.shape[0])[:, None], out, 0)


def _weighted(weights_Mk, x_MkD):
    """The sum over a token's experts, in float32: a product of matrices on a TPU would round the weights."""
    return jnp.sum(weights_Mk[..., None] * x_MkD.astype(jnp.float32), axis=1)
