"""Keys and values of many texts at once, and the programs that extend them: some rows are read, all rows write a token.

The memory is a few bands: many rows with few slots, few rows with many. A text begins in the first band with room for
its prompt and moves on when it has outgrown it, so one long text does not make all rows long. One step computes one
token for the rows of the first bands, as many as are in use; its matmuls read the weights once. A row is contiguous:
with pages of 64 slots in any order, as on a GPU, a CPU copies each page before it multiplies it, and attention took 8.3
to 9.4 ms where it takes 2.6 (32 rows, 6 heads of 64, 320 slots, float32, two cores).

Shapes: B rows of all bands, R rows of a band, S slots, C pieces of T tokens, K key/value heads, H head width,
V vocabulary.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.inference.padding import last_hidden
from tpullm.inference.sampling import choose
from tpullm.inference.sampling_options import Sampling
from tpullm.mesh.layout import RULES
from tpullm.model.attention.plain import attend
from tpullm.model.platform import cache_dtype
from tpullm.training.state import Architecture

Tree = Any
# Rows that are computed if there are no more texts. 12 M parameters, JAX 0.12: 12 to 32 rows give the same bits in
# float32, 2 to 7, 4 to 8 and 40 to 48 others. In bfloat16 2 to 7 and 12 to 64 do. 2 rows took 12 ms, 32 took 19.
GROUPS = (2, 12)
# A prompt is read in chunks of so many tokens; what is used again for another text is a whole number of these. 64
# tokens at a time or more give the same bits, as 2 rows of 32 or as 8 of 64 that attend 32 at a time; 32 tokens
# give others (12 M parameters, float32 and bfloat16, JAX 0.12). How many slots are attended to changes no bit.
CHUNK = 32
FIRST = 512  # slots of the rows with the fewest


class Band(NamedTuple):
    """The keys and the values of each layer, `[R, K, S, H]`."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @property
    def rows(self) -> int:
        """How many texts it has room for."""
        return self.keys[0].shape[0]

    @property
    def slots(self) -> int:
        """How many tokens a text may have here."""
        return self.keys[0].shape[2]


@partial(jax.jit, static_argnames=("architecture", "rows", "slots", "dtype"))
def empty_band(architecture: Architecture, rows: int, slots: int, dtype: jnp.dtype) -> Band:
    """A band without texts, for matmuls in `dtype`."""
    config = architecture.config
    shape, spec = (rows, config.kv_heads, slots, config.head_width), RULES.spec("batch", "kv_heads", None, "head")
    make = lambda: jax.reshard(jnp.zeros(shape, cache_dtype(dtype)), spec)  # noqa: E731
    return Band(*(tuple(make() for _ in range(config.layers)) for _ in ("keys", "values")))


def bytes_of_slot(architecture: Architecture, dtype: jnp.dtype) -> int:
    """What the keys and values of a token take, in all layers."""
    config = architecture.config
    return 2 * config.layers * config.kv_heads * config.head_width * cache_dtype(dtype).itemsize


