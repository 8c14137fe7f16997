"""Run by `tests/eight_devices.py`: the errors of parameter gradients that 8 devices reduce, as JSON.

For each case the norm of the error, relative to the gradient in float64 from the same bfloat16 operands.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from tpullm.model.experts.moe import _all_gather_weight
from tpullm.model.linear import matmul
from tpullm.model.mesh import RULES, make_mesh
from tpullm.recipe.mesh_axes import AXES

BF16 = jnp.dtype("bfloat16")


def far(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def of_a_matmul(mesh, axes, reduce_dtype):
    """`linear.matmul` of rows on all devices; the width is the weight's first or last dimension."""
    random = np.random.default_rng(0)
    inputs, outputs = (32, 64) if axes[0] == "embed" else (64, 32)
    x, cotangent = (jnp.asarray(random.standard_normal((32, 16, n)), BF16) for n in (inputs, outputs))
    weight = jnp.asarray(random.standard_normal((inputs, outputs)), jnp.float32)
    expected = np.einsum("btd,btf->df", np.asarray(x, np.float64), np.asarray(cotangent, np.float64))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, RULES.spec("batch", "time", None))
        x, cotangent = jax.device_put((x, cotangent), rows)
        weight = jax.device_put(weight, NamedSharding(mesh, RULES.spec(*axes)))
        out = lambda w: matmul("btd,df->btf", axes, "compute", reduce_dtype, rows.spec, x, w)  # noqa: E731
        (found,) = jax.jit(lambda w, c: jax.vjp(out, w)[1](c))(weight, cotangent)
    return far(np.asarray(found), expected)


def of_experts(mesh, axes, reduce_dtype):
    """The weight of experts, all-gathered on every device, each with its own gradient."""
    random = np.random.default_rng(0)
    weight = jnp.asarray(random.standard_normal((4, 32, 64)), "float32" if reduce_dtype == "float32" else BF16)
    cotangents = jnp.asarray(random.standard_normal((mesh.size, 4, 32, 64)), BF16)
    with jax.set_mesh(mesh):
        weight = jax.device_put(weight, NamedSharding(mesh, RULES.spec("experts", *axes)))
        cotangents = jax.device_put(cotangents, NamedSharding(mesh, jax.P(AXES)))

        def backward(weight, cotangents):
            whole = lambda w: _all_gather_weight(axes, BF16, w.dtype, w)  # noqa: E731
            return jax.vjp(whole, weight)[1](cotangents[0])[0]

        found = jax.jit(jax.shard_map(backward, out_specs=RULES.spec("experts", *axes)))(weight, cotangents)
    return far(np.asarray(found, np.float64), np.asarray(cotangents, np.float64).sum(axis=0))


if __name__ == "__main__":
    results = {}
    for kind, shape in ((of_a_matmul, {"fsdp": 8}), (of_experts, {"data": 2, "fsdp": 4})):
        for axes in (("embed", "mlp"), ("mlp", "embed")):
            results[f"{kind.__name__}, {axes[0]} first"] = {
                reduce_dtype: kind(make_mesh(shape), axes, reduce_dtype) for reduce_dtype in ("compute", "float32")
            }
    print(json.dumps(results))
