"""A trained model that is ready for use: its tokenizer, and its parameters on the devices."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpullm import log, storage
from tpullm.checkpoint import models
from tpullm.errors import UserError
from tpullm.huggingface import reading, weight_files
from tpullm.mesh.layout import mesh_in_use
from tpullm.model.platform import compute_dtype
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
    """

    tokenizer: Tokenizer | NoTokenizer
    architecture: Architecture
    params: Tree
    mesh: jax.sharding.Mesh
    dtype: jnp.dtype
    talks: bool = False

    @cached_property
    def layers(self) -> list[list[jax.Array]]:
        """The parameters of each layer as arrays of their own, which decoding reads for every token."""
        with jax.set_mesh(self.mesh):
            return _unstacked(self.architecture, self.params)

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the model reads at once."""
        return self.architecture.config.context_length


@partial(jax.jit, static_argnums=0)
def _unstacked(architecture: Architecture, params: Tree) -> list[list[jax.Array]]:
    return architecture.model(params).unstacked()


def load(model: str | Path, stages: tuple[str, ...] = models.STAGES, exact: bool = True, text: bool = True) -> Session:
    """The model that a MODEL argument names, on all devices: with several hosts, all of them call it.

    Args:
        model: a run directory, one of its stages, one checkpoint, or a directory in the format of Hugging Face.
        exact: for numbers that are shown; not needed for text. See `use_dtype`.
        text: the model will read or write text. If not, a published model can lack its tokenizer.

    Raises:
        UserError: `model` names no model, or the tokenizer is not the one that the model was trained with.
    """
    path = storage.path(model)
    if (path / "config.json").is_file():
        return _published(storage.local_copy(path), exact, text)
    found = models.find(model, stages)
    tokenizer = load_tokenizer(found.tokenizer_path)
    fits_vocabulary(tokenizer, found.config, found.tokenizer_path)
    mesh, dtype = mesh_in_use(found.config.width), use_dtype(exact)
    architecture = Architecture(found.config)
    with jax.set_mesh(mesh):
        params = models.load_params(found, targets(architecture, mesh, dtype))
    return Session(tokenizer, architecture, params, mesh, dtype, found.talks(tokenizer))


def _published(folder: Path, exact: bool, text: bool) -> Session:
    """A model in the format of Hugging Face."""
    config, family = reading.read_config(folder)
    if text or (folder / "tokenizer.json").is_file():
        tokenizer = PublishedTokenizer(folder)
        fits_vocabulary(tokenizer, config, folder / "tokenizer.json")
        talks = tokenizer.has_template
    else:
        tokenizer, talks = NoTokenizer(folder), False
    mesh, dtype = mesh_in_use(config.width), use_dtype(exact)
    architecture = Architecture(config)
    with weight_files.opened(folder) as source, log.progress("load", source.size, "bytes") as advance:
        arguments = (targets(architecture, mesh, dtype), architecture.axes, config.layers)
        params = reading.fill(source, family, *arguments, place, advance)
    return Session(tokenizer, architecture, params, mesh, dtype, talks)


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
