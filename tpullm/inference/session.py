"""A trained model that is ready for use: its tokenizer, and its parameters on the devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tpullm import log, storage
from tpullm.checkpoint import models
from tpullm.errors import UserError
from tpullm.huggingface import adapter_base, adapters, reading, tensors, weight_files
from tpullm.mesh.layout import make_mesh, mesh_in_use, of_single_tokens
from tpullm.model import quantized
from tpullm.model.adapter import NAME
from tpullm.model.platform import compute_dtype, decodes_separate_layers
from tpullm.recipe.schema import ModelConfig
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.training.optimizer.chain import is_matrix
from tpullm.training.state import Architecture

Tree = Any


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
    """

    tokenizer: Tokenizer | NoTokenizer
    architecture: Architecture
    params: Tree
    mesh: jax.sharding.Mesh
    dtype: jnp.dtype
    talks: bool = False
    model: models.Model | None = None
    base: "Session | None" = None
    _quantized: dict[str, "Session"] = field(default_factory=dict, repr=False)

    def quantized(self, kind: str) -> "Session":
        """The same checkpoint with its matrices quantized, in memory once.

        Args:
            kind: of `model.quantized`; "" is as they are.
        """
        if kind and kind not in self._quantized:
            wanted = quantized.targets(targets(self.architecture, self.mesh, self.dtype), kind)
            with jax.set_mesh(self.mesh):
                params = models.load_params(self.model, wanted)
            self._quantized[kind] = replace(self, params=params, _quantized={})
        return self._quantized[kind] if kind else self

    @cached_property
    def layers(self) -> list[list[jax.Array]] | None:
        """The parameters of each layer as arrays of their own, which decoding reads for every token.

        None where it reads them in `params`.
        """
        with jax.set_mesh(self.mesh):
            if not decodes_separate_layers():
                return None
            if self.base is None:
                return _unstacked(self.architecture, self.params)
            return _beside(self.base.layers, self.architecture, self.params)

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the model reads at once."""
        return self.architecture.config.context_length


@partial(jax.jit, static_argnums=0)
def _unstacked(architecture: Architecture, params: Tree) -> list[list[jax.Array]]:
    return architecture.model(params).unstacked()


def _beside(layers: list[list[jax.Array]], architecture: Architecture, params: Tree) -> list[list[jax.Array]]:
    """The parameters of each layer with those of its adapters between them, in the order of `unstacked`."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params["layers"])]
    of_adapter = [jax.tree_util.DictKey(NAME) in path for path in paths]
    stacked = jax.tree.leaves(architecture.trained(params))
    small = jax.jit(lambda leaves: [[leaf[n] for leaf in leaves] for n in range(len(layers))])(stacked)
    turns = [(iter(of_base), iter(of_layer)) for of_base, of_layer in zip(layers, small, strict=True)]
    return [[next(added if adapts else own) for adapts in of_adapter] for own, added in turns]


def load(
    model: str | Path,
    tuned: bool = True,
    exact: bool = True,
    text: bool = True,
    mesh: Mapping[str, int] | None = None,
) -> Session:
    """The model that a MODEL argument names, on all devices: with several hosts, all of them call it.

    Args:
        model: a run directory, one of its stages, one checkpoint, or a directory in the format of Hugging Face.
        exact: for numbers that are shown; not needed for text. See `use_dtype`.
        text: the model will read or write text. If not, a published model can lack its tokenizer.
        mesh: sizes of the axes of the mesh; None chooses them. `sequence` splits the rows of a batch too.

    Raises:
        UserError: `model` names no model, or the tokenizer is not the one that the model was trained with.
    """
    return loaded(find(model, tuned, text), exact, mesh)


def loaded(found: "Found", exact: bool = True, mesh: Mapping[str, int] | None = None) -> Session:
    """The model that was found, on all devices; arguments are those of `load`."""
    used = of_single_tokens(make_mesh(mesh)) if mesh else mesh_in_use(found.config.width)
    dtype, architecture = use_dtype(exact), Architecture(found.config)
    params = found.params(architecture, used, dtype)
    return Session(found.tokenizer, architecture, params, used, dtype, found.talks, found.model)


class Found(NamedTuple):
    """A model on disk: its tokenizer and its sizes, and `params`, which reads its parameters onto a mesh."""

    tokenizer: Tokenizer | NoTokenizer
    config: ModelConfig
    params: Callable[[Architecture, jax.sharding.Mesh, jnp.dtype], Tree]
    talks: bool
    model: models.Model | None = None


