"""Their tensors → our parameters and back, one tensor at a time.

Theirs are `[out, in]`, one for each layer, or one for each expert of a layer. Ours are stacked, `[L, *inputs,
*outputs]` or `[L, E, *inputs, *outputs]`, with a dimension for heads and one for their width. Tables have the same
layout in both, and so has a tensor with all experts of a layer. If such a tensor holds two of our parameters, they
alternate along its last dimension (gpt-oss).
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tpullm.formats.huggingface.families import Family

Tree = Any
# The layer and the expert of a tensor: both, the layer alone, or neither.
Place = tuple[int, ...]


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """`{"layers": {"mlp": ...}}` as `{"layers.mlp...": leaf}`."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def pieces(family: Family, shapes: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Place]]:
    """For each of their tensors: its name, the names of our parameters in it, and its place in them.

    Args:
        shapes: the shapes of our parameters, by flat name. A parameter without a shape is not in the model.
    """
    dense = next((of.shape[0] for name, of in shapes.items() if name.startswith("dense_layers.")), 0)
    tables = {theirs: (ours,) if isinstance(ours, str) else ours for theirs, ours in family.names.items()}
    own = {name for ours in tables.values() for name in ours}
    for theirs, ours in tables.items():
        # What layers have in common has the same name in the first ones, which have no experts.
        common = tuple(f"dense_{name}" for name in ours)
        for names in (ours, *([common] if common[0] not in own else [])):
            if names[0] in shapes:
                first = 0 if names[0].startswith("dense_layers.") else dense
                stacked = shapes[names[0]].shape[: theirs.count("{}")]
                for place in itertools.product(*map(range, stacked)):
                    yield theirs.format(*(place and (place[0] + first, *place[1:]))), names, place


def split(family: Family, tensor: np.ndarray, shapes: list[tuple[int, ...]], inputs: int) -> list[np.ndarray]:
    """The parts of one of their tensors in our layout, as views of it.

    Args:
        shapes: the shapes of the parts.
        inputs: the result of `input_dimensions`.
    """
    assert tensor.shape == their_shape(family, shapes, inputs), f"{tensor.shape}: see reading.check"
    if inputs == 0:
        return [tensor[..., turn :: len(shapes)] for turn in range(len(shapes))]
    parts = tensor.T if family.transposed and inputs > 0 else tensor
    sizes = [math.prod(shape[max(inputs, 0) :]) for shape in shapes]
    parts = np.split(parts, np.cumsum(sizes)[:-1], axis=-1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def joined(family: Family, ours: list[np.ndarray], inputs: int) -> np.ndarray:
    """The inverse of `split`."""
    if inputs == 0:
        return ours[0] if len(ours) == 1 else np.stack(ours, axis=-1).reshape(*ours[0].shape[:-1], -1)
    if inputs < 0:
        return np.concatenate([part.reshape(-1) for part in ours])
    parts = np.concatenate([part.reshape(math.prod(part.shape[:inputs]), -1) for part in ours], axis=1)
    return np.ascontiguousarray(parts.T if family.transposed else parts)


def their_shape(family: Family, shapes: list[tuple[int, ...]], inputs: int) -> tuple[int, ...]:
    """The shape of the tensor that holds parameters of `shapes`."""
    if inputs == 0:
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    outputs = sum(math.prod(shape[max(inputs, 0) :]) for shape in shapes)
    if inputs < 0:
        return (outputs,)
    rows = math.prod(shapes[0][:inputs])
    return (outputs, rows) if family.transposed else (rows, outputs)


def input_dimensions(name: str, axes: tuple[str, ...], place: Place) -> int:
    """How many dimensions of our parameter are inputs of its matmul; -1 for a vector, 0 if the layouts are the same."""
    axes = axes[len(place) :]
    if name in ("embedding", "position_embedding", "head") or (axes[0] == "experts" and len(axes) > 1):
        return 0
    if is_vector(name):
        return -1
    return len(axes) - 1 if axes[-1] == "embed" else 1


def is_vector(name: str) -> bool:
    """Whether our parameter of this name is a vector, such as a scale, and no matrix or table."""
    return name.endswith((".scale", ".bias", ".sinks", ".balance"))


def nested(flat_tree: dict[str, Any]) -> Tree:
    """The inverse of `flat`."""
    tree: Tree = {}
    for name, value in flat_tree.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
