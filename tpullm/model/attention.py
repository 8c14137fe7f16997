"""Causal self-attention within a segment: each token looks back at the tokens of its own document.

Shapes: B batch, T query length, S key length, D model width, N query heads, K key/value heads, G = N / K, H head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.config import ModelConfig
from tpullm.model.blockwise import attend_in_blocks
from tpullm.model.layers import RMSNorm, parameter, product, residual_scale, rotary
from tpullm.sharding import RULES, gather


def allowed(q_segments_BT, q_positions_BT, k_segments_BS, k_positions_BS) -> jax.Array:
    """Who may look at whom, `[B, T, S]` bool: same segment, and not later.

    Positions count from 0 within a segment, so comparing them is causal inside it; a segment of 0 is padding.
    """
    everywhere = RULES.spec("batch", None)
    k_segments_BS, k_positions_BS = jax.reshard((k_segments_BS, k_positions_BS), (everywhere, everywhere))
    same = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    return same & (q_positions_BT[:, :, None] >= k_positions_BS[:, None, :])


def attend(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), softmax in float32.

    Returns:
        The mixed values `[B, T, N, H]` and the weights `[B, K, G, T, S]` (dropped by the compiler where unused).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    # The layout is said, since a reshape with a dimension of size 1 leaves it open.
    grouped = RULES.spec("batch", "time", "kv_heads", None, "head")
    q_BTKGH = jnp.reshape(q_BTNH, (B, T, K, N // K, H), out_sharding=grouped)
    scores = jnp.einsum("btkgh,bksh->bkgts", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32) * H**-0.5
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum("bkgts,bksh->btkgh", weights.astype(v_BKSH.dtype), v_BKSH).astype(q_BTNH.dtype)
    whole = RULES.spec("batch", "time", "heads", "head")
    return jnp.reshape(mixed, (B, T, N, H), out_sharding=whole), weights


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions and normalized queries and keys if asked."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_width
        self.query = parameter(rngs, (D, N, H), ("embed", "heads", "head"), D**-0.5)
        self.key = parameter(rngs, (D, K, H), ("embed", "kv_heads", "head"), D**-0.5)
        self.value = parameter(rngs, (D, K, H), ("embed", "kv_heads", "head"), D**-0.5)
        self.out = parameter(rngs, (N, H, D), ("heads", "head", "embed"), residual_scale(N * H, config.layers))
        self.query_norm = RMSNorm(H, config.norm_epsilon, "head", rngs) if config.qk_norm else None
        self.key_norm = RMSNorm(H, config.norm_epsilon, "head", rngs) if config.qk_norm else None

    def keys_and_values(self, x_BTD: jax.Array, table) -> tuple[jax.Array, jax.Array]:
        """What later tokens look at: `[B, K, T, H]` twice. A cache keeps exactly these."""
        spec = RULES.spec("batch", "time", "kv_heads", "head")
        axes = ("embed", "kv_heads", "head")
        k = product("btd,dkh->btkh", x_BTD, gather(self.key[...], *axes, dtype=x_BTD.dtype), spec)
        v = product("btd,dkh->btkh", x_BTD, gather(self.value[...], *axes, dtype=x_BTD.dtype), spec)
        k = self.key_norm(k) if self.key_norm else k
        # Every query may look at every earlier key: keys and values are gathered along time (context parallelism).
        everywhere = RULES.spec("batch", "kv_heads", None, "head")
        return jax.reshard(rotary(k, table).swapaxes(1, 2), everywhere), jax.reshard(v.swapaxes(1, 2), everywhere)

    def __call__(self, x_BTD, table, k_BKSH, v_BKSH, mask_BTS, keep_weights) -> tuple[jax.Array, jax.Array | None]:
        """Mix the values that each token may look at: `[B, T, D]`, and the weights `[B, K, G, T, S]` if kept."""
        axes = ("embed", "heads", "head")
        spec = RULES.spec("batch", "time", "heads", "head")
        q = product("btd,dnh->btnh", x_BTD, gather(self.query[...], *axes, dtype=x_BTD.dtype), spec)
        q = rotary(self.query_norm(q) if self.query_norm else q, table)
        # Without a cache (or with an empty one of that length), the keys are those of the queries' own tokens.
        if k_BKSH.shape[2] == x_BTD.shape[1] and not keep_weights:
            mixed, weights = attend_in_blocks(q, k_BKSH, v_BKSH, mask_BTS), None
        else:
            mixed, weights = attend(q, k_BKSH, v_BKSH, mask_BTS)
        out = gather(self.out[...], "heads", "head", "embed", dtype=x_BTD.dtype)
        return product("btnh,nhd->btd", mixed, out, RULES.spec("batch", "time", "width")), weights
