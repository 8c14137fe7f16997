"""A trained model that is ready for use: its tokenizer, its parameters on the devices, and what prompts fit it.

Prompts of any length become arrays of few shapes, so that few programs are compiled. A row is left-aligned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tpullm.formats import hub
from tpullm.formats.huggingface import adapters, tensors
from tpullm.formats.published import fill, published
from tpullm.model import quantized
from tpullm.model.adapter import NAME
from tpullm.model.architecture import Architecture, is_matrix
from tpullm.model.mesh import make_mesh, mesh_in_use, mesh_of_single_tokens
from tpullm.model.mesh_fit import check_quantized
from tpullm.model.packed import UNIT, Packed, is_packed
from tpullm.model.packing import can_pack, packed_params, placed
from tpullm.model.platform import compute_dtype, decodes_separate_layers, is_one_cpu
from tpullm.model.rows import row_parts
from tpullm.recipe.schema import ModelConfig
from tpullm.run import stages
from tpullm.system import log, storage
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.published import PublishedTokenizer

if TYPE_CHECKING:
    from tpullm.formats.models import Model

# Orbax is imported where a checkpoint is read: it takes 0.2 s, which a model of others need not wait for.

Tree = Any
SMALLEST_BUCKET = 16  # tokens
TABLES = {"embedding", "head"}


class NoTokenizer:
    """Stands in for the tokenizer that a published folder lacks: ids need none, and text raises a `UserError`."""

    pad_id = 0

    def __init__(self, folder: Path):
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        """Raise for every name but those that Python and notebooks look up on any object."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise UserError(f"{self._folder}: has no tokenizer.json, and text needs it; logits takes token ids")


