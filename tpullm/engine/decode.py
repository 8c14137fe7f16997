"""Decoding with a cache of keys and values, one token at a time.

Prompts are padded (`padding.py`). New tokens take cache slots behind the padding, and positions that follow the row's
own last token. Several answers to a prompt share its slots.

Shapes: G prompts, B answers, T prompt length, S cache slots, D model width, K key/value heads, H head width,
V vocabulary, L layers.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.padding import bucket, fits, last_hidden, padded, row_bucket, segments_and_positions
from tpullm.engine.sampling import choose
from tpullm.engine.session import Session
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import RULES
from tpullm.model.platform import cache_dtype
from tpullm.model.rows import fetch, put_whole
from tpullm.model.transformer import Cache, CachedPrompts, Transformer
from tpullm.recipe.sampling import GREEDY, Sampling

Tree = Any


class Decoding(NamedTuple):
    """The last token of each row, its position, its seed, whether it has ended (all `[B]`), and the cache."""

    tokens: jax.Array
    positions: jax.Array
    seeds: jax.Array
    ended: jax.Array
    cache: Cache


def empty_cache(architecture: Architecture, rows: int, slots: int, dtype: jnp.dtype) -> Cache:
    """An empty cache, for matmuls in `dtype`."""
    config = architecture.config
    shape = (rows, config.kv_heads, slots, config.head_width)
    spec = RULES.spec("batch", "kv_heads", None, "head")
    dtype = cache_dtype(dtype)
    by_row = RULES.spec("batch", None)
    return Cache(
        keys=tuple(jax.reshard(jnp.zeros(shape, dtype), spec) for _ in range(config.layers)),
        values=tuple(jax.reshard(jnp.zeros(shape, dtype), spec) for _ in range(config.layers)),
        segments=jax.reshard(jnp.zeros((rows, slots), jnp.int32), by_row),
        positions=jax.reshard(jnp.zeros((rows, slots), jnp.int32), by_row),
        length=jnp.zeros((), jnp.int32),
    )


def prefill(model: Transformer, layers, tokens_BT, lengths_B, cache: Cache, dtype) -> tuple[jax.Array, Cache]:
    """Read the first `lengths_B` tokens of each row: the logits after the last one, `[B, V]`, and the cache."""
    segments_BT, positions_BT = segments_and_positions(tokens_BT, lengths_B[:, None])
    hidden_BTD, cache = model.extend(tokens_BT, segments_BT, positions_BT, cache, layers, dtype=dtype, first=True)
    last_BD = last_hidden(hidden_BTD, positions_BT, lengths_B[:, None])
    return model.logits(last_BD[:, None])[:, 0], cache


@partial(jax.jit, static_argnames=("architecture", "slots", "each", "dtype"))
def _start(
    architecture, params, layers, tokens_GT, lengths_G, seeds_B, stop_ids, sampling, *, slots, each, dtype
) -> Decoding:
    """Read each prompt once and choose the first token of `each` answers to it.

    Each answer has `slots` for its own tokens, behind its prompt. If there are several, the keys and values of a prompt
    are in one place for all of them: 64 answers of 64 tokens to 8 prompts took 1.3 s and now 1.1 with 20 tokens in a
    prompt, 2.5 and 1.7 s with 200. If there is one, two places cost 7 to 14 % more (12 M parameters, two cores).
    """
    G, T = tokens_GT.shape
    cache = empty_cache(architecture, G, T if each > 1 else T + slots, dtype)
    logits_BV, cache = prefill(architecture.model(params), layers, tokens_GT, lengths_G, cache, dtype)
    lengths_B = lengths_G
    if each > 1:
        by_answer = partial(_repeated, each=each)
        prompts = CachedPrompts(cache.keys, cache.values, by_answer(cache.segments), by_answer(cache.positions))
        cache = empty_cache(architecture, G * each, slots, dtype)._replace(prompts=prompts)
        logits_BV, lengths_B = by_answer(logits_BV), by_answer(lengths_B)
    tokens_B = choose(logits_BV, sampling, seeds_B, lengths_B)
    return Decoding(tokens_B, lengths_B, seeds_B, _stops(tokens_B, stop_ids), cache)


def _repeated(array: jax.Array, each: int) -> jax.Array:
    """An array by prompts as one by answers: each device has the answers to its own prompts."""
    return jax.shard_map(lambda own: jnp.repeat(own, each, axis=0), out_specs=jax.typeof(array).sharding.spec)(array)


@partial(jax.jit, static_argnames=("architecture", "count", "dtype"), donate_argnames=("state",))
def _decode_more(
    architecture, params, layers, state, stop_ids, sampling, limit, *, count, dtype
) -> tuple[Decoding, jax.Array]:
    """Up to `limit` more tokens, `[B, count]`, -1 after a row's end. It stops early if every row has ended."""
    model = architecture.model(params)

    def step(carry):
        done, state, out_BC = carry
        by_time = RULES.spec("batch", "time")
        tokens_B1, positions_B1 = jax.reshard((state.tokens[:, None], state.positions[:, None]), (by_time, by_time))
        ones_B1 = jnp.ones_like(tokens_B1)
        hidden_B1D, cache = model.extend(tokens_B1, ones_B1, positions_B1, state.cache, layers, dtype=dtype)
        logits_BV = model.logits(hidden_B1D)[:, 0]
        tokens_B = choose(logits_BV, sampling, state.seeds, state.positions + 1)
        tokens_B = jnp.where(state.ended, -1, tokens_B)
        out_BC = jax.lax.dynamic_update_slice_in_dim(out_BC, tokens_B[:, None], done, axis=1)
        ended = state.ended | _stops(tokens_B, stop_ids)
        return done + 1, Decoding(jnp.maximum(tokens_B, 0), state.positions + 1, state.seeds, ended, cache), out_BC

    def more(carry):
        done, state, _ = carry
        return (done < limit) & ~jnp.all(state.ended)

    out_BC = jax.reshard(jnp.full((state.tokens.shape[0], count), -1, jnp.int32), RULES.spec("batch", None))
    _, state, out_BC = jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), state, out_BC))
    return state, out_BC


