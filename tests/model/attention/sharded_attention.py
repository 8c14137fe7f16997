"""Run by `tests/eight_devices.py`: attention on rows split along `sequence`, against plain attention.

Prints one JSON object: for each case the largest difference of the values and of each gradient, relative to the largest
number in it. The kernels of a TPU and of a GPU are interpreted.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.small import batch
from tpullm.model.attention import flash
from tpullm.model.attention.plain import attend, causal_mask
from tpullm.model.attention.splash import splash
from tpullm.model.attention.triton import triton_attention
from tpullm.model.mesh import RULES, axis_size, make_mesh, named_sharding
from tpullm.model.rows import to_zigzag_order, zigzag_order

LENGTH, HEADS, GROUPS, WIDTH = 1024, 2, 2, 128  # the shortest for splash on four devices: 4 x 2 chunks of 128 tokens
WINDOWS, SOFTCAP = [0, 150], 3.0  # a window that ends within a block, in the second of two kinds of layers
MESHES = {"sequence 4": {"sequence": 4}, "sequence 2, tensor 2": {"sequence": 2, "tensor": 2}}


def computed(shape: dict[str, int], kernel: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Values `[B, T, N, H]`, and gradients of queries, keys, values and sinks, in the order of the row.

    Args:
        kernel: `splash`, `triton`, `flash` or `plain`.
    """
    rows = batch(rows=1, length=LENGTH)
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])

    def attention(q_BTNH, k_BTKH, v_BTKH, sinks_N, segments_BT, positions_BT):
        k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        if kernel == "splash":
            return splash(q_BTNH, k_BKTH, v_BKTH, segments_BT, WINDOWS, jnp.int32(1), SOFTCAP, sinks_N)
        window = jnp.int32(WINDOWS[1])
        if kernel == "triton":
            return triton_attention(q_BTNH, k_BKTH, v_BKTH, positions_BT, window, SOFTCAP, sinks_N)
        if kernel == "flash":
            return flash.flash(q_BTNH, k_BKTH, v_BKTH, segments_BT, positions_BT, window, SOFTCAP, sinks_N)
        mask_BTS = causal_mask(segments_BT, positions_BT, segments_BT, positions_BT, window)
        return attend(q_BTNH, k_BKTH, v_BKTH, mask_BTS, SOFTCAP, sinks_N)[0]

    @jax.jit
    def both(q_BTNH, k_BTKH, v_BTKH, sinks_N, cotangent_BTNH, segments_BT, positions_BT):
        def real(q_BTNH, k_BTKH, v_BTKH, sinks_N):
            # Rows are put in zigzag order and the output back in the order of the row, both by gathers of whole rows.
            moved = (zigzagged(x) for x in (q_BTNH, k_BTKH, v_BTKH))
            mixed = in_order(attention(*moved, sinks_N, to_zigzag_order(segments_BT), to_zigzag_order(positions_BT)))
            # The output of padding is not compared: kernels differ in what it attends to.
            return jnp.where((segments_BT > 0)[:, :, None, None], mixed, 0)

        mixed, back = jax.vjp(real, q_BTNH, k_BTKH, v_BTKH, sinks_N)
        return mixed, *back(cotangent_BTNH)

    with jax.set_mesh(mesh):
        heads = named_sharding(mesh, "batch", None, "heads", "head")
        places = [*[heads] * 3, named_sharding(mesh, "heads"), heads, *[named_sharding(mesh, "batch", None)] * 2]
        placed = jax.device_put((*arrays, rows.segment_ids, rows.positions), tuple(places))
        return [np.asarray(x) for x in both(*placed)]


def zigzagged(x_BTNH):
    """Whole rows in zigzag order, split along `sequence`."""
    spec = RULES.spec("batch", "time", "heads", "head")
    return x_BTNH.at[:, order()].get(out_sharding=spec) if axis_size(RULES.time) > 1 else x_BTNH


def in_order(x_BTNH):
    """The inverse of `zigzagged`."""
    spec = RULES.spec("batch", None, "heads", "head")
    return jax.reshard(x_BTNH, spec).at[:, np.argsort(order())].get(out_sharding=spec)


def order() -> np.ndarray:
    return zigzag_order(LENGTH, axis_size(RULES.time))


def main():
    random, found = np.random.default_rng(0), {}
    shapes = [(1, LENGTH, HEADS, WIDTH), *[(1, LENGTH, GROUPS, WIDTH)] * 2, (HEADS,), (1, LENGTH, HEADS, WIDTH)]
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    plain = computed({}, "plain", arrays)
    for kernel in ("splash", "triton", "flash"):
        for name, shape in MESHES.items():
            ours = computed(shape, kernel, arrays)
            far = lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))  # noqa: E731
            found[f"{kernel}, {name}"] = [far(a, b) for a, b in zip(ours, plain, strict=True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
