"""Causal self-attention within a segment: each token looks back at the tokens of its own document.

Shapes: B batch, T query length, S key length, D model width, N query heads, K key/value heads, G = N / K, H head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tpullm.mesh.collectives import all_gather
from tpullm.mesh.layout import RULES
from tpullm.model.attention.blockwise import attend_in_blocks
from tpullm.model.attention.flash import flash
from tpullm.model.attention.rope import rotary
from tpullm.model.linear import Linear, parameter
from tpullm.model.norm import Norm
from tpullm.model.residual import residual_scale
from tpullm.recipe.schema import ModelConfig


class Sight(NamedTuple):
    """Whom a token sees in one kind of layer.

    `table`: of `rotary_table`, or None; `mask` `[B, T, S]` of `allowed`, or None where the kernel makes its own;
    `window`: how many tokens a token looks back at, itself included; `kind`: which kind it is.
    """

    table: tuple[jax.Array, jax.Array] | None
    mask: jax.Array | None
    window: jax.Array
    kind: jax.Array


def allowed(q_segments_BT, q_positions_BT, k_segments_BS, k_positions_BS, window: int | None = None) -> jax.Array:
    """Who may look at whom, `[B, T, S]` bool: same segment, and not later.

    Positions count from 0 within a segment, so comparing them is causal inside it; a segment of 0 is padding.

    Args:
        window: how many tokens a token looks back at, itself included; None is all.
    """
    everywhere = RULES.spec("batch", None)
    k_segments_BS, k_positions_BS = jax.reshard((k_segments_BS, k_positions_BS), (everywhere, everywhere))
    same = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    q_positions_BT1, k_positions_B1S = q_positions_BT[:, :, None], k_positions_BS[:, None, :]
    mask = same & (q_positions_BT1 >= k_positions_B1S)
    return mask if window is None else mask & (q_positions_BT1 - window < k_positions_B1S)


def attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS, softcap: float = 0.0, sinks_N=None) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), softmax in float32.

    Args:
        softcap: bound of the scores, by tanh (Gemma 2); 0 is none.
        sinks_N: of each head, the score of a key whose value is 0, float32 (gpt-oss's model card, OpenAI 2025).

    Returns:
        The mixed values `[B, T, N, H]` and the weights `[B, K, G, T, S]` (dropped by the compiler where unused).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    # The layout is said, since a reshape with a dimension of size 1 leaves it open.
    grouped = RULES.spec("batch", "time", "kv_heads", None, "head")
    q_BTKGH = jnp.reshape(q_BTNH, (B, T, K, N // K, H), out_sharding=grouped)
    scores = jnp.einsum("btkgh,bksh->bkgts", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32) * H**-0.5
    scores = softcap * jnp.tanh(scores / softcap) if softcap else scores
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if sinks_N is not None:  # exp(s) / (sum + exp(sink)) is softmax times sum / (sum + exp(sink))
        sinks = jnp.reshape(sinks_N, (K, N // K, 1, 1), out_sharding=RULES.spec("kv_heads", None, None, None))
        weights *= jax.nn.sigmoid(jax.nn.logsumexp(scores, axis=-1, keepdims=True) - sinks)
    mixed = jnp.einsum("bkgts,bksh->btkgh", weights.astype(v_BKSH.dtype), v_BKSH).astype(q_BTNH.dtype)
    whole = RULES.spec("batch", "time", "heads", "head")
    return jnp.reshape(mixed, (B, T, N, H), out_sharding=whole), weights


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023), with rotary positions and normalized queries and keys if asked."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_width
        q_axes, k_axes = ("embed", "heads", "head"), ("embed", "kv_heads", "head")
        self.query = Linear(config, rngs, (D,), (N, H), q_axes, config.qkv_bias)
        self.key = Linear(config, rngs, (D,), (K, H), k_axes, config.qkv_bias)
        self.value = Linear(config, rngs, (D,), (K, H), k_axes, config.qkv_bias)
        out_axes, scale = ("heads", "head", "embed"), residual_scale(N * H, config.layers)
        self.out = Linear(config, rngs, (N, H), (D,), out_axes, config.out_bias, scale)
        shapes = {"head": ((H,), (H,), ("head",), ("head",)), "all": ((N, H), (K, H), q_axes[1:], k_axes[1:])}
        q_shape, k_shape, q_norm_axes, k_norm_axes = shapes.get(config.qk_norm, [None] * 4)
        self.query_norm = Norm(config, q_shape, q_norm_axes, rngs) if q_shape else None
        self.key_norm = Norm(config, k_shape, k_norm_axes, rngs) if k_shape else None
        self.softcap, self.windows = config.attention_softcap, config.distinct_windows
        self.block = config.attention_block
        self.sinks = parameter(rngs, (N,), ("heads",), 0.0) if config.sinks else None
        # `attend` scales by the root of the head's width: what is asked beyond that goes into the queries.
        self.query_scale = config.attention_scale * H**0.5 if config.attention_scale else 1.0

    def keys_and_values(self, x_BTD: jax.Array, table) -> tuple[jax.Array, jax.Array]:
        """What later tokens look at: `[B, K, T, H]` twice. A cache keeps exactly these."""
        spec = RULES.spec("batch", "time", "kv_heads", "head")
        k, v = self.key("btd,dkh->btkh", x_BTD, spec), self.value("btd,dkh->btkh", x_BTD, spec)
        k = k if self.key_norm is None else self.key_norm(k)
        k = k if table is None else rotary(k, table)
        return k.swapaxes(1, 2), v.swapaxes(1, 2)

    def __call__(self, x_BTD, sight: Sight, k_BKSH, v_BKSH, segments_BT, positions_BT, kernel: str):
        """Mix the values that each token may look at.

        Args:
            segments_BT, positions_BT: of the queries; what only some kernels need.
            kernel: of `kernels.attention_kernel`, or `plain`.

        Returns:
            `[B, T, D]`, and with `plain` the weights `[B, K, G, T, S]`.
        """
        q = self.query("btd,dnh->btnh", x_BTD, RULES.spec("batch", "time", "heads", "head"))
        q = q if self.query_norm is None else self.query_norm(q)
        q = q if sight.table is None else rotary(q, sight.table)
        q = q if self.query_scale == 1 else (q.astype(jnp.float32) * self.query_scale).astype(q.dtype)
        sinks = None if self.sinks is None else all_gather(self.sinks[...], "heads", dtype=jnp.float32)
        weights, more = None, (self.softcap, sinks)
        match kernel:
            case "splash":
                from tpullm.model.attention.splash import splash  # imports Pallas: 0.4 s that a CPU need not spend

                mixed = splash(q, k_BKSH, v_BKSH, segments_BT, self.windows, sight.kind, *more, self.block)
            case "cudnn":
                mixed = cudnn_attention(q, k_BKSH, v_BKSH, sight.mask)
            case "flash":
                mixed = flash(q, k_BKSH, v_BKSH, segments_BT, positions_BT, sight.window, *more)
            case "blocks":
                mixed = attend_in_blocks(q, k_BKSH, v_BKSH, sight.mask)
            case "plain":
                mixed, weights = attend(q, k_BKSH, v_BKSH, sight.mask, *more)
        mixed = checkpoint_name(mixed, "attention") if kernel != "splash" else mixed  # which names its own
        return self.out("btnh,nhd->btd", mixed, RULES.spec("batch", "time", "width")), weights


def cudnn_attention(q_BTNH, k_BKTH, v_BKTH, mask_BTT) -> jax.Array:
    """The mixed values of `attend`, by cuDNN's flash attention on a GPU."""

    def local(q_BTNH, k_BKTH, v_BKTH, mask_BTT):
        k_BTKH, v_BTKH = k_BKTH.swapaxes(1, 2), v_BKTH.swapaxes(1, 2)
        return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask_BTT[:, None], implementation="cudnn")

    spec = RULES.spec("batch", "time", "heads", "head")
    return jax.shard_map(local, out_specs=spec, check_vma=False)(q_BTNH, k_BKTH, v_BKTH, mask_BTT)