@partial(jax.jit, static_argnames=("architecture", "seen", "dtype"), donate_argnames=("band",))
def read(
    architecture, params, layers, band: Band, tokens_CT, pieces_C4, *, seen, dtype
) -> tuple[jax.Array, jax.Array, Band]:
    """Read a piece of the text of some rows of a band: the logits after the last token of each piece, `[C, V]`, and
    the hidden states after each token, `[C, T, D]`.

    Several pieces may be of one text: in each layer all keys are written before any is read.

    Args:
        tokens_CT: T is one or more chunks.
        pieces_C4: of each piece its row in the band (one that it does not have only fills the arrays), where it begins
            in its text (a multiple of `CHUNK`), its tokens (the others are padding), how long the text may become.
        seen: the slots that are attended to; no piece ends after them.
    """
    C, T = tokens_CT.shape
    rows_C, starts_C, counts_C, longest_C = (pieces_C4[:, n] for n in range(4))
    by_time = RULES.spec("batch", "time")
    places_CT = jnp.arange(T, dtype=jnp.int32) + jnp.zeros_like(tokens_CT)
    positions_CT = places_CT + jax.reshard(starts_C[:, None], by_time)
    segments_CT = (places_CT < jax.reshard(counts_C[:, None], by_time)).astype(jnp.int32)
    whole = lambda array: jax.reshard(array, jax.sharding.PartitionSpec())  # noqa: E731
    where = whole(rows_C)[:, None], slice(None), whole(positions_CT)
    keys, values = list(band.keys), list(band.values)

    def attention(layer: int, window: int) -> Callable:
        def mixed(q_CTNH, k_CKTH, v_CKTH, softcap, sinks_N):
            keys[layer], values[layer] = (
                _written(old, where, new) for old, new in ((keys[layer], k_CKTH), (values[layer], v_CKTH))
            )
            own = (_rows_of(old, whole(rows_C), seen) for old in (keys[layer], values[layer]))
            return _by_parts(CHUNK, q_CTNH, *own, positions_CT, window, softcap, sinks_N)

        return mixed

    model = architecture.model(params)
    arguments = tokens_CT, segments_CT, positions_CT, longest_C, layers, attention
    hidden_CTD = model.remembering(*arguments, dtype=dtype)
    last_CD = last_hidden(hidden_CTD, places_CT, jax.reshard(counts_C[:, None], by_time))
    return model.logits(last_CD[:, None])[:, 0], hidden_CTD, Band(tuple(keys), tuple(values))


def _written(old_RKSH: jax.Array, where, new_CKTH: jax.Array) -> jax.Array:
    """The memory with the new keys or values of chunks in their places; a row that it does not have is left out."""
    rows_C1, every, slots_CT = where
    new_CTKH = jnp.swapaxes(new_CKTH, 1, 2).astype(old_RKSH.dtype)
    return old_RKSH.at[rows_C1, every, slots_CT].set(new_CTKH, mode="drop", out_sharding=_spec())


def _rows_of(old_RKSH: jax.Array, rows_C: jax.Array, seen: int) -> jax.Array:
    """The first slots of the rows of pieces, `[C, K, seen, H]`."""
    return old_RKSH.at[rows_C, :, :seen].get(mode="clip", out_sharding=_spec())


def _spec() -> jax.sharding.PartitionSpec:
    return RULES.spec("batch", "kv_heads", None, "head")


def _visible(positions_BT: jax.Array, slots: int, window: int) -> jax.Array:
    """Whether each token attends to each slot, `[B, T, S]` bool. The slot of a token is its position."""
    positions_BT1 = jax.reshard(positions_BT, RULES.spec("batch", "time"))[:, :, None]
    slots_S = jnp.arange(slots)
    mask = slots_S <= positions_BT1
    return mask & (slots_S > positions_BT1 - window) if window else mask