@dataclass(frozen=True, eq=False)
class Session:
    """A model in use.

    Args:
        tokenizer: `NoTokenizer` if a published folder has none and none was asked for.
        architecture: builds the model from `params`.
        params: parameters on `mesh`.
        mesh: the devices.
        dtype: the dtype of matmuls.
        talks: the model was tuned on conversations: here, or, if it has a chat template, by its publisher.
        model: its checkpoint; None if it is a published folder.
        base: the model that this one has an adapter beside, whose parameters it shares.
        weights: of `quantized.IN_USE`, what its matrices were quantized to when it was opened; "" is not.
    """

    tokenizer: Tokenizer | NoTokenizer
    architecture: Architecture
    params: Tree
    mesh: jax.sharding.Mesh
    dtype: jnp.dtype
    talks: bool = False
    model: "Model | None" = None
    base: "Session | None" = None
    weights: str = ""
    _quantized: dict[str, "Session"] = field(default_factory=dict, repr=False)

    def quantized(self, kind: str) -> "Session":
        """The same checkpoint with its matrices quantized, in memory once.

        Args:
            kind: of `model.quantized`; "" is as they are.
        """
        if kind in ("", self.weights):
            return self
        if kind not in self._quantized:
            from tpullm.formats import models

            with jax.set_mesh(self.mesh):
                wanted = parameter_targets(self.architecture, self.mesh, self.dtype, kind)
                params = models.load_params(self.model, wanted)
            self._quantized[kind] = replace(self, params=params, weights=kind, _quantized={})
        return self._quantized[kind]

    @cached_property
    def layers(self) -> list[list[jax.Array]] | None:
        """The parameters of each layer as arrays of their own, which decoding reads for every token.

        None where it reads them in `params`.
        """
        with jax.set_mesh(self.mesh):
            if not decodes_separate_layers():
                return None
            if self.base is None:
                return _of_each_layer(self.architecture, self.params)
            return _layers_beside(self.base.layers, self.architecture, self.params)

    @property
    def arrays(self) -> tuple[Architecture, Tree, list[list[jax.Array]] | None]:
        """What the programs of the engine begin with."""
        return self.architecture, self.params, self.layers

    def memory_bytes(self) -> int:
        """What the parameters take on all devices, those in `layers` too."""
        own = [] if is_one_cpu(self.mesh) else self.layers
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.params, own)))

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the model reads at once."""
        return self.architecture.config.context_length


def _of_each_layer(architecture: Architecture, params: Tree) -> list[list[jax.Array]]:
    """The arrays of each layer from stacked ones, `[L, ...]`."""
    found = []
    for name, (_, numbers) in architecture.config.stacks.items():
        each = [_layers_of(stacked) for stacked in jax.tree.leaves(params.get(name, {}))]
        found += [[layers[n] for layers in each] for n in range(len(numbers))]
    return found


def _layers_of(stacked: jax.Array) -> list[jax.Array]:
    """The layers of one array: on one CPU parts of its memory, elsewhere copies."""
    if is_one_cpu(stacked.sharding.mesh):
        # Not of `stacked` itself: an array remembers its numpy twin, and could not be donated any more.
        whole, (_, *spec) = np.asarray(stacked.addressable_data(0)), jax.typeof(stacked).sharding.spec
        sharding = NamedSharding(stacked.sharding.mesh, PartitionSpec(*spec))
        return [jax.device_put(layer, sharding, may_alias=True) for layer in whole]
    return _unstacked(stacked)


@jax.jit
def _unstacked(stacked: jax.Array) -> list[jax.Array]:
    return list(stacked)


def _layers_beside(layers: list[list[jax.Array]], architecture: Architecture, params: Tree) -> list[list[jax.Array]]:
    """The parameters of each layer with those of its adapters between them, in the order of `unstacked`."""
    small, found = iter(_of_each_layer(architecture, architecture.trained(params))), []
    of_base = iter(layers)
    for name, (_, numbers) in architecture.config.stacks.items():
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params[name])]
        of_adapter = [jax.tree_util.DictKey(NAME) in path for path in paths]
        for _ in numbers:
            own, added = iter(next(of_base)), iter(next(small))
            found.append([next(added if adapts else own) for adapts in of_adapter])
    return found


def load_session(
    model: str | Path,
    tuned: bool = True,
    exact: bool = True,
    text: bool = True,
    mesh: Mapping[str, int] | None = None,
    weights: str = "",
) -> Session:
    """The model that a MODEL argument names, on all devices: with several hosts, all of them call it.

    Args:
        model: a run directory, one of its stages, one checkpoint, a directory in the format of Hugging Face, or a
            GGUF file.
        exact: for numbers that are shown; not needed for text. See `dtype_in_use`.
        text: the model will read or write text. If not, a published model can lack its tokenizer.
        mesh: sizes of the axes of the mesh; None chooses them. `sequence` splits the rows of a batch too.
        weights: of `quantized.IN_USE`, what matrices are quantized to, one at a time; "" keeps them.

    Raises:
        UserError: `model` names no model, the tokenizer is not the one that the model was trained with, or its matrices
            can't be quantized so.
    """
    return session_of(find_model(model, tuned, text, weights), exact, mesh)


def session_of(found: "Found", exact: bool = True, mesh: Mapping[str, int] | None = None) -> Session:
    """The model that was found, on all devices; arguments are those of `load_session`."""
    dtype, (architecture, used) = dtype_in_use(exact), built_on_mesh(found, mesh)
    packs = can_pack(used, dtype)
    params = found.params(architecture, targets_in_use(found, architecture, used, dtype), packs)
    if packs:
        with jax.set_mesh(used):
            params = packed_params(params, architecture.axes)
    return Session(found.tokenizer, architecture, params, used, dtype, found.talks, found.model, None, found.weights)


def built_on_mesh(found: "Found", mesh: Mapping[str, int] | None = None) -> tuple[Architecture, jax.sharding.Mesh]:
    """What builds the model that was found, and its mesh; the argument is that of `load_session`.

    Raises:
        UserError: there is no such mesh, or the matrices can't be quantized on it as `found.weights` says.
    """
    width, architecture = found.config.width, Architecture(found.config)
    parts = width // quantized.inputs_per_scale(width) if found.weights else width  # a device has whole blocks
    used = mesh_of_single_tokens(make_mesh(mesh)) if mesh else mesh_in_use(parts)
    if found.weights:
        check_quantized(architecture.placed(used), found.weights, used, f"--weights {found.weights}")
    return architecture, used


class Found(NamedTuple):
    """A model on disk: its tokenizer and its sizes, and `params`, which reads its parameters as a tree of targets, and
    may pack some of them if it is told that they will be packed.

    `kept` names parameters whose codes can be read as they are, with the kind of `Quantized`.
    """

    tokenizer: Tokenizer | NoTokenizer
    config: ModelConfig
    params: Callable[[Architecture, Tree, bool], Tree]
    talks: bool
    model: "Model | None" = None
    weights: str = ""
    kept: Callable[[Architecture], dict[str, str]] = lambda architecture: {}


def find_model(model: str | Path, tuned: bool = True, text: bool = True, weights: str = "") -> Found:
    """The model that a MODEL argument names, without its parameters; arguments and errors as of `load_session`."""
    path = storage.path(hub.located(str(model)))
    if stages.is_published(path):
        found = published(path)
        config, tokenizer, talks = found.config, NoTokenizer(path), False
        if text or (found.folder / "tokenizer.json").is_file():
            tokenizer = PublishedTokenizer(found.folder)
            check_vocabulary(tokenizer, config, found.folder / "tokenizer.json")
            talks, tokenizer.folder = tokenizer.has_template, path  # what errors name

        def filled(architecture: Architecture, wanted: Tree, packs: bool) -> Tree:
            with found.weights() as source, log.progress("load", source.size, "bytes") as advance:
                return fill(source, wanted, architecture.axes, place_array, advance, packs)

        def kept(architecture: Architecture) -> dict[str, str]:
            with found.weights() as source:
                return source.kept(architecture.shapes, architecture.axes)

        return Found(tokenizer, config, filled, talks, None, weights, kept)
    from tpullm.formats import models

    found = models.find(model, tuned)
    tokenizer = load_tokenizer(found.tokenizer_path)
    check_vocabulary(tokenizer, found.config, found.tokenizer_path)

    def params(architecture: Architecture, wanted: Tree, packs: bool) -> Tree:
        with jax.set_mesh(jax.tree.leaves(wanted)[0].sharding.mesh):
            return models.load_params(found, wanted)

    return Found(tokenizer, replace(found.config, matmuls="compute"), params, found.talks(tokenizer), found, weights)


def load_with_adapters(model: str, adapters: list[str], weights: str = "") -> dict[str, Session]:
    """The model with each of its adapters, by what they are called; without any the model itself, as ""."""
    session = load_session(model, exact=False, weights=weights)
    return {adapter: with_adapter(session, adapter) for adapter in adapters} or {"": session}


def with_adapter(session: Session, adapter: str | Path) -> Session:
    """The model with an adapter beside its parameters. However many adapters there are, it is in memory once, and once
    more as their quantized base, if they were trained with one.

    Args:
        adapter: a stage or a checkpoint that holds an adapter, or a folder in the format of PEFT.

    Raises:
        UserError: it is no adapter, or it is one of another model.
    """
    path, (architecture, mesh) = storage.path(adapter), (session.architecture, session.mesh)
    if (path / adapters.CONFIG).is_file():
        folder, shapes = storage.local_copy(path), tensors.flat(architecture.shapes)
        config, flat = adapters.read(folder, shapes)
        adapters.check(folder, tensors.flat((session.base or session).params), _sampled_numbers)
        whole = NamedSharding(mesh, PartitionSpec())
        found = tensors.nested({name: jax.device_put(array, whole) for name, array in flat.items()})
        talks, tokenizer = session.talks, session.tokenizer
    else:
        from tpullm.formats import models

        model = models.find(path)
        if model.adapter is None:
            raise UserError(f"{path}: holds a whole model and no adapter; give a stage that was tuned with an adapter")
        own, of = session.model, model.base
        if own is None or (of.directory, of.step) != (own.directory, own.step):
            where = f"{of.directory.parent}, step {of.step:,}"
            raise UserError(f"{path}: is an adapter of {where}, and of no other model; load that one")
        config, tokenizer = model.adapter, load_tokenizer(model.tokenizer_path)
        found = models.load_adapter(model, parameter_targets(architecture, mesh, session.dtype))
        talks = model.talks(tokenizer)
    architecture = Architecture(architecture.config, config)
    base, trained = session.base or session, config.quantize_base
    if base.weights and trained not in ("", base.weights):
        raise UserError(f"--weights {base.weights}: {path} was tuned beside matrices in {trained}; leave --weights out")
    base = base if base.weights else base.quantized(trained)
    params = architecture.whole(found, base.params)
    return Session(tokenizer, architecture, params, mesh, session.dtype, talks, session.model, base, session.weights)


def _sampled_numbers(matrix: jax.Array | quantized.Quantized) -> tuple[list[float], float]:
    """Some numbers of a matrix, and by how much quantizing it may have changed them: half of the largest step."""
    if is_packed(matrix):
        step = 0.0 if matrix.scales is None else float(jnp.max(matrix.scales))
        with jax.set_mesh(matrix.codes.sharding.mesh):
            numbers = jax.jit(Packed.unpacked)(matrix)
        return adapters.sampled_numbers(numbers), step / 2
    if not quantized.is_quantized(matrix):
        return adapters.sampled_numbers(matrix), 0.0
    with jax.set_mesh(matrix.codes.sharding.mesh):
        numbers, step = jax.jit(lambda of: (quantized.dequantized(of), jnp.max(of.scales)))(matrix)
    return adapters.sampled_numbers(numbers), float(step) / 2


def place_array(
    array: np.ndarray | quantized.Quantized | Packed, target: jax.ShapeDtypeStruct | quantized.Quantized
) -> jax.Array | quantized.Quantized | Packed:
    """The array on the devices, with the sharding of `target`, and quantized there if that is; or packed, if it is."""
    if is_packed(array):
        return placed(array, jax.tree.leaves(target)[0].sharding.mesh)
    if quantized.is_quantized(array):
        return jax.tree.map(lambda own, of: jax.device_put(own, of.sharding), array, target)
    if not quantized.is_quantized(target):
        return jax.device_put(array, target.sharding)
    sharding = target.codes.sharding
    with jax.set_mesh(sharding.mesh):
        # One matrix at a time: the numbers of a matrix are gone before the next one is placed.
        return jax.block_until_ready(quantized.quantize(jax.device_put(array, sharding), target.kind, target.axis))


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    """Refuse a tokenizer of another model; `UserError` names the file."""
    if tokenizer.needed_size > config.vocabulary_size:
        raise UserError(
            f"{where}: has {tokenizer.needed_size} tokens, more than the model's {config.vocabulary_size}: "
            "it is the tokenizer of another model"
        )


def dtype_in_use(exact: bool) -> jnp.dtype:
    """The dtype of matmuls when a model is used, whatever training chose: float32 on a CPU if `exact`.

    Probabilities are compared with the true ones, so a CPU computes them in float32. Text is written in the dtype of
    training: 12 M parameters on two cores wrote 318 tokens/s in float32 and 416 in bfloat16 (JAX 0.12).
    """
    return jnp.dtype("float32") if exact and jax.default_backend() == "cpu" else compute_dtype("auto")


def parameter_targets(architecture: Architecture, mesh: jax.sharding.Mesh, dtype: jnp.dtype, kind: str = "") -> Tree:
    """The arrays to restore: matrices in `dtype`, so that no step converts them; vectors in the dtype of the file.

    Args:
        kind: of `model.quantized`, what matrices are quantized to; "" keeps them.
    """

    def target(leaf, sharding, axes):
        return jax.ShapeDtypeStruct(leaf.shape, dtype if is_matrix(axes) else leaf.dtype, sharding=sharding)

    whole = jax.tree.map(target, architecture.shapes, architecture.shardings(mesh), architecture.axes)
    return quantized.packed_targets(whole, kind)


def targets_in_use(found: Found, architecture: Architecture, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Tree:
    """The arrays that `Found.params` fills: `parameter_targets`, with other kinds where matrices are packed.

    There, if `found.weights` quantizes matrices, the tables of tokens are quantized to int8; if it does not, parameters
    that a file has as codes keep these (`Found.kept`).
    """
    targets = tensors.flat(parameter_targets(architecture, mesh, dtype, found.weights))
    if can_pack(mesh, dtype):
        tables = {name: -1 for name in TABLES & targets.keys()}
        for name in tables if found.weights and architecture.config.width % UNIT == 0 else ():
            targets[name] = quantized.packed_target(targets[name], "int8", -1)
        for name, kind in ({} if found.weights else found.kept(architecture)).items():
            axis = tables.get(name) or quantized.INPUTS.get(name.split(".")[-2])
            if axis and targets[name].shape[axis] % UNIT == 0:
                targets[name] = quantized.packed_target(targets[name], kind, axis, UNIT, jnp.float16)
    return tensors.nested(targets)


def length_bucket(length: int) -> int:
    """The smallest power of two that is at least `length` and at least 16."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def near_length(length: int) -> int:
    """The smallest of four lengths between two powers of two that is at least `length`, and at least 16."""
    return max(SMALLEST_BUCKET, -(-length // (step := length_bucket(length) // 8)) * step)


def row_bucket(session: Session, rows: int) -> int:
    """The number of rows to compute for `rows`: a power of two times the devices that share the rows, at least 2.

    With one row, JAX 0.10 to 0.12 give a wrong sharding to the reshape of the query heads into groups of one.
    """
    devices = row_parts(session.mesh)
    return max(2, devices * (1 << (-(-rows // devices) - 1).bit_length()))


def padded_ids(session: Session, sequences: list[list[int]], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[rows, length]` int32, and the number of real tokens in each row, `[rows]`.

    A row without a sequence has one padding token that counts as real, so that every row has a last token.
    """
    tokens = np.full((rows, length), session.tokenizer.pad_id, np.int32)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
    lengths = np.ones(rows, np.int32)
    lengths[: len(sequences)] = [len(ids) for ids in sequences]
    return tokens, lengths


def check_context(session: Session, ids: list[int], what: str) -> None:
    """Refuse ids that are empty, longer than the context or outside the vocabulary; `UserError` names `what`."""
    if not ids:
        raise UserError(f"{what}: empty, and this model's tokenizer has no token that begins a text; give some text")
    if max(ids) >= session.architecture.config.vocabulary_size:
        raise UserError(f"{what}: holds token {max(ids)}, for which this model has no embedding; leave it out")
    if len(ids) > session.context_length:
        raise UserError(
            f"{what}: {len(ids)} tokens, the start token included, and the model's context holds "
            f"{session.context_length}; shorten it, or train with a larger model.context_length"
        )
