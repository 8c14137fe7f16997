"""The probability that the model gives to a text, and which earlier tokens each token attends to.

On a CPU these numbers are computed in float32, since they are shown. (Text is written in the type of training: the time
of a token is that of reading the weights.)

Shapes: B batch, T query length, S key length, V vocabulary, N query heads, K key/value heads, G = N / K, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.session import Session, check_context, length_bucket, padded_ids, row_bucket
from tpullm.model.rows import fetch_whole, last_hidden, put_whole, segments_and_positions


def dispatched(session: Session, program: Callable[..., Any], *arrays: np.ndarray, **options: Any) -> Any:
    """What a program computes of rows `[B, T]` that every host has whole; it is not waited for."""
    with jax.set_mesh(session.mesh):
        placed = [put_whole(session.mesh, array, "batch", "time") for array in arrays]
        return program(session.architecture, session.params, *placed, dtype=session.dtype, **options)


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def _weights(architecture, params, tokens_BT, lengths_B1, *, dtype) -> jax.Array:
    """Of the first row, `[L, K, G, T, S]`."""
    inputs = segments_and_positions(tokens_BT, lengths_B1)
    found_LBKGTS = architecture.model(params)(tokens_BT, *inputs, dtype=dtype, keep_weights=True).attention
    # By a mask: the rows are split over the devices, and all of them would be too much for each.
    first_B1111 = (jnp.arange(tokens_BT.shape[0]) == 0)[:, None, None, None, None]
    return jnp.sum(jnp.where(first_B1111, found_LBKGTS, 0), axis=1)


def attention_weights(session: Session, text: str) -> tuple[list[str], np.ndarray]:
    """The texts of the tokens of `text`, `<s>` first, and the attention weights `[L, N, T, T]`.

    `weights[l, n, t, s]` is how much token t attends to token s in layer l and head n; each row sums to 1.

    Raises:
        UserError: the text is longer than the context.
    """
    tokenizer = session.tokenizer
    ids = [*tokenizer.begin, *tokenizer.encode(text)]
    check_context(session, ids, "text")
    tokens, lengths = padded_ids(session, [ids], row_bucket(session, 1), length_bucket(len(ids)))
    found = dispatched(session, _weights, tokens, lengths[:, None])
    found_LKGTS = fetch_whole(session.mesh, found)[..., : len(ids), : len(ids)]
    L, K, G, T, S = found_LKGTS.shape
    return [tokenizer.piece(token) for token in ids], found_LKGTS.reshape(L, K * G, T, S).astype(np.float32)


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def _logits(architecture, params, tokens_BT, lengths_B1, *, dtype) -> jax.Array:
    model = architecture.model(params)
    hidden_BTD = model(tokens_BT, *segments_and_positions(tokens_BT, lengths_B1), dtype=dtype).hidden
    return model.logits(hidden_BTD)


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def _log_probabilities(architecture, params, tokens_BT, targets_BT, lengths_B1, *, dtype) -> jax.Array:
    """The log-probability of each target given the tokens up to its position, `[B, T]` float32."""
    logits_BTV = _logits(architecture, params, tokens_BT, lengths_B1, dtype=dtype)
    # Selected with a mask, because the vocabulary can be split over devices.
    is_target_BTV = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    return jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0), axis=-1) - jax.nn.logsumexp(logits_BTV, axis=-1)


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def _next_log_probabilities(architecture, params, tokens_BT, lengths_B1, *, dtype) -> jax.Array:
    """The log-probability of every token after the last of each row, `[B, V]` float32."""
    model = architecture.model(params)
    segments_BT, positions_BT = segments_and_positions(tokens_BT, lengths_B1)
    hidden_BTD = model(tokens_BT, segments_BT, positions_BT, dtype=dtype).hidden
    last_BD = last_hidden(hidden_BTD, positions_BT, lengths_B1)
    return jax.nn.log_softmax(model.logits(last_BD[:, None])[:, 0], axis=-1)


def logits(session: Session, tokens_BT: np.ndarray) -> np.ndarray:
    """The logits of every next token, `[B, T, V]` float32, for rows of token ids `[B, T]`."""
    rows, length = tokens_BT.shape
    check_context(session, tokens_BT[0].tolist(), "token ids")
    ids, lengths = padded_ids(session, tokens_BT.tolist(), row_bucket(session, rows), length_bucket(length))
    return fetch_whole(session.mesh, dispatched(session, _logits, ids, lengths[:, None]))[:rows, :length]


def _length_batches(session: Session, sequences: Sequence[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches of sequences of similar length: (their indices, tokens `[B, T]`, lengths `[B, 1]`). B follows from T."""
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(sequences):
        check_context(session, ids, "text")
        by_length.setdefault(length_bucket(len(ids)), []).append(index)
    for length, members in sorted(by_length.items()):
        # One program for each bucket of lengths. 1,024 tokens keep two cores busy.
        rows = row_bucket(session, max(1, 1024 // length))
        for first in range(0, len(members), rows):
            chosen = members[first : first + rows]
            tokens, lengths = padded_ids(session, [sequences[index] for index in chosen], rows, length)
            yield np.asarray(chosen), tokens, lengths[:, None]


def log_probabilities(session: Session, sequences: Sequence[list[int]]) -> list[np.ndarray]:
    """The log-probability of every token but the first, given those before it: `[length - 1]` each, in nats.

    Raises:
        UserError: a sequence is longer than the context.
    """
    results: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    for chosen, tokens, lengths in _length_batches(session, sequences):
        scores = dispatched(session, _log_probabilities, tokens, np.roll(tokens, -1, axis=1), lengths)
        for row, index in zip(fetch_whole(session.mesh, scores).astype(np.float64), chosen, strict=False):
            results[index] = row[: len(sequences[index]) - 1]
    return results


def next_log_probabilities(session: Session, sequences: Sequence[list[int]]) -> np.ndarray:
    """The log-probability of every token after each sequence, `[sequences, V]` float32, in nats.

    Raises:
        UserError: a sequence is longer than the context.
    """
    results = np.zeros((len(sequences), session.architecture.config.vocabulary_size), np.float32)
    for chosen, tokens, lengths in _length_batches(session, sequences):
        scores = dispatched(session, _next_log_probabilities, tokens, lengths)
        results[chosen] = fetch_whole(session.mesh, scores)[: len(chosen)]
    return results


def text_log_probabilities(session: Session, texts: Sequence[str]) -> list[float]:
    """The log-probability, in nats, that a document starts with each text."""
    tokenizer = session.tokenizer
    scores = log_probabilities(session, [[*tokenizer.begin, *tokenizer.encode(text)] for text in texts])
    return [float(score.sum()) for score in scores]
