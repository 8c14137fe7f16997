"""Prompts of any length as arrays of few shapes, so that few programs are compiled.

A row is left-aligned. Its padding has segment 0, and no token attends to it.

Shapes: B batch, T padded length, D model width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.session import Session
from tpullm.model.mesh import RULES
from tpullm.system.errors import UserError

SMALLEST_BUCKET = 16


def bucket(length: int) -> int:
    """The smallest power of two that is at least `length` and at least 16."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def near(length: int) -> int:
    """The smallest of four lengths between two powers of two that is at least `length`, and at least 16."""
    return max(SMALLEST_BUCKET, -(-length // (step := bucket(length) // 8)) * step)


def row_bucket(session: Session, rows: int) -> int:
    """The number of rows to compute for `rows`: a power of two times the devices that share the rows, at least 2.

    With one row, JAX 0.10 to 0.12 give a wrong sharding to the reshape of the query heads into groups of one.
    """
    devices = int(np.prod([session.mesh.shape[axis] for axis in RULES.batch]))
    return max(2, devices * (1 << (-(-rows // devices) - 1).bit_length()))


def padded(session: Session, sequences: list[list[int]], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[rows, length]` int32, and the number of real tokens in each row, `[rows]`.

    A row without a sequence has one padding token that counts as real, so that every row has a last token.
    """
    tokens = np.full((rows, length), session.tokenizer.pad_id, np.int32)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
    lengths = np.ones(rows, np.int32)
    lengths[: len(sequences)] = [len(ids) for ids in sequences]
    return tokens, lengths


def segments_and_positions(tokens_BT: jax.Array, lengths_B1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The segment (0 for padding) and the position of each token, `[B, T]` int32."""
    positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32) + jnp.zeros_like(tokens_BT)
    return (positions_BT < lengths_B1).astype(jnp.int32), positions_BT


def last_hidden(hidden_BTD: jax.Array, positions_BT: jax.Array, lengths_B1: jax.Array) -> jax.Array:
    """The hidden state of each row's last real token, `[B, D]`."""
    return jnp.sum(jnp.where((positions_BT == lengths_B1 - 1)[..., None], hidden_BTD, 0), axis=1)


def fits(session: Session, ids: list[int], what: str) -> None:
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
