"""One layer of the Transformer, and which of its activations the forward pass keeps for the backward pass.

A layer names what may be kept: `attention` (its mixed values) and `dots` (the outputs of the other matmuls). The table
of `model.remat` chooses among these names.

Shapes: B batch, T query length, S key length, D model width, K key/value heads, H head width.
"""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from tpullm.model.attention.self_attention import Attention, LayerKind
from tpullm.model.experts.moe import MixtureOfExperts
from tpullm.model.mesh import RULES
from tpullm.model.mlp import MLP, Norm, dropout
from tpullm.recipe.schema import ModelConfig

_policies = jax.checkpoint_policies
POLICIES = {
    "full": _policies.nothing_saveable,
    "save_attention": _policies.save_only_these_names("attention"),
    "save_dots": _policies.save_only_these_names("attention", "dots"),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["attention", "dots"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematerialized(layer: Callable, policy: str) -> Callable:
    """`layer`, whose backward pass recomputes what `policy` does not keep; `none` keeps all."""
    return layer if policy == "none" else jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)


class Block(nnx.Module):
    """One layer: attention, then the MLP, each normalized before or after it and added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        before, after = config.norm_placement != "after", config.norm_placement != "before"
        norm = partial(Norm, config, (config.width,), ("width",), rngs)
        self.attention_norm = norm() if before else None
        self.attention = Attention(config, rngs)
        self.attention_out_norm = norm() if after else None
        self.mlp_norm = norm() if before else None
        self.mlp = (MixtureOfExperts if config.experts else MLP)(config, rngs)
        self.mlp_out_norm = norm() if after else None
        self.dropout, self.scale = config.dropout, config.residual_scale

    def __call__(self, x_BTD, kind: LayerKind, segments_BT, positions_BT, kernel: str, key=None):
        """`[B, T, D]` to `[B, T, D]`.

        Args:
            kind, segments_BT, positions_BT, kernel: as for `Attention`.
            key: for dropout; None is no dropout.

        Returns:
            The new residual stream, the attention weights or None, the `Routing` or None.
        """
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        normalized = lambda norm, x: x if norm is None else norm(x)  # noqa: E731
        scaled = lambda x: x if self.scale == 1 else x * self.scale  # noqa: E731
        with jax.named_scope("attention"):
            normed_BTD = normalized(self.attention_norm, x_BTD)
            q, k, v = self.attention.projected(normed_BTD, kind.table)
            if kernel in ("plain", "blocks") or callable(kernel):  # they need the keys of whole rows
                whole = RULES.spec("batch", "kv_heads", None, "head")
                k, v = jax.reshard((k, v), (whole, whole))
            mixed_BTD, weights = self.attention(q, kind, k, v, segments_BT, positions_BT, kernel)
            x_BTD = x_BTD + dropout(scaled(normalized(self.attention_out_norm, mixed_BTD)), self.dropout, attention_key)
        with jax.named_scope("feed_forward"):
            normed_BTD, routing = normalized(self.mlp_norm, x_BTD), None
            if isinstance(self.mlp, MixtureOfExperts):
                out_BTD, routing = self.mlp(normed_BTD, segments_BT > 0)
            else:
                out_BTD = self.mlp(normed_BTD)
            out_BTD = scaled(normalized(self.mlp_out_norm, out_BTD))
            return x_BTD + dropout(out_BTD, self.dropout, mlp_key), weights, routing
