"""Whether a training fits its mesh: an error names the key of the recipe whose size does not, and sizes that do.

Checked from shapes alone, before anything is compiled.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, Mesh

from tpullm.hardware.chips import of_kind
from tpullm.model.adapter import NAME
from tpullm.model.architecture import Architecture
from tpullm.model.attention.kernels import largest_block
from tpullm.model.mesh import RULES
from tpullm.model.quantized import FOUR_BITS, IN_USE, change_each_matrix, inputs_per_scale
from tpullm.recipe.schema import AdapterConfig, ModelConfig, TrainConfig
from tpullm.system.errors import UserError

# The key of `model` in the recipe that is the size of each logical dimension of a parameter.
KEYS = {
    "layers": "layers",
    "embed": "width",
    "width": "width",
    "heads": "heads",
    "kv_heads": "kv_heads",
    "head": "head_width",
    "mlp": "mlp_width",
    "experts": "experts",
    "routes": "experts",
    "vocabulary": "vocabulary_size",
    "position": "context_length",
}


def check_fits(
    architecture: Architecture,
    config: TrainConfig,
    vocabulary: int,
    mesh: Mesh | AbstractMesh,
    stage: str,
    sizes_given: bool = False,
) -> None:
    """Refuse sizes that don't fit the mesh or the tokenizer; `UserError` names the key.

    Args:
        vocabulary: token ids of the tokenizer.
        stage: the key of `config` in the recipe.
        sizes_given: the parameters exist already, so the sizes of the model can't change.
    """
    model = architecture.config
    if model.vocabulary_size < vocabulary:
        raise UserError(
            f"model.vocabulary_size: {model.vocabulary_size} is smaller than the tokenizer's {vocabulary}; set it to 0"
        )
    if config.sequence_length > model.context_length:
        raise UserError(
            f"{stage}.sequence_length: {config.sequence_length} tokens, and the model's context holds "
            f"{model.context_length}; use {model.context_length} or less"
        )
    _check_micro_batch_rows(config, mesh, stage)
    _check_row_length(config, model, mesh, stage)
    if device := mesh.abstract_mesh.abstract_device:
        kind = device.device_kind
        if device.platform == "tpu" and model.attention_block > (most := largest_block(kind)):
            raise UserError(
                f"model.attention_block: {model.attention_block} does not fit the memory on the chip of a "
                f"{kind}; use {most} or less"
            )
        if model.matmuls == "fp8" and device.platform != "cpu" and not of_kind(kind).fp8:  # a CPU multiplies it slowly
            raise UserError(f"model.matmuls: {kind} is not known to multiply fp8 (hardware/chips.yaml); use compute")
    _check_model_sizes(architecture, vocabulary, mesh, sizes_given)


def check_adapter(architecture: Architecture, mesh: Mesh | AbstractMesh, key: str) -> None:
    """Refuse an adapter that the model has no matrices for, or that is wider than one of them, or a base that the mesh
    can't have quantized.

    Args:
        key: of the adapter in the recipe.
    """
    if kind := architecture.adapter.quantize_base:
        check_quantized(architecture.frozen(architecture.placed(mesh)), kind, mesh, f"{key}.quantize_base")
    adapter, shapes = architecture.adapter, {path: of.shape for path, of in flatten_dict(architecture.shapes).items()}
    matrices = {path[:-1]: shape for path, shape in shapes.items() if path[-1] == "weight"}
    adapted = {path: shape for path, shape in matrices.items() if (*path, NAME, "a") in shapes}
    for target in adapter.targets if adapter.targets != AdapterConfig().targets else ():
        if target not in {path[-1] for path in adapted}:
            there = ", ".join(dict.fromkeys(path[-1] for path in matrices))
            raise UserError(
                f"{key}.targets: this model has no matrix {target} that can have an adapter; it has {there}"
            )
    for path, shape in adapted.items():
        a, b = (shapes[*path, NAME, which] for which in "ab")
        stacked = len(a) + len(b) - 2 - len(shape)
        most = min(math.prod(a[stacked:-1]), math.prod(b[stacked + 1 :]))
        if adapter.rank > most:
            raise UserError(
                f"{key}.rank: {adapter.rank} is above the rank of the matrix {path[-1]}, {most}; use {most} or less, "
                "or train all parameters (0)"
            )


def check_quantized(shapes: Any, kind: str, mesh: Mesh | AbstractMesh, key: str) -> None:
    """A device has whole blocks of the quantized matrices, and two codes for each byte.

    Args:
        shapes: of the parameters, with their shardings on `mesh`.
        kind: of `model.quantized`.
        key: of the recipe, or the option, that asks for it.
    """

    def check(matrix: jax.ShapeDtypeStruct, axis: int) -> None:
        inputs, split = matrix.shape[axis], matrix.sharding.spec[axis]
        block, parts = inputs_per_scale(inputs), mesh.shape[split] if split else 1
        if kind in FOUR_BITS and block % 2:
            use = "int8" if kind in IN_USE else "int8 or fp8"
            raise UserError(f"{key}: {kind} has two codes in a byte, and a matrix here has {inputs} inputs; use {use}")
        if inputs // parts % block:
            most = "a divisor of " if inputs // block > 1 else ""
            raise UserError(
                f"{key}: a scale is of {block} inputs of a matrix, and with {parts} devices along mesh.{split} its "
                f"{inputs} inputs are {inputs / parts:g} inputs a device; use mesh.{split} {most}{inputs // block}"
            )

    change_each_matrix(shapes, check)


def _check_micro_batch_rows(config: TrainConfig, mesh: Mesh | AbstractMesh, stage: str) -> None:
    """The rows of a micro-batch, over all axes that split them."""
    batch, rows = config.batch_size, config.batch_size // config.accumulation
    parts = math.prod(mesh.shape[axis] for axis in RULES.batch)
    if rows % parts == 0:
        return
    axes = " x ".join(f"mesh.{axis}" for axis in RULES.batch if mesh.shape[axis] > 1)
    whole = parts * config.accumulation
    ways = {
        "batch_size": nearest_sizes(batch, lambda size: size % whole == 0, whole),
        "accumulation": nearest_sizes(config.accumulation, lambda count: batch % (count * parts) == 0, batch),
        axes: nearest_sizes(parts, lambda size: rows % size == 0 and _mesh_allows(mesh, size), rows),
    }
    _refuse_size(f"{stage}.batch_size: {rows} rows (batch_size / accumulation)", parts, axes, ways)


def _check_row_length(config: TrainConfig, model: ModelConfig, mesh: Mesh | AbstractMesh, stage: str) -> None:
    """The tokens of a row, in two chunks for each device (`model/rows.py`), and in those of the loss."""
    length, parts = config.sequence_length, mesh.shape[RULES.time]
    chunks = lambda devices: 2 * devices if devices > 1 else 1  # noqa: E731
    if length % chunks(parts):
        longer = lambda size: size % chunks(parts) == 0 and size <= model.context_length  # noqa: E731
        split = lambda count: length % chunks(count) == 0 and _mesh_allows(mesh, count)  # noqa: E731
        axis = f"mesh.{RULES.time}"
        ways = {"sequence_length": nearest_sizes(length, longer, 2 * parts), axis: nearest_sizes(parts, split, length)}
        _refuse_size(f"{stage}.sequence_length: {length} tokens, in 2 chunks a device,", parts, axis, ways)
    own = length // parts
    if config.loss_chunks and own % config.loss_chunks:
        sizes = nearest_sizes(config.loss_chunks, lambda count: own % count == 0, own)
        told = f"{stage}.loss_chunks: {config.loss_chunks} does not divide the {own} tokens of a row"
        raise UserError(f"{told} that a device has; use {sizes}")


def _check_model_sizes(architecture: Architecture, vocabulary: int, mesh: Mesh | AbstractMesh, sizes_given: bool):
    """The sizes of the model. The proposed sizes of an axis fit all dimensions that it splits."""
    model, axes = architecture.config, flatten_dict(architecture.axes).values()
    used = {dimension for dimensions in axes for dimension in dimensions}
    for axis, parts in mesh.shape.items():
        split = [dimension for dimension in KEYS if dimension in used and getattr(RULES, dimension) == axis]
        for dimension in split:
            key, size = KEYS[dimension], getattr(model, KEYS[dimension])
            if size % parts == 0:
                continue
            most = math.gcd(*(getattr(model, KEYS[other]) for other in split))
            shared = lambda count: most % count == 0 and _mesh_allows(mesh, count)  # noqa: B023, E731 (called at once)
            ways = {f"mesh.{axis}": nearest_sizes(parts, shared, most)}
            if not sizes_given:
                fits = lambda to: to % parts == 0 and _model_allows(model, vocabulary, dimension, to)  # noqa: B023, E731
                ways[f"model.{key}"] = nearest_sizes(size, fits, 2 * parts * model.heads)
            _refuse_size(f"model.{key}: {size}", parts, f"mesh.{axis}", ways)


def _model_allows(model: ModelConfig, vocabulary: int, dimension: str, size: int) -> bool:
    """Whether the model could have this size if its other sizes stay (see `checks.check`)."""
    if dimension == "heads":
        return model.kv_heads == model.heads or size % model.kv_heads == 0
    if dimension == "kv_heads":
        return model.heads % size == 0
    if dimension == "embed" and model.width == model.heads * model.head_width:  # the head's width follows; even
        return size % (2 * model.heads) == 0
    return size >= {"vocabulary": vocabulary, "experts": model.experts_per_token}.get(dimension, 1)


def _mesh_allows(mesh: Mesh | AbstractMesh, size: int) -> bool:
    """Whether axes could have this many devices: the number of devices of a real mesh is fixed."""
    return isinstance(mesh, AbstractMesh) or mesh.size % size == 0


def nearest_sizes(size: int, fits: Callable[[int], bool], most: int) -> str:
    """The next smaller and the next larger number that `fits`, the latter at most `most` larger; empty if none."""
    smaller = next((other for other in range(size - 1, 0, -1) if fits(other)), None)
    larger = next((other for other in range(size + 1, size + most + 1) if fits(other)), None)
    return " or ".join(str(other) for other in (smaller, larger) if other is not None)


def _refuse_size(what: str, devices: int, axes: str, ways: dict[str, str]) -> None:
    told = [f"{key} {sizes}" for key, sizes in ways.items() if sizes]
    last = f"{', '.join(told[:-1])}, or {told[-1]}" if told[1:] else told[0]
    raise UserError(f"{what} can't be shared by {devices} devices along {axes}; use {last}")
