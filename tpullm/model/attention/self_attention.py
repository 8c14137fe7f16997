"""The attention layer: projections, rotary positions, and the kernel that mixes the values.

Shapes: B batch, T query length, S key length, D model width, N query heads, K key/value heads, G = N / K, H head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tpullm.model.attention.flash import attend_in_blocks, flash
from tpullm.model.attention.plain import attend
from tpullm.model.attention.rope import rotary
from tpullm.model.collectives import all_gather
from tpullm.model.linear import Linear, parameter, together
from tpullm.model.mesh import RULES
from tpullm.model.mlp import Norm, residual_scale
from tpullm.recipe.schema import ModelConfig


class LayerKind(NamedTuple):
    """What attention needs in one kind of layer; `ModelConfig.layer_kinds` has the kinds.

    `table`: of `rotary_table`, or None; `mask` `[B, T, S]` of `causal_mask`, or None where the kernel makes its own;
    `window`: how many tokens a token attends to, itself included; `index`: of this kind.
    """

    table: tuple[jax.Array, jax.Array] | None
    mask: jax.Array | None
    window: jax.Array
    index: jax.Array


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023), optionally with rotary positions and query and key norms."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_width
        q_axes, k_axes = ("embed", "heads", "head"), ("embed", "kv_heads", "head")
        self.query = Linear(config, rngs, (D,), (N, H), q_axes, config.qkv_bias)
        self.key = Linear(config, rngs, (D,), (K, H), k_axes, config.qkv_bias)
        self.value = Linear(config, rngs, (D,), (K, H), k_axes, config.qkv_bias)
        out_axes, scale = ("heads", "head", "embed"), residual_scale(N * H, config.layers)
        self.out = Linear(config, rngs, (N, H), (D,), out_axes, config.out_bias, scale)
        norms = {"head": [((H,), ("head",))] * 2, "all": [((N, H), q_axes[1:]), ((K, H), k_axes[1:])]}
        shapes = norms.get(config.qk_norm, [None, None])
        self.query_norm, self.key_norm = (of and Norm(config, *of, rngs) for of in shapes)
        self.softcap, self.windows = config.attention_softcap, [window for window, _ in config.layer_kinds]
        self.block = config.attention_block
        self.sinks = parameter(rngs, (N,), ("heads",), 0.0) if config.sinks else None
        # `attend` divides by the root of the head's width; any other scale is multiplied into the queries.
        self.query_scale = config.attention_scale * H**0.5 if config.attention_scale else 1.0

    def projected(self, x_BTD: jax.Array, table) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, N, H]`; keys and values, `[B, K, T, H]` each, as a cache keeps them."""
        spec, of_queries = (RULES.spec("batch", "time", heads, "head") for heads in ("kv_heads", "heads"))
        asked = [(of, "btd,dkh->btkh", spec) for of in (self.key, self.value)]
        q, k, v = together([(self.query, "btd,dnh->btnh", of_queries), *asked], x_BTD)
        q, k = (of if norm is None else norm(of) for of, norm in ((q, self.query_norm), (k, self.key_norm)))
        q, k = (of if table is None else rotary(of, table) for of in (q, k))
        q = q if self.query_scale == 1 else (q.astype(jnp.float32) * self.query_scale).astype(q.dtype)
        return q, k.swapaxes(1, 2), v.swapaxes(1, 2)

    def __call__(self, q, kind: LayerKind, k_BKSH, v_BKSH, segments_BT, positions_BT, kernel: str):
        """Mix the values of the keys that each query attends to.

        Args:
            q: of `projected`, as are the keys and values, which may be those of a whole row.
            segments_BT, positions_BT: of the queries; only some kernels need them.
            kernel: of `kernels.attention_kernel`, or `plain`, or a function of queries, keys, values, soft cap and
                sinks that returns the mixed values `[B, T, N, H]`: it remembers other keys.

        Returns:
            `[B, T, D]`, and with `plain` the weights `[B, K, G, T, S]`.
        """
        sinks = None if self.sinks is None else all_gather(self.sinks[...], "heads", dtype=jnp.float32)
        weights, more = None, (self.softcap, sinks)
        match kernel:
            case _ if callable(kernel):
                mixed = kernel(q, k_BKSH, v_BKSH, *more)
            case "splash":
                from tpullm.model.attention.splash import splash  # imports Pallas, 0.4 s that a CPU need not spend

                mixed = splash(q, k_BKSH, v_BKSH, segments_BT, self.windows, kind.index, *more, self.block)
            case "triton":
                from tpullm.model.attention.triton import triton_attention  # as above

                mixed = triton_attention(q, k_BKSH, v_BKSH, positions_BT, kind.window, *more)
            case "flash":
                mixed = flash(q, k_BKSH, v_BKSH, segments_BT, positions_BT, kind.window, *more)
            case "blocks":
                mixed = attend_in_blocks(q, k_BKSH, v_BKSH, kind.mask)
            case "plain":
                mixed, weights = attend(q, k_BKSH, v_BKSH, kind.mask, *more)
        if kernel not in ("splash", "triton"):  # which name their outputs themselves
            mixed = checkpoint_name(mixed, "attention")
        return self.out("btnh,nhd->btd", mixed, RULES.spec("batch", "time", "width")), weights