def _stops(tokens_B: jax.Array, stop_ids: jax.Array) -> jax.Array:
    return jnp.any(tokens_B[:, None] == stop_ids, axis=-1)


def _model(session: Session) -> tuple:
    return session.architecture, session.params, session.layers


def _begin(session: Session, prompts: list[list[int]], tokens: int, sampling, seeds, stop_ids, each=1) -> Decoding:
    """The state after the first new token of each answer. Rows that only fill the batch have ended."""
    rows = row_bucket(session, len(prompts))
    ids, lengths = padded(session, prompts, rows, bucket(max(map(len, prompts))))
    seeds = np.resize(np.asarray(seeds, np.uint32), rows * each)
    by_row = [seeds, lengths, np.arange(rows * each) >= len(prompts) * each]
    seeds, lengths, filling = (put_whole(session.mesh, array, "batch") for array in by_row)
    arguments = (*_model(session), put_whole(session.mesh, ids, "batch", "time"), lengths, seeds, stop_ids, sampling)
    state = _start(*arguments, slots=bucket(tokens), each=each, dtype=session.dtype)
    return state._replace(ended=state.ended | filling)


def decode(
    session: Session,
    prompts: Sequence[list[int]],
    tokens: int,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] = (0,),
    stop_ids: Sequence[int] | None = None,
    each: int = 1,
) -> list[list[int]]:
    """Continue several prompts at once, in one program.

    Args:
        prompts: token ids, `<s>` first. Their lengths can differ.
        tokens: the largest number of new tokens for each prompt. No row grows beyond the context.
        seeds: one for each answer; repeated if there are fewer.
        stop_ids: tokens that end a text (default: the tokenizer's). The token that ended a row is returned too.
        each: number of answers to each prompt, which is read once.

    Returns:
        The new ids of each answer, prompt by prompt.

    Raises:
        UserError: a prompt is longer than the context.
    """
    for ids in prompts:
        fits(session, ids, "prompt")
    stop, more = _stop_array(session, stop_ids), max(1, tokens - 1)
    with jax.set_mesh(session.mesh):
        state = _begin(session, list(prompts), tokens, sampling, seeds, stop, each)
        first = fetch(session.mesh, state.tokens)[:, None].copy()  # the state is donated
        arguments = (*_model(session), state, stop, sampling, more)
        _, out_BC = _decode_more(*arguments, count=bucket(more), dtype=session.dtype)
        new = np.concatenate([first, fetch(session.mesh, out_BC)], axis=1)[:, :tokens]
    rooms = [min(tokens, session.context_length - len(ids)) for ids in prompts for _ in range(each)]
    return [[int(token) for token in row[:room] if token >= 0] for row, room in zip(new, rooms, strict=False)]


def _stop_array(session: Session, stop_ids: Sequence[int] | None) -> np.ndarray:
    """The tokens that end a text, padded with -2 to a power of two (at least 4); -2 is no token."""
    stops = session.tokenizer.stop_ids if stop_ids is None else list(stop_ids)
    filled = np.full(max(4, 1 << max(0, len(stops) - 1).bit_length()), -2, np.int32)
    filled[: len(stops)] = stops
    return filled
