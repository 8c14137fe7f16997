"""A training that starts from a checkpoint of another one: with its whole state, or with its parameters alone.

With the whole state it is the other training from that step on, with what the recipe says otherwise: the same settings
give the same bits, a `wsd` training can decay twice from one step, a learning rate can be another one from a step on.
With the parameters alone it starts at step 0, and the vocabulary may have grown.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpullm import storage
from tpullm.checkpoint import checksums
from tpullm.checkpoint.models import Model, check_shape, described, load_params
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.recipe.schema import ModelConfig, Recipe
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training.state import Architecture

Tree = Any


def origin(recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> Model:
    """The checkpoint that pretraining starts from; on all hosts together.

    Args:
        tokenizer: of the training that starts.
        model: that it trains.

    Raises:
        UserError: the checkpoint does not fit.
        CorruptSave: it is not as it was written.
    """
    path = storage.path(recipe.branch)
    found = described(path.parent, int(path.name))
    checksums.verify_together(path)
    if recipe.branch_state == "parameters":
        check_shape(found, model, but="vocabulary_size")
        return found
    check_shape(found, model)
    if found.adapter:
        raise UserError(f"branch: {path} has an adapter alone; set branch_state to parameters, to merge it")
    if found.stage == "base":
        raise UserError(f"branch: {path} has parameters alone; set branch_state to parameters")
    before = found.recipe["pretrain"] if found.stage == "pretrain" else found.recipe["finetune"][found.stage]["train"]
    for key in ("kind", "moments"):
        has, asks = before["optimizer"][key], getattr(recipe.pretrain.optimizer, key)
        if has != asks:
            raise UserError(
                f"pretrain.optimizer.{key}: {path} has the state of {has}, the recipe says {asks}; "
                "set branch_state to parameters"
            )
    if recipe.pretrain.steps <= found.step:
        raise UserError(f"pretrain.steps: {path} has done {found.step:,}; set more, or branch_state to parameters")
    size = model.vocabulary_size
    if (_rows(load_tokenizer(found.tokenizer_path), tokenizer, size, size) != np.arange(size)).any():
        raise UserError(f"branch: {path} was trained with another tokenizer; set branch_state to parameters")
    return found


def parameters(found: Model, tokenizer: Tokenizer, architecture: Architecture, mesh: Mesh) -> Tree:
    """The parameters of a checkpoint for a model with another vocabulary; rows go where their tokens went.

    The row of a new token is the mean of all rows. By Jensen's inequality its probability is at most the mean one, so
    no loss rises by more than log(1 + new / old tokens) (Hewitt 2021, Initializing New Word Embeddings). A fresh row
    has a logit near 0, where a trained model gives most tokens far lower ones: it would take most of the probability.

    Args:
        tokenizer: of the training that starts.
        architecture: of its model.
    """
    before = Architecture(found.config)
    old = load_tokenizer(found.tokenizer_path)
    rows = _rows(old, tokenizer, found.config.vocabulary_size, architecture.config.vocabulary_size)
    if (rows == np.arange(len(rows))).all() and len(rows) == found.config.vocabulary_size:
        return load_params(found, architecture.placed(mesh))
    say(f"branch: {(rows < 0).sum():,} of {len(rows):,} tokens are new; their embeddings are the mean of the others'")
    everywhere = NamedSharding(mesh, PartitionSpec())

    def target(axes, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere) if "vocabulary" in axes else leaf

    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    targets = jax.tree.map(target, before.axes, before.placed(mesh), is_leaf=is_axes)
    loaded, used = load_params(found, targets), min(old.vocabulary_size, found.config.vocabulary_size)

    def grow(axes, leaf, wanted):
        if "vocabulary" not in axes:
            return leaf
        make = jax.jit(lambda leaf: _grown(leaf, rows, used, axes.index("vocabulary")), out_shardings=everywhere)
        return jax.device_put(make(leaf), wanted.sharding)

    with jax.set_mesh(mesh):
        return jax.tree.map(grow, architecture.axes, loaded, architecture.placed(mesh), is_leaf=is_axes)


def _grown(leaf: jax.Array, rows: np.ndarray, used: int, axis: int) -> jax.Array:
    """The rows of an array in another order; -1 stands for the mean of the first `used` ones."""
    leaf = jnp.moveaxis(leaf, axis, 0)
    mean = jnp.mean(leaf[:used].astype(jnp.float32), axis=0).astype(leaf.dtype)
    known = (rows >= 0).reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.moveaxis(jnp.where(known, leaf[np.maximum(rows, 0)], mean), 0, axis)


def _rows(old: Tokenizer, new: Tokenizer, rows_before: int, rows: int) -> np.ndarray:
    """For each row of an embedding the row that its token had before, or -1, `[rows]`.

    A row without a token, which pads the embedding, stays where it is.
    """
    before = [_known_by(old, token) for token in range(min(old.vocabulary_size, rows_before))]
    place = {known: row for row, known in reversed(list(enumerate(before)))}
    found = np.full(rows, -1)
    for row in range(rows):
        if row >= new.vocabulary_size:
            found[row] = row if len(before) <= row < rows_before else -1
        elif row < len(before) and before[row] == _known_by(new, row):
            found[row] = row
        else:
            found[row] = place.get(_known_by(new, row), -1)
    return found


def _known_by(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    return tokenizer.piece(token), tokenizer.bytes_of(token)