def find(model: str | Path, tuned: bool = True, text: bool = True) -> Found:
    """The model that a MODEL argument names, without its parameters; arguments and errors are those of `load`."""
    path = storage.path(model)
    if (path / "config.json").is_file():
        return _published(storage.local_copy(path), text)
    found = models.find(model, tuned)
    tokenizer = load_tokenizer(found.tokenizer_path)
    fits_vocabulary(tokenizer, found.config, found.tokenizer_path)

    def params(architecture: Architecture, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Tree:
        with jax.set_mesh(mesh):
            return models.load_params(found, targets(architecture, mesh, dtype))

    return Found(tokenizer, replace(found.config, matmuls="compute"), params, found.talks(tokenizer), found)


def load_each(model: str, adapters: list[str]) -> dict[str, Session]:
    """The model with each of its adapters, by what they are called; without any the model itself, as ""."""
    session = load(model, exact=False)
    return {adapter: with_adapter(session, adapter) for adapter in adapters} or {"": session}


def with_adapter(session: Session, adapter: str | Path) -> Session:
    """The model with an adapter beside its parameters. However many adapters there are, it is in memory once, and once
    more as their quantized base, if they were trained with one.

    Args:
        adapter: a stage or a checkpoint that holds an adapter, or a folder in the format of PEFT.

    Raises:
        UserError: it is no adapter, or it is one of another model.
    """
    path, shapes, talks, tokenizer = (
        storage.path(adapter),
        session.architecture.shapes,
        session.talks,
        session.tokenizer,
    )
    whole = NamedSharding(session.mesh, PartitionSpec())
    if (path / adapters.CONFIG).is_file():
        folder = storage.local_copy(path)
        config, flat = adapters.read(folder, tensors.flat(shapes), session.architecture.config.layers)
        adapter_base.check(folder, tensors.flat((session.base or session).params))
        found = tensors.nested({name: jax.device_put(array, whole) for name, array in flat.items()})
    else:
        model = models.find(path)
        if model.adapter is None:
            raise UserError(f"{path}: holds a whole model and no adapter; give a stage that was tuned with an adapter")
        if session.model is None or (model.base.directory, model.base.step) != (
            session.model.directory,
            session.model.step,
        ):
            raise UserError(
                f"{path}: is an adapter of {model.base.directory.parent}, step {model.base.step:,}, and of no other "
                "model; load that one"
            )
        config, tokenizer = model.adapter, load_tokenizer(model.tokenizer_path)
        found, talks = (
            models.load_adapter(model, targets(session.architecture, session.mesh, session.dtype)),
            model.talks(tokenizer),
        )
    architecture = Architecture(session.architecture.config, config)
    base = (session.base or session).quantized(config.quantize_base)
    params = architecture.whole(found, base.params)
    return Session(tokenizer, architecture, params, session.mesh, session.dtype, talks, session.model, base)


def _published(folder: Path, text: bool) -> Found:
    """A model in the format of Hugging Face."""
    config, family = reading.read_config(folder)
    if text or (folder / "tokenizer.json").is_file():
        tokenizer = PublishedTokenizer(folder)
        fits_vocabulary(tokenizer, config, folder / "tokenizer.json")
        talks = tokenizer.has_template
    else:
        tokenizer, talks = NoTokenizer(folder), False

    def params(architecture: Architecture, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Tree:
        with weight_files.opened(folder) as source, log.progress("load", source.size, "bytes") as advance:
            arguments = (targets(architecture, mesh, dtype), architecture.axes, config.layers)
            return reading.fill(source, family, *arguments, place, advance)

    return Found(tokenizer, config, params, talks)


def place(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """The array on the devices, with the sharding of `target`."""
    return jax.device_put(array, target.sharding)


def fits_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    """Refuse a tokenizer of another model; `UserError` names the file."""
    if tokenizer.needed_size > config.vocabulary_size:
        raise UserError(
            f"{where}: has {tokenizer.needed_size} tokens, more than the model's {config.vocabulary_size}: "
            "it is the tokenizer of another model"
        )


def use_dtype(exact: bool) -> jnp.dtype:
    """The dtype of matmuls when a model is used, whatever training chose: float32 on a CPU if `exact`.

    Probabilities are compared with the true ones, so a CPU computes them in float32. Text is written in the dtype of
    training: 12 M parameters on two cores wrote 318 tokens/s in float32 and 416 in bfloat16 (JAX 0.12).
    """
    return jnp.dtype("float32") if exact and jax.default_backend() == "cpu" else compute_dtype("auto")


def targets(architecture: Architecture, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Tree:
    """The arrays to restore: matrices in `dtype`, so that no step converts them; vectors in the dtype of the file."""

    def target(axes, shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, dtype if is_matrix(axes) else shape.dtype, sharding=sharding)

    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(target, architecture.axes, architecture.shapes, architecture.shardings(mesh), is_leaf=is_axes)
