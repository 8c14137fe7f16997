"""Which activations the forward pass keeps for the backward pass, by name: the table of `model.remat`.

A layer names what may be kept: `attention` (its mixed values) and `dots` (the outputs of the other matmuls).
"""

from collections.abc import Callable
from functools import partial

import jax

_policies = jax.checkpoint_policies
_offloaded = partial(
    _policies.save_and_offload_only_these_names,
    names_which_can_be_saved=[],
    offload_src="device",
    offload_dst="pinned_host",
)
POLICIES = {
    "full": _policies.nothing_saveable,
    "save_attention": _policies.save_only_these_names("attention"),
    "save_dots": _policies.save_only_these_names("attention", "dots"),
    "offload": _offloaded(names_which_can_be_offloaded=["attention", "dots"]),
}


def rematerialized(layer: Callable, policy: str) -> Callable:
    """`layer`, whose backward pass recomputes what `policy` does not keep; `none` keeps all."""
    return layer if policy == "none" else jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)
