"""Run by `printed_by_compiler`: the GPU's kernel as the compiler of a card makes it, without such a card, as JSON.

Arguments: the card, and a list of layers as JSON, each `[length, heads, groups, width, dtype, everything]`: the last
one means soft caps and sinks.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from tpullm.hardware.topologies import parse
from tpullm.model.attention.triton import triton_attention
from tpullm.model.mesh import make_mesh, named_sharding


def compiled(mesh, length: int, heads: int, groups: int, width: int, dtype: str, everything: bool):

    def both(q_BTNH, k_BTKH, v_BTKH, cotangent_BTNH, sinks_N, positions_BT, window):
        def attention(q_BTNH, k_BTKH, v_BTKH, sinks_N):
            keys = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
            return triton_attention(q_BTNH, *keys, positions_BT, window, 50.0 if everything else 0.0, sinks_N)

        mixed, back = jax.vjp(attention, q_BTNH, k_BTKH, v_BTKH, sinks_N)
        return mixed, back(cotangent_BTNH)

    def array(shape, dtype, *dimensions):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, *dimensions))

    q = array((1, length, heads, width), dtype, "batch", "time", "heads", "head")
    k = array((1, length, groups, width), dtype, "batch", "time", "kv_heads", "head")
    sinks = array((heads,), jnp.float32, "heads") if everything else None
    with jax.set_mesh(mesh):
        arguments = (q, k, k, q, sinks, array((1, length), jnp.int32, "batch", "time"), array((), jnp.int32))
        return jax.jit(both).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()


def of_layer(mesh, length: int, *layer) -> dict:
    """The kernels, the bytes beside arguments and results, and whether a row has an array of its length squared."""
    program = compiled(mesh, length, *layer)
    text = program.as_text()
    return {
        "kernels": sorted(set(re.findall(r"\btriton_attention(?:_dq|_dkv)?\b", text))),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "square": f"{length},{length}]" in text,
    }


if __name__ == "__main__":
    mesh = make_mesh({}, list(topologies.get_topology_desc(**parse(f"{sys.argv[1]}:1").described()).devices))
    print(json.dumps([of_layer(mesh, *layer) for layer in json.loads(sys.argv[2])]))