@partial(jax.jit, static_argnames=("architecture", "dtype"), donate_argnames=("memory",))
def advance(
    architecture, params, layers, memory: tuple[Band, ...], tokens_BT3, *, dtype
) -> tuple[jax.Array, tuple[Band, ...]]:
    """Write T tokens to each row: the logits after each, `[B * T, V]`.

    Args:
        memory: the bands that are in use, the first ones; B is their rows.
        tokens_BT3: of each row its tokens, their positions (one that its band does not have is no token), and how long
            the text may become.
    """
    tokens_BT, positions_BT = (jax.reshard(tokens_BT3[:, :, n], RULES.spec("batch", "time")) for n in range(2))
    keys, values = [list(band.keys) for band in memory], [list(band.values) for band in memory]
    ends = [sum(band.rows for band in memory[: n + 1]) for n in range(len(memory))]

    def attention(layer: int, window: int) -> Callable:
        def mixed(q_BTNH, k_BKTH, v_BKTH, softcap, sinks_N):
            found = []
            for n, band in enumerate(memory):
                part = partial(_part, first=ends[n] - band.rows, count=band.rows)
                positions_RT = part(positions_BT)
                places = jnp.arange(band.rows)[:, None], slice(None), jax.reshard(positions_RT, jax.P())
                for kept, new in ((keys[n], k_BKTH), (values[n], v_BKTH)):
                    kept[layer] = _written(kept[layer], places, part(new))
                own = keys[n][layer], values[n][layer]
                found.append(_by_parts(1, part(q_BTNH), *own, positions_RT, window, softcap, sinks_N))
            return _joined(found)

        return mixed

    slots_B = np.repeat([band.slots for band in memory], [band.rows for band in memory])
    slots_B1 = jax.reshard(jnp.asarray(slots_B, jnp.int32)[:, None], RULES.spec("batch", "time"))
    segments_BT = (positions_BT < slots_B1).astype(jnp.int32)
    model = architecture.model(params)
    arguments = tokens_BT, segments_BT, positions_BT, tokens_BT3[:, 0, 2], layers, attention
    logits_BTV = model.logits(model.remembering(*arguments, dtype=dtype))
    flat = (-1, logits_BTV.shape[-1]), RULES.spec("batch", "vocabulary")
    logits = jnp.reshape(logits_BTV, flat[0], out_sharding=flat[1])
    return logits, tuple(Band(tuple(k), tuple(v)) for k, v in zip(keys, values, strict=True))


def _by_parts(size: int, q_RTNH, k_RKSH, v_RKSH, positions_RT, window: int, softcap: float, sinks_N) -> jax.Array:
    """The values that tokens mix, so many tokens by themselves: they have the same bits with and without others."""
    masks_RTS = _visible(positions_RT, k_RKSH.shape[2], window)
    parts = [slice(start, start + size) for start in range(0, q_RTNH.shape[1], size)]
    each = [attend(q_RTNH[:, part], k_RKSH, v_RKSH, masks_RTS[:, part], softcap, sinks_N)[0] for part in parts]
    return each[0] if len(each) == 1 else jnp.concatenate(each, axis=1)


def _part(array: jax.Array, first: int, count: int) -> jax.Array:
    """Some rows of an array; each device gets its share of these."""
    spec = jax.typeof(array).sharding.spec
    if count == len(array):
        return array
    return jax.reshard(jax.reshard(array, jax.P(None, *spec[1:]))[first : first + count], spec)


def _joined(parts: list[jax.Array]) -> jax.Array:
    if len(parts) == 1:
        return parts[0]
    spec = jax.typeof(parts[0]).sharding.spec
    return jax.reshard(jnp.concatenate([jax.reshard(part, jax.P(None, *spec[1:])) for part in parts]), spec)


@partial(jax.jit, donate_argnames=("target",))
def copied(target: Band, source: Band | None, to: jax.Array, of: jax.Array) -> Band:
    """A band, one row of which is as a row of another band, as far as both have slots. None: of the same band."""

    def array(own_RKSH, other_RKSH):
        slots, whole = min(own_RKSH.shape[2], other_RKSH.shape[2]), jax.P(None, *_spec()[1:])
        row_1KSH = other_RKSH.at[of[None]].get(out_sharding=whole)[:, :, :slots]
        return own_RKSH.at[to[None], :, :slots].set(row_1KSH, out_sharding=_spec())

    return jax.tree.map(array, target, target if source is None else source)


class Choice(NamedTuple):
    """Of each row: the next token, its log-probability by the model alone, the likeliest tokens and theirs."""

    tokens: jax.Array
    log_probabilities: jax.Array
    top: jax.Array
    top_log_probabilities: jax.Array


