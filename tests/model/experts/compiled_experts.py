"""Run by `printed_by_compiler`: the gradients of a mixture of experts as the compiler of GPUs makes them, as JSON.

Arguments: a topology, and a list of numbers of devices along `expert` as JSON.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from tpullm.hardware.topologies import parse
from tpullm.model.experts.moe import MixtureOfExperts
from tpullm.model.mesh import RULES, make_mesh, named_sharding
from tpullm.planning.instructions import computations
from tpullm.recipe.schema import ModelConfig

# Of one device: 8,192 tokens. No other width is that of the experts.
EXPERTS, WIDTH, MLP_WIDTH, TOKENS, CHOSEN = 16, 256, 640, 8192, 2
CONFIG = ModelConfig(
    **{"layers": 1, "width": WIDTH, "heads": 4, "kv_heads": 2, "head_width": 64, "mlp_width": MLP_WIDTH},
    **{"experts": EXPERTS, "experts_per_token": CHOSEN, "mlp_bias": True},
).resolved(1024)


def compiled(mesh):
    with jax.set_mesh(mesh):
        graph, state = nnx.split(jax.eval_shape(lambda: MixtureOfExperts(CONFIG, nnx.Rngs(0))))

        def placed(leaf):
            sharding = jax.NamedSharding(mesh, RULES.spec(*leaf.get_metadata()["logical_axes"]))
            return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))

        state = jax.tree.map(placed, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        shape, sharding = (mesh.size, TOKENS, WIDTH), named_sharding(mesh, "batch", "time", None)
        x_BTD = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        loss = lambda state, x_BTD: jnp.sum(nnx.merge(graph, state)(x_BTD)[0].astype(jnp.float32))  # noqa: E731
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(state, x_BTD)
        return traced.lower(lowering_platforms=("cuda",)).compile({"xla_gpu_enable_cub_radix_sort": False})


def products(text: str) -> list[list[int]]:
    """The sizes of all operands and results of each product that XLA made itself, or left to CUDA's library."""
    found = []
    for body in computations(text).values():
        named = {one.name: one for one in body}
        for one in body:
            if one.opcode == "dot" or "__cublas" in one.attributes:
                shapes = [*one.shapes, *(shape for name in one.uses for shape in named[name].shapes)]
                found.append([size for shape in shapes for size in shape.dims])
    return found


def report(mesh) -> dict:
    program = compiled(mesh)
    text = program.as_text()
    return {
        "kernels": sorted(set(re.findall(r"\bgrouped_matmul(?:_weights)?\b", text))),
        "products": products(text),
        "exchanges": sorted(set(re.findall(r" (?:ragged-)?all-to-all\b", text))),
        "latencies": sorted(set(re.findall(r'latency_metadata="(\d+)"', text))),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }


if __name__ == "__main__":
    devices = list(topologies.get_topology_desc(**parse(sys.argv[1]).described()).devices)
    meshes = [make_mesh({"fsdp": -1, "expert": expert}, devices) for expert in json.loads(sys.argv[2])]
    print(json.dumps([report(mesh) for mesh in meshes]))
