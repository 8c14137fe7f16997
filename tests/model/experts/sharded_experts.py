"""Run by `tests/eight_devices.py`: experts on a mesh against a loop over tokens, as one JSON object.

For each case the largest difference, relative to the largest number, of the output (from the loop, in float64), and of
the gradients of tokens and parameters (from those of one device). JAX does not interpret a GPU's kernel where it checks
along which axes arrays vary, and without that check there are no gradients. So the kernel's own output is one case, and
the gradients have another function in its place, which leaves what it may leave: NaN in rows of no expert.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from tests.model.experts.ragged import ragged_all_to_all
from tests.model.experts.test_moe import by_hand
from tests.training.small import EXPERTS
from tpullm.model.experts import exchange, grouped, moe, triton
from tpullm.model.experts.moe import MixtureOfExperts
from tpullm.model.mesh import RULES, make_mesh
from tpullm.recipe.mesh_axes import AXES

CONFIG = dataclasses.replace(EXPERTS.config, experts=8, experts_per_token=3)
# All tokens choose experts 0, 1 and 2; with 4 devices the first two of these are on one device.
SKEW = {"by the router": 0.0, "all to one device": 40.0}


checked, unchecked = jax.shard_map, functools.partial(jax.shard_map, check_vma=False)
kernels = triton._rows_matmul, triton._weights_gradient


def full_of_nan(shape, *_):
    """The worst content of uninitialized memory."""
    return jax.lax.pcast(jnp.full(shape.shape, jnp.nan, shape.dtype), AXES, to="varying")


def rows_or_nan(x_MD, weight_EDF, sizes_E, transposed):
    """In place of the kernel for rows."""
    weight_EDF = weight_EDF.swapaxes(1, 2) if transposed else weight_EDF
    used_M1 = jnp.arange(x_MD.shape[0])[:, None] < sizes_E.sum()
    return jnp.where(used_M1, jax.lax.ragged_dot(jnp.where(used_M1, x_MD, 0), weight_EDF, sizes_E), jnp.nan)


def weights_of_rows(x_MD, d_MF, weight_EDF, sizes_E):
    """In place of the kernel for the gradient of matrices."""
    used_M1 = jnp.arange(x_MD.shape[0])[:, None] < sizes_E.sum()
    x_MD, d_MF = jnp.where(used_M1, x_MD, 0), jnp.where(used_M1, d_MF, 0)
    return jax.vjp(lambda weight: jax.lax.ragged_dot(x_MD, weight, sizes_E), weight_EDF)[1](d_MF)[0]


def program(mesh):
    """Computes the output, the loads, and the gradients of tokens and parameters; compiled once for all routings."""
    with jax.set_mesh(mesh):
        graph, state = nnx.split(jax.eval_shape(lambda: MixtureOfExperts(CONFIG, nnx.Rngs(0))))
    on = lambda leaf: NamedSharding(mesh, RULES.spec(*leaf.get_metadata()["logical_axes"]))  # noqa: E731
    tokens, rows = (NamedSharding(mesh, RULES.spec(*axes)) for axes in (("batch", "time", None), ("batch", "time")))
    only_output = jax.shard_map is unchecked

    def loss(state, x_BTD, real_BT, cotangent_BTD):
        out, routing = nnx.merge(graph, state)(x_BTD, real_BT)
        return jnp.sum(out * cotangent_BTD), (out, routing.loads.sum(axis=(0, 1)))

    compiled = jax.jit(loss if only_output else jax.value_and_grad(loss, (0, 1), has_aux=True))

    def run(values, x_BTD, real_BT, cotangent_BTD):
        with jax.set_mesh(mesh):
            flat = [
                (path, leaf.replace(jax.device_put(values[path], on(leaf)))) for path, leaf in nnx.to_flat_state(state)
            ]
            arrays = jax.device_put((x_BTD, real_BT, cotangent_BTD), (tokens, rows, tokens))
            found = compiled(nnx.from_flat_state(flat), *arrays)
        if only_output:
            return np.asarray(found[1][0])
        (_, (out, loads)), grads = found
        return np.asarray(out), np.asarray(loads), [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]

    return run


def routings(module, x_BTD) -> dict[str, tuple]:
    """By routing: the parameters, and the output as it should be."""
    bias, found = np.asarray(module.router.bias[...]), {}
    for routing, skew in SKEW.items():
        with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
            module.router.bias[...] = jnp.asarray(bias + skew * (np.arange(8) < 3) * (3 - np.arange(8)))
        values = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.split(module)[1])}
        expected = by_hand(module, x_BTD.reshape(-1, CONFIG.width).astype(np.float64), 3, normalize=True)
        found[routing] = values, expected.reshape(x_BTD.shape)
    return found


def far(a, b) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def main():
    random, found = np.random.default_rng(0), {}
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        module = MixtureOfExperts(CONFIG, nnx.Rngs(0))
        for part in (module.router, module.gate, module.up, module.down):
            part.bias[...] = jnp.asarray(random.standard_normal(part.bias.shape), jnp.float32)
    x_BTD, cotangent_BTD = random.standard_normal((2, 8, 6, CONFIG.width)).astype(np.float32)
    given = x_BTD, random.random((8, 6)) < 0.7, cotangent_BTD
    cases, alone = routings(module, x_BTD), program(make_mesh({}, jax.devices()[:1]))
    one = {routing: alone(values, *given) for routing, (values, _) in cases.items()}
    shapes = {
        "expert 4, tensor 2": {"expert": 4, "tensor": 2},
        "expert 4, fsdp 2, ragged": {"expert": 4, "fsdp": 2},
        "expert 2, tensor 2, data 2, ragged, kernel": {"expert": 2, "tensor": 2, "data": 2},
    }
    for name, shape in shapes.items():
        exchange.has_ragged_all_to_all = moe.has_ragged_all_to_all = lambda name=name: "ragged" in name
        jax.lax.ragged_all_to_all, exchange._uninitialized_buffer = ragged_all_to_all, full_of_nan
        grouped.grouped_kernel = lambda name=name: "triton" if "kernel" in name else "ragged_dot"
        triton._rows_matmul, triton._weights_gradient = rows_or_nan, weights_of_rows
        on_mesh = program(make_mesh(shape))
        for routing, (values, expected) in cases.items():
            out, loads, grads = on_mesh(values, *given)
            found[f"{name}, {routing}"] = {
                "output": far(out, expected),
                "gradients": max(far(a, b) for a, b in zip(grads, one[routing][2], strict=True)),
                "loads": loads.tolist(),
                "loads of one device": one[routing][1].tolist(),
                "real": int(given[1].sum()),
            }
        if "kernel" in name:
            (triton._rows_matmul, triton._weights_gradient), jax.shard_map = kernels, unchecked
            interpreted = program(make_mesh(shape))
            for routing, (values, expected) in cases.items():
                found[f"{name}, {routing}"]["interpreted"] = far(interpreted(values, *given), expected)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
