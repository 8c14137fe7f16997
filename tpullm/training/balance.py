"""Balancing the loads of experts: a loss for each row, a bias for each expert, and metrics of the loads.

Shapes: L layers, B batch, T length, P parts of a row along `sequence`, E experts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tpullm.model.experts.moe import Routing
from tpullm.recipe.schema import ModelConfig

Tree = Any


def balance_losses(routing: Routing, tokens_B: jax.Array, config: ModelConfig) -> jax.Array:
    """The balance loss of each row, `[B]`, summed over layers (DeepSeek-V3, equations 17 to 20, without alpha).

    `sum_e f_e p_e` with `f` the share of tokens that chose an expert, times `E / k`, and `p` its mean score: 1 at even
    loads. The choice is the actual one, with the bias. A row counts as one sequence, whatever is packed in it.

    Args:
        routing: of all layers, `[L, B, P, E]`.
        tokens_B: real tokens in each row.
    """
    tokens_B1 = jnp.maximum(tokens_B, 1).astype(jnp.float32)[:, None]
    loads_LBE, scores_LBE = (part.sum(axis=2) for part in routing)
    f_LBE = loads_LBE * (config.experts / config.experts_per_token) / tokens_B1
    return jnp.sum(f_LBE * scores_LBE / tokens_B1, axis=(0, 2))


def rebalanced(params: Tree, before: Tree, loads_LE: jax.Array, rate: float) -> Tree:
    """The parameters after a step, with the biases of experts moved by `rate` from before it (Wang et al. 2024).

    Up if the expert's load over the whole batch is below the mean of its layer, and down if above. The optimizer's
    update of the biases is discarded.
    """
    moe = params["layers"]["mlp"]
    loads_LE = loads_LE.astype(jnp.float32)
    error_LE = loads_LE.mean(axis=1, keepdims=True) - loads_LE
    balance_LE = before["layers"]["mlp"]["balance"] + rate * jnp.sign(error_LE)
    return params | {"layers": params["layers"] | {"mlp": moe | {"balance": balance_LE}}}


def load_metrics(loads_LE: jax.Array) -> dict[str, Any]:
    """For the log: loads as multiples of an even load, the extremes of all layers, and the mean over layers `[E]`."""
    relative_LE = loads_LE / jnp.maximum(loads_LE.mean(axis=1, keepdims=True), 1e-9)
    extremes = {"highest": relative_LE.max(), "lowest": relative_LE.min()}
    return {"expert_load": extremes, "expert_loads": relative_LE.mean(axis=0)}
