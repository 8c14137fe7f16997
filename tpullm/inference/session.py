"""A trained model ready for use: tokenizer, parameters on the devices, the shapes that programs are compiled for."""

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
from tpullm.mesh.layout import RULES, make_mesh
from tpullm.model.platform import compute_dtype
from tpullm.recipe.schema import ModelConfig
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.training.optimizer.chain import is_matrix
from tpullm.training.state import Architecture

Tree = Any
SMALLEST_BUCKET = 16


class NoTokenizer:
    """In place of a tokenizer that a published folder does not have: ids need none, and text is a `UserError`."""

    pad_id = 0

    def __init__(self, folder: Path):
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        """Whatever is asked of it, but what Python and notebooks ask of any object."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise UserError(f"{self._folder}: has no tokenizer.json, and text needs it; logits takes token ids")


@dataclass(frozen=True, eq=False)
class Session:
    """A model in use.

    Args:
        tokenizer: reads and writes for the model (`NoTokenizer` if it was not asked to).
        architecture: builds the model from `params`.
        params: parameters on `mesh`.
        mesh: the devices.
        dtype: type of the products.
        talks: it was tuned on conversations, here or (there is a chat template) by those who published it.
    """

    tokenizer: Tokenizer | NoTokenizer
    architecture: Architecture
    params: Tree
    mesh: jax.sharding.Mesh
    dtype: jnp.dtype
    talks: bool = False

    @cached_property
    def layers(self) -> list[list[jax.Array]]:
        """The parameters of each layer, apart from those of the others: what decoding reads for every token."""
        with jax.set_mesh(self.mesh):
            return _unstacked(self.architecture, self.params)

    @property
    def context_length(self) -> int:
        """The most tokens that the model looks at."""
        return self.architecture.config.context_length


@partial(jax.jit, static_argnums=0)
def _unstacked(architecture: Architecture, params: Tree) -> list[list[jax.Array]]:
    return architecture.model(params).unstacked()


def load(model: str | Path, stages: tuple[str, ...] = models.STAGES, exact: bool = True, text: bool = True) -> Session:
    """The model that a MODEL argument names, on all devices of this host.

    Args:
        model: a run directory, one of its stages, one checkpoint, or a directory in the format of Hugging Face.
        exact: for numbers that are shown, not for text: see `use_dtype`.
        text: it will read or write text; if not, a published model may lack its tokenizer.

    Raises:
        UserError: it names no model, or the tokenizer is not the one that the model was trained with.
    """
    path = storage.path(model)
    if (path / "config.json").is_file():
        return _published(storage.local_copy(path), exact, text)
    found = models.find(model, stages)
    tokenizer = load_tokenizer(found.tokenizer_path)
    fits_vocabulary(tokenizer, found.config, found.tokenizer_path)
    mesh, dtype = make_mesh({"fsdp": -1}, jax.local_devices()), use_dtype(exact)
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
    mesh, dtype = make_mesh({"fsdp": -1}, jax.local_devices()), use_dtype(exact)
    architecture = Architecture(config)
    with weight_files.opened(folder) as source, log.progress("load", source.size, "bytes") as advance:
        arguments = (targets(architecture, mesh, dtype), architecture.axes, config.layers)
        params = reading.fill(source, family, *arguments, place, advance)
    return Session(tokenizer, architecture, params, mesh, dtype, talks)


def place(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """An array on the devices, as `target` says."""
    return jax.device_put(array, target.sharding)


def fits_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    """Refuse the tokenizer of another model; `UserError` names the file."""
    if tokenizer.needed_size > config.vocabulary_size:
        raise UserError(
            f"{where}: has {tokenizer.needed_size} tokens, more than the model's {config.vocabulary_size}: "
            "it is the tokenizer of another model"
        )


def use_dtype(exact: bool) -> jnp.dtype:
    """The type of the products when a model is used, whatever training chose: float32 on a CPU for what is exact.

    Probabilities are compared with the exact truth, so a CPU computes them exactly. Text is written in the type that
    training takes: 12 M parameters on two cores wrote 318 tokens/s in float32 and 416 in bfloat16 (JAX 0.12).
    """
    return jnp.dtype("float32") if exact and jax.default_backend() == "cpu" else compute_dtype("auto")


def targets(architecture: Architecture, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Tree:
    """What to restore into: matrices in `dtype`, so that no step converts them; vectors in the type that was saved."""

    def target(axes, shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, dtype if is_matrix(axes) else shape.dtype, sharding=sharding)

    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(target, architecture.axes, architecture.shapes, architecture.shardings(mesh), is_leaf=is_axes)


def bucket(length: int) -> int:
    """The power of two, at least 16, that holds `length`: lengths share a compiled program."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def row_bucket(session: Session, rows: int) -> int:
    """The power of two, times the devices that rows are split over, that holds `rows`; at least 2.

    With one row, JAX 0.10 to 0.12 give a wrong sharding to the reshape of the query heads into groups of one.
    """
    devices = int(np.prod([session.mesh.shape[axis] for axis in RULES.batch]))
    return max(2, devices * (1 << (-(-rows // devices) - 1).bit_length()))


def padded(session: Session, sequences: list[list[int]], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[rows, length]` int32, left-aligned and padded, and how many of each row are real, `[rows]`.

    Rows beyond the sequences hold one padding token, which counts as real: every row has a last token.
    """
    tokens = np.full((rows, length), session.tokenizer.pad_id, np.int32)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
    lengths = np.ones(rows, np.int32)
    lengths[: len(sequences)] = [len(ids) for ids in sequences]
    return tokens, lengths


def fits(session: Session, ids: list[int], what: str) -> None:
    """Refuse what is longer than the context, empty or beyond the vocabulary; `UserError` names `what`."""
    if not ids:
        raise UserError(f"{what}: empty, and this model's tokenizer has no token that begins a text; give some text")
    if max(ids) >= session.architecture.config.vocabulary_size:
        raise UserError(f"{what}: holds token {max(ids)}, for which this model has no embedding; leave it out")
    if len(ids) > session.context_length:
        raise UserError(
            f"{what}: {len(ids)} tokens, the start token included, and the model's context holds "
            f"{session.context_length}; shorten it, or train with a larger model.context_length"
        )
