"""Packs the parameters of a model in use: see `packed.py`."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.model.architecture import is_hidden_matrix, matrix_sides
from tpullm.model.packed import UNIT, Packed, is_packed
from tpullm.model.platform import LANES, is_one_cpu
from tpullm.model.quantized import Quantized, is_quantized


def can_pack(mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> bool:
    """Whether matrices on `mesh` that are multiplied in `dtype` may be packed: bfloat16 on one device, a CPU."""
    return is_one_cpu(mesh) and dtype == jnp.bfloat16


def packed_params(params: dict, axes: dict) -> dict:
    """The parameters of a model in use with each matrix and table packed, if its sizes allow it.

    Args:
        params: is emptied, so that no matrix is in memory twice for long. Some may be packed already.
        axes: of `Architecture`.
    """
    found = {}
    for name in list(params):
        leaf, own = params.pop(name), axes[name]
        if isinstance(leaf, dict):
            found[name] = packed_params(leaf, own)
        elif is_packed(leaf) or is_packed(of := packed(jax.tree.map(np.asarray, leaf), own)):
            found[name] = leaf if is_packed(leaf) else placed(of, jax.tree.leaves(leaf)[0].sharding.mesh)
        else:
            found[name] = leaf
    return found


def placed(of: Packed, mesh: jax.sharding.Mesh) -> Packed:
    """A packed matrix on the devices of a mesh."""
    return jax.tree.map(lambda own: jax.device_put(own, jax.NamedSharding(mesh, jax.P(*[None] * own.ndim))), of)


def packed(leaf: np.ndarray | Quantized, axes: tuple[str, ...]) -> np.ndarray | Quantized | Packed:
    """The matrix packed, in numpy; as it is if it is none, its inputs end within a unit or a scale is of fewer.

    Its numbers are read in the order in which they are needed, and so fastest, if each output's inputs lie together.

    Args:
        leaf: one layer or expert of a parameter, or several stacked.
        axes: of the parameter.
    """
    if axes == ("vocabulary", "embed"):
        inputs, outputs = (1,), (0,)
    elif axes[0] == "layers" and is_hidden_matrix(axes) and "experts" not in axes:
        inputs, outputs = matrix_sides(axes)
    else:
        return leaf
    shape, whole = leaf.shape, is_quantized(leaf)
    inputs, outputs = (tuple(n - len(axes) + len(shape) for n in side) for side in (inputs, outputs))
    K, block = math.prod(shape[n] for n in inputs), shape[leaf.axis] // leaf.scales.shape[leaf.axis] if whole else UNIT
    if K % UNIT or block not in (UNIT, 2 * UNIT) or not (whole or leaf.dtype == jnp.bfloat16):
        return leaf
    before = [n for n in range(len(shape)) if n not in inputs + outputs]
    sizes = tuple(shape[n] for n in inputs), tuple(shape[n] for n in outputs)

    def tiles(array: np.ndarray) -> np.ndarray:
        stacked = [array.shape[n] for n in before]
        array = array.transpose(*before, *outputs, *inputs).reshape(*stacked, math.prod(sizes[1]), -1)
        *_, N, _ = array.shape
        filled = np.pad(array, [*[(0, 0)] * len(stacked), (0, -N % LANES), (0, 0)]) if N % LANES else array
        return filled.reshape(*stacked, -1, LANES, array.shape[-1])

    codes = tiles(_bytes(leaf) if whole else leaf)
    if whole and leaf.kind == "int4":
        halves = codes.reshape(*codes.shape[:-1], -1, 2, UNIT // 2)
        codes = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*codes.shape[:-1], -1)
    # Four bytes stand together in every kind.
    fours = np.ascontiguousarray(codes).view(np.uint32).swapaxes(-1, -2)
    codes = np.ascontiguousarray(fours).view(codes.dtype).reshape(*codes.shape[:-2], K // UNIT, -1)
    scales = np.ascontiguousarray(tiles(leaf.scales).swapaxes(-1, -2)) if whole else None
    return Packed(codes, scales, leaf.kind if whole else "bfloat16", *sizes)


def _bytes(leaf: Quantized) -> np.ndarray:
    """The codes of a quantized matrix, one in a byte: plus 128, or plus 8."""
    codes = leaf.codes
    if leaf.kind == "int8":
        return codes.view(np.uint8) ^ 128
    at = codes.ndim + leaf.axis
    blocks = codes.reshape(*codes.shape[:at], leaf.scales.shape[at], -1, *codes.shape[at + 1 :])
    return np.concatenate([blocks & 15, blocks >> 4], axis=at + 1).reshape(leaf.shape)
