"""Packs the parameters of a model in use: see `packed.py`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.model.architecture import is_hidden_matrix, matrix_sides
from tpullm.model.packed import UNIT, Packed
from tpullm.model.platform import LANES, is_one_cpu
from tpullm.model.quantized import Quantized, is_quantized


def can_pack(mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> bool:
    """Whether matrices on `mesh` that are multiplied in `dtype` may be packed: bfloat16 on one device, a CPU."""
    return is_one_cpu(mesh) and dtype == jnp.bfloat16


def packed_params(params: dict, axes: dict) -> dict:
    """The parameters of a model in use with each matrix and table packed, if its sizes allow it.

    Args:
        params: is emptied, so that no matrix is in memory twice for long.
        axes: of `Architecture`.
    """
    found = {}
    for name in list(params):
        leaf, own = params.pop(name), axes[name]
        if isinstance(leaf, dict):
            found[name] = packed_params(leaf, own)
        elif own == ("vocabulary", "embed"):
            found[name] = _packed(leaf, (1,), (0,))
        elif own[0] == "layers" and is_hidden_matrix(own) and "experts" not in own:
            found[name] = _packed(leaf, *matrix_sides(own))
        else:
            found[name] = leaf
    return found


def _packed(leaf: jax.Array | Quantized, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Any:
    """The matrix packed; as it is if its inputs end within a unit or a scale is of fewer.

    Args:
        inputs, outputs: its dimensions; any before them stack it.
    """
    shape, whole = leaf.shape, is_quantized(leaf)
    K, block = math.prod(shape[n] for n in inputs), shape[leaf.axis] // leaf.scales.shape[leaf.axis] if whole else UNIT
    if K % UNIT or block not in (UNIT, 2 * UNIT) or not (whole or leaf.dtype == jnp.bfloat16):
        return leaf
    before = [n for n in range(len(shape)) if n not in inputs + outputs]
    sizes = tuple(shape[n] for n in inputs), tuple(shape[n] for n in outputs)

    def outputs_first(array: np.ndarray) -> np.ndarray:
        stacked = [array.shape[n] for n in before]
        return array.transpose(*before, *outputs, *inputs).reshape(*stacked, math.prod(sizes[1]), -1)

    mesh = jax.tree.leaves(leaf)[0].sharding.mesh
    if not whole:
        return packed(outputs_first(np.asarray(leaf)), None, "bfloat16", *sizes, mesh)
    return packed(outputs_first(_bytes(leaf)), outputs_first(np.asarray(leaf.scales)), leaf.kind, *sizes, mesh)


def packed(
    codes: np.ndarray, scales: np.ndarray | None, kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...], mesh
) -> Packed:
    """A packed matrix, or several stacked.

    Args:
        codes: `[..., outputs, inputs]`; integers one in a byte, int8 plus 128, int4 plus 8.
        scales: `[..., outputs, blocks]`.
    """

    def tiles(array: np.ndarray) -> np.ndarray:
        *stacked, N, _ = array.shape
        filled = np.pad(array, [*[(0, 0)] * len(stacked), (0, -N % LANES), (0, 0)]) if N % LANES else array
        return filled.reshape(*stacked, -1, LANES, array.shape[-1])

    def place(array: np.ndarray) -> jax.Array:
        return jax.device_put(np.ascontiguousarray(array), jax.NamedSharding(mesh, jax.P(*[None] * array.ndim)))

    codes = tiles(codes)
    if kind == "int4":
        halves = codes.reshape(*codes.shape[:-1], -1, 2, UNIT // 2)
        codes = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*codes.shape[:-1], -1)
    together = codes.reshape(*codes.shape[:-1], -1, 2 if kind == "bfloat16" else 4)
    codes = np.swapaxes(together, -2, -3).reshape(*codes.shape[:-2], math.prod(inputs) // UNIT, -1)
    scales = scales if scales is None else place(np.swapaxes(tiles(scales), -1, -2))
    return Packed(place(codes), scales, kind, inputs, outputs)


def _bytes(leaf: Quantized) -> np.ndarray:
    """The codes of a quantized matrix, one in a byte: plus 128, or plus 8."""
    codes = np.asarray(leaf.codes)
    if leaf.kind == "int8":
        return codes.view(np.uint8) ^ 128
    at = codes.ndim + leaf.axis
    blocks = codes.reshape(*codes.shape[:at], leaf.scales.shape[at], -1, *codes.shape[at + 1 :])
    return np.concatenate([blocks & 15, blocks >> 4], axis=at + 1).reshape(leaf.shape)