@partial(jax.jit, static_argnames=("top",))
def pick(logits_BV, rules_B3, shares_B3, bias_BV: jax.Array | None, *, top: int) -> Choice:
    """Choose the next token of each row.

    Args:
        rules_B3: of each row the seed, the position of the token that is chosen, and top-k.
        shares_B3: its temperature, top-p and min-p.
        bias_BV: is added to the logits before sampling; None is nothing.
        top: how many of the likeliest tokens are told.
    """
    temperature, top_p, min_p = (shares_B3[:, n : n + 1] for n in range(3))
    sampling = Sampling(temperature, rules_B3[:, 2:], top_p, min_p)
    seeds_B, positions_B = rules_B3[:, 0].astype(jnp.uint32), rules_B3[:, 1]
    logits_BV = jax.reshard(logits_BV, RULES.spec("batch", None))
    tokens_B = choose(logits_BV if bias_BV is None else logits_BV + bias_BV, sampling, seeds_B, positions_B)
    own_B1 = jnp.arange(logits_BV.shape[1]) == tokens_B[:, None]
    total_B = jax.nn.logsumexp(logits_BV, axis=-1)
    chosen_B = jnp.sum(jnp.where(own_B1, logits_BV, 0), axis=-1) - total_B
    best_BN, ids_BN = jax.lax.top_k(logits_BV, top) if top else (logits_BV[:, :0], tokens_B[:, None][:, :0])
    return Choice(tokens_B, chosen_B, ids_BN, best_BN - total_B[:, None])


@partial(jax.jit, static_argnames=("architecture", "top"))
def told(architecture, params, hidden_CTD, tokens_CT, *, top: int) -> Choice:
    """What the model held of tokens that were given: `pick`'s answer for each of them, `[C, T]`.

    Args:
        hidden_CTD: the states before them, as `read` returns them.
    """
    C, T, D = hidden_CTD.shape
    model, rows = architecture.model(params), RULES.spec("batch")

    def some(_, given):
        hidden_CTD, tokens_CT = given
        logits_CTV = jax.reshard(model.logits(hidden_CTD), jax.P(*rows, None, None))
        own_CTV = jnp.arange(logits_CTV.shape[-1]) == tokens_CT[..., None]
        total_CT = jax.nn.logsumexp(logits_CTV, axis=-1)
        chosen_CT = jnp.sum(jnp.where(own_CTV, logits_CTV, 0), axis=-1) - total_CT
        best_CTN, ids_CTN = jax.lax.top_k(logits_CTV, top)
        return None, Choice(tokens_CT, chosen_CT, ids_CTN, best_CTN - total_CT[..., None])

    # A quarter of the logits at a time: for a vocabulary of 256 k tokens all of them are 0.5 GB.
    arrays = (jax.reshard(array, jax.P(*rows, *[None] * (array.ndim - 1))) for array in (hidden_CTD, tokens_CT))
    parts = tuple(jnp.swapaxes(array.reshape(C, 4, T // 4, *array.shape[2:]), 0, 1) for array in arrays)
    _, found = jax.lax.scan(some, None, parts)
    return jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1).reshape(C, T, *array.shape[3:]), found)


def bands(context: int, rows: int, parts: int, groups: bool) -> list[tuple[int, int]]:
    """Rows and slots of each band, for texts of up to `context` tokens.

    Args:
        rows: of all bands. Each size of band has four times the slots and a quarter of the rows of the one before.
        parts: of the mesh that share the rows.
        groups: the rows with the fewest slots are several bands, a few rows first: a step of few texts computes few.
    """
    whole = -(-context // CHUNK) * CHUNK
    sizes = [min(FIRST, whole)]
    while sizes[-1] < whole:
        sizes.append(min(4 * sizes[-1], whole))
    longer = [_divided(rows >> 2 * n, parts) for n in range(1, len(sizes))]
    first = _divided(rows - sum(longer), parts)
    ends = sorted({_divided(count, parts) for count in GROUPS if groups})
    ends = [end for end in ends if end + _divided(2, parts) <= first]
    grouped = [(end - before, sizes[0]) for before, end in itertools.pairwise([0, *ends, first])]
    return [*grouped, *zip(longer, sizes[1:], strict=True)]


def _divided(rows: int, parts: int) -> int:
    """As many rows, or more: the same number for each part, and two at least."""
    return max(2, -(-rows // parts)) * parts


def seen(end: int, slots: int) -> int:
    """How many slots are attended to where a text is read up to `end`: few numbers, as each is a program."""
    return min(slots, max(FIRST, 1 << (end - 1).bit_length()))
