"""The MLP as a mixture of experts: each token goes through the few that its router chooses; none is dropped.

Shapes: B batch, T length, D model width, F feed-forward width, E experts; of one device M = B T tokens, k experts of
each, R = M k pairs of both, sorted by expert.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.config import ModelConfig
from tpullm.model.layers import Linear, activated, parameter, residual_scale
from tpullm.model.platform import product_dtype
from tpullm.sharding import RULES, gather


class Experts(nnx.Module):
    """A weight `[E, inputs, outputs]`, and a bias `[E, outputs]` if there is one."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, int, int], axes, bias: bool, scale: float | None = None):
        experts, inputs, outputs = shape
        self.weight = parameter(rngs, shape, ("experts", *axes), scale or inputs**-0.5)
        self.bias = parameter(rngs, (experts, outputs), ("experts", axes[1]), 0.0) if bias else None
        self.axes = axes

    def gathered(self, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
        """Weight and bias as `mixed` needs them: whole, except along `mlp`."""
        bias = None if self.bias is None else gather(self.bias[...], "experts", self.axes[1], dtype=dtype)
        return gather(self.weight[...], "experts", *self.axes, dtype=dtype), bias


class MixtureOfExperts(nnx.Module):
    """Dropless token-choice routing (Shazeer et al. 2017; Gale et al. 2023) to experts that are MLPs."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        E, D, F, bias = config.experts, config.width, config.mlp_width, config.mlp_bias
        self.config = config
        self.router = Linear(config, rngs, (D,), (E,), ("embed", "experts"), bias)
        self.gate = Experts(rngs, (E, D, F), ("embed", "mlp"), bias)
        self.up = Experts(rngs, (E, D, F), ("embed", "mlp"), bias) if config.gated else None
        self.down = Experts(rngs, (E, F, D), ("mlp", "embed"), bias, residual_scale(F, config.layers))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        spec = RULES.spec("batch", "time", None)
        # In float32, really: a TPU would round the operands to bfloat16, and two close experts would change places.
        with jax.default_matmul_precision("highest"):
            logits_BTE = self.router("btd,de->bte", x_BTD.astype(jnp.float32), spec)
        up = None if self.up is None else self.up.gathered(x_BTD.dtype)
        gate, down = self.gate.gathered(x_BTD.dtype), self.down.gathered(x_BTD.dtype)
        # Where a token goes depends on its numbers, so each device sorts and multiplies its own tokens by hand.
        return jax.shard_map(self._mixed, out_specs=spec)(x_BTD, logits_BTE, gate, up, down)

    def _mixed(self, x_BTD, logits_BTE, gate, up, down) -> jax.Array:
        """What one device adds: its tokens through its share F of every expert, summed over `tensor`."""
        D, E = x_BTD.shape[-1], self.config.experts
        weights_Mk, experts_Mk = routed(
            logits_BTE.reshape(-1, E), self.config.experts_per_token, self.config.normalize_router
        )
        M, k = experts_Mk.shape
        experts_R = experts_Mk.reshape(-1)
        order_R = jnp.argsort(experts_R)
        experts_R, sizes_E = experts_R[order_R], jnp.bincount(experts_R, length=E)
        # Repeated and then permuted: the gradient is a permutation and a sum, and not a scatter with collisions.
        x_RD = _permuted(jnp.repeat(x_BTD.reshape(-1, D), k, axis=0), order_R)
        gate_RF = _grouped(x_RD, *gate, experts_R, sizes_E)
        up_RF = None if up is None else _grouped(x_RD, *up, experts_R, sizes_E)
        hidden_RF = activated(self.config.activation, self.config.swiglu_limit, gate_RF, up_RF)
        out_RD = _grouped(hidden_RF, down[0], None, experts_R, sizes_E)
        out_MkD = _permuted(out_RD, jnp.argsort(order_R)).reshape(M, k, D)
        out_MD = jax.lax.psum(_weighted(weights_Mk, out_MkD), RULES.mlp)
        if down[1] is not None:  # whole on every device: added once, after the sum
            out_MD += _weighted(weights_Mk, down[1][experts_Mk])
        return out_MD.reshape(x_BTD.shape)


def routed(logits_ME: jax.Array, k: int, normalize: bool) -> tuple[jax.Array, jax.Array]:
    """The weights `[M, k]` float32 of the experts that each token goes to, and their numbers `[M, k]`.

    Args:
        normalize: the weights are the softmax of the k highest logits, which is that of all of them made to sum to 1;
            otherwise the k highest of the softmax of all.
    """
    if normalize:
        highest_Mk, experts_Mk = jax.lax.top_k(logits_ME, k)
        return jax.nn.softmax(highest_Mk, axis=-1), experts_Mk
    return tuple(jax.lax.top_k(jax.nn.softmax(logits_ME, axis=-1), k))


def _permuted(x, order_R):
    return x.at[order_R].get(unique_indices=True)


def _grouped(x, weight, bias, experts_R, sizes_E):
    """Each row times the weight of its expert; rows are sorted by expert, `sizes_E` of each.

    XLA for a TPU has a grouped product. For a CPU it multiplies each row with every expert and masks: 2,048 rows of
    384 by 512 took 4 ms with one expert, 34 with 8 and 181 with 32, and E times the memory of the rows.
    """
    out = jax.lax.ragged_dot(x, weight, sizes_E, preferred_element_type=product_dtype(x.dtype)).astype(x.dtype)
    return out if bias is None else out + bias[experts_R]


def _weighted(weights_Mk, x_MkD):
    return jnp.einsum("mk,mkd->md", weights_Mk, x_MkD.astype(jnp.float32)).astype(x_MkD.dtype)
