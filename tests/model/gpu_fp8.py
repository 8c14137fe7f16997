"""Run by `printed_by_compiler`: a layer compiled for an H100, which need not be there; the matmuls in float8, as JSON.

For `model.matmuls` of each kind: calls of cuBLASLt with float8 operands where XLA may not make kernels itself, and the
kernels that it makes where it may whose dot has float8 operands.
"""

import json
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from tpullm.hardware.topologies import parse
from tpullm.model.attention.self_attention import Attention
from tpullm.model.mesh import RULES, make_mesh
from tpullm.model.mlp import MLP
from tpullm.recipe.schema import ModelConfig

CONFIG = ModelConfig(layers=1, width=1024, heads=16, mlp_width=4096, qk_norm="none", positions="learned").resolved(64)


def lowered(matmuls: str, mesh: Mesh):
    """Forward and backward of a layer's seven matrices, without the scores of attention."""
    config = ModelConfig(**{**vars(CONFIG), "matmuls": matmuls})

    class Layer(nnx.Module):
        def __init__(self):
            self.attention, self.mlp = Attention(config, nnx.Rngs(0)), MLP(config, nnx.Rngs(0))

        def __call__(self, x_BTD):
            heads = RULES.spec("batch", "time", "heads", "head")
            of = self.attention
            q, k, v = (matrix("btd,dnh->btnh", x_BTD, heads) for matrix in (of.query, of.key, of.value))
            mixed = jax.nn.silu(q) * k * v
            return self.mlp(jnp.sin(of.out("btnh,nhd->btd", mixed, RULES.spec("batch", "time", "width"))))

    with jax.set_mesh(mesh):
        graph, state = nnx.split(nnx.eval_shape(Layer))
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, jax.P()))  # noqa: E731
        rows = NamedSharding(mesh, RULES.spec("batch", "time", "width"))
        x = jax.ShapeDtypeStruct((4, 4096, 1024), jnp.bfloat16, sharding=rows)
        loss = lambda state, x: jnp.sum(jnp.square(nnx.merge(graph, state)(x).astype(jnp.float32)))  # noqa: E731
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(jax.tree.map(place, state), x)
        return traced.lower(lowering_platforms=("cuda",))


def own_kernels(text: str) -> int:
    """Computations with a dot of parameters in float8, none of them converted."""
    parts = [part for part in text.split("\n\n") if " dot(" in part]
    return sum(len(re.findall(r": f8e", part.split("->")[0])) == 2 and " convert(" not in part for part in parts)


def main() -> None:
    mesh, results = make_mesh({}, list(topologies.get_topology_desc(**parse("h100:1").described()).devices)), {}
    apart = {"xla_gpu_dot_merger_threshold_mb": 0}  # matmuls of one input would otherwise become one
    for matmuls in ("compute", "fp8"):
        program = lowered(matmuls, mesh)
        library = program.compile(compiler_options=apart | {"xla_gpu_enable_triton_gemm": False}).as_text()
        own = program.compile(compiler_options=apart).as_text()
        calls = [line for line in library.splitlines() if '"__cublas$lt$matmul$f8"' in line]
        exact = sum('"operand_precision":["HIGHEST","HIGHEST"]' in call for call in calls)
        results[matmuls] = {"cublas": len(calls), "summed in float32": exact, "own": own_kernels(own)}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
