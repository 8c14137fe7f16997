"""The feed-forward layer and its activations.

Shapes: B batch, T query length, D model width, F feed-forward width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.mesh.layout import RULES
from tpullm.model.linear import Linear
from tpullm.model.memory_layout import barrier_on_tpu
from tpullm.model.residual import residual_scale
from tpullm.recipe.schema import ModelConfig

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@partial(jax.checkpoint, static_argnums=(0, 1))
def activated(
    activation: str, limit: float, gate: jax.Array, up: jax.Array | None, scale: jax.Array | None = None
) -> jax.Array:
    """`activation(gate)`, times `up` and `scale` if given; the backward pass recomputes all but these inputs.

    In float32 inside: element-wise bfloat16 is emulated on a CPU, 4 times slower.

    Args:
        limit: if not 0, `g * sigmoid(1.702 g) * (u + 1)` instead, with `g` clipped to at most `limit` and `u` to
            `[-limit, limit]` (gpt-oss's model card, OpenAI 2025).
    """
    gate32, up32 = gate.astype(jnp.float32), None if up is None else up.astype(jnp.float32)
    if limit:
        gate32, up32 = jnp.minimum(gate32, limit), jnp.clip(up32, -limit, limit) + 1
        out = gate32 * jax.nn.sigmoid(1.702 * gate32)
    else:
        out = ACTIVATIONS[activation](gate32)
    out = out if up is None else out * up32
    return (out if scale is None else out * scale).astype(gate.dtype)


class MLP(nnx.Module):
    """Feed-forward: `down(silu(gate(x)) * up(x))` (SwiGLU, Shazeer 2020), or `down(gelu(gate(x)))` if not gated."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, mlp_width = config.width, config.mlp_width
        self.activation, self.limit = config.activation, config.swiglu_limit
        self.gate = Linear(config, rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias)
        up = Linear(config, rngs, (width,), (mlp_width,), ("embed", "mlp"), config.mlp_bias) if config.gated else None
        self.up = up
        scale = residual_scale(mlp_width, config.layers)
        self.down = Linear(config, rngs, (mlp_width,), (width,), ("mlp", "embed"), config.mlp_bias, scale)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        hidden = RULES.spec("batch", "time", "mlp")
        gate = self.gate("btd,df->btf", x_BTD, hidden)
        up = None if self.up is None else self.up("btd,df->btf", x_BTD, hidden)
        out = barrier_on_tpu(activated(self.activation, self.limit, *barrier_on_tpu((gate, up))))
        return self.down("btf,fd->btd", out, RULES.spec("batch", "time", "width"))
