"""Keys and values of many texts at once, and the programs that extend them: some rows are read, all rows write a token.

The memory is a few bands: many rows with few slots, few rows with many. A text begins in the first band with room for
its prompt and moves on when it has outgrown it, so one long text does not make all rows long. One step computes one
token for the rows of the bands that are in use; its matmuls read the weights once. A row is contiguous: with pages
of 64 slots in any order, as on a GPU, a CPU copies each page before it multiplies it, and attention took 8.3 to 9.4 ms
where it takes 2.6 (32 rows, 6 heads of 64, 320 slots, float32, two cores). But the slots of a band are in a few blocks,
and a program gets the first ones, as far as its texts reach: the bytes of keys and values that are read are what
attention waits for. (One program for all of them, with a branch for each number of blocks, took 10 to 25 % longer.)

Shapes: B rows of all bands, R rows of a band, S slots of a block, C pieces of T tokens, K key/value heads, H head
width, V vocabulary.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.padding import last_hidden
from tpullm.engine.sampling import choose
from tpullm.model.architecture import Architecture
from tpullm.model.attention.plain import attend
from tpullm.model.mesh import RULES
from tpullm.model.platform import cache_dtype
from tpullm.recipe.sampling import Sampling

Tree = Any
UNSEEN = -1  # stands for a token that the step before chose and that is still on the device


class Block(NamedTuple):
    """Some slots of all rows of a band: the keys and the values of each layer, `[R, K, S, H]`."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @property
    def rows(self) -> int:
        """How many texts it has room for."""
        return self.keys[0].shape[0]

    @property
    def slots(self) -> int:
        """How many tokens of a text it has room for."""
        return self.keys[0].shape[2]

    def of(self, layers: slice) -> "Block":
        """The part of some layers."""
        return Block(self.keys[layers], self.values[layers])

    def changed(self, layers: slice, to: "Block") -> "Block":
        """The block with another such part."""
        return Block(*((*own[: layers.start], *new, *own[layers.stop :]) for own, new in zip(self, to, strict=True)))


@partial(jax.jit, static_argnames=("architecture", "rows", "slots", "dtype"))
def empty_block(architecture: Architecture, rows: int, slots: int, dtype: jnp.dtype) -> Block:
    """A block without texts, for matmuls in `dtype`."""
    config = architecture.config
    shape, spec = (rows, config.kv_heads, slots, config.head_width), RULES.spec("batch", "kv_heads", None, "head")
    make = lambda: jax.reshard(jnp.zeros(shape, cache_dtype(dtype)), spec)  # noqa: E731
    return Block(*(tuple(make() for _ in range(config.layers)) for _ in ("keys", "values")))


def bytes_of_slot(architecture: Architecture, dtype: jnp.dtype) -> int:
    """What the keys and values of a token take, in all layers."""
    config = architecture.config
    return 2 * config.layers * config.kv_heads * config.head_width * cache_dtype(dtype).itemsize


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def embed(architecture, params, tokens_CT, pieces_C4, *, dtype) -> jax.Array:
    """What the first layer gets of pieces of texts, `[C, T, D]`.

    Args:
        tokens_CT: T is one or more chunks.
        pieces_C4: of each piece its row in the band (one that it does not have only fills the arrays), where it begins
            in its text (a multiple of `CHUNK`), its tokens (the others are padding), how long the text may become.
    """
    _, positions_CT = _places(pieces_C4, tokens_CT.shape[1])
    return architecture.model(params).embed(tokens_CT, positions_CT, dtype)


@partial(jax.jit, static_argnames=("architecture", "kinds"), donate_argnames=("blocks", "x_CTD"))
def read_layers(
    architecture, params, layers, blocks: tuple[Block, ...], x_CTD, pieces_C4, *, kinds: tuple[int, ...]
) -> tuple[jax.Array, tuple[Block, ...]]:
    """Read pieces in some of the layers: what the next layer gets, `[C, T, D]`.

    Several pieces may be of one text: in each layer all keys are written before any is read.

    Args:
        layers, kinds: as for `Transformer.after_layers`.
        blocks: the first ones of the band, of these layers; no piece ends after them.
        pieces_C4: as for `embed`.
    """
    C, T, _ = x_CTD.shape
    rows_C, held, by_time = _whole(pieces_C4[:, 0]), _Held(blocks), RULES.spec("batch", "time")
    places_CT, positions_CT = _places(pieces_C4, T)
    segments_CT = (places_CT < jax.reshard(pieces_C4[:, 2:3], by_time)).astype(jnp.int32)

    def attention(layer: int, window: int) -> Callable:
        def mixed(q_CTNH, k_CKTH, v_CKTH, softcap, sinks_N):
            held.write(layer, rows_C[:, None], _whole(positions_CT), k_CKTH, v_CKTH)
            if blocks[0].rows > 1:
                masks_CTS = _visible(positions_CT, held.slots, window)
                return _attend(q_CTNH, held.rows_of(layer, rows_C), masks_CTS, softcap, sinks_N)
            # All pieces are of the one text: its keys need not be copied for each of them.
            q_1QNH = jnp.reshape(q_CTNH, (1, C * T, *q_CTNH.shape[2:]), out_sharding=_queries())
            positions_1Q = jnp.reshape(positions_CT, (1, C * T), out_sharding=by_time)
            masks_1QS = _visible(positions_1Q, held.slots, window)
            mixed_1QNH = _attend(q_1QNH, held.parts(layer), masks_1QS, softcap, sinks_N)
            return jnp.reshape(mixed_1QNH, q_CTNH.shape, out_sharding=_queries())

        return mixed

    arguments = segments_CT, positions_CT, pieces_C4[:, 3], layers, kinds, attention
    return architecture.model(params).after_layers(x_CTD, *arguments), held.blocks()


@partial(jax.jit, static_argnames=("architecture",))
def last_logits(architecture, params, x_CTD, pieces_C4) -> tuple[jax.Array, jax.Array]:
    """After the last layer: the logits after the last token of each piece, `[C, V]` (of one piece twice), and the
    hidden states after each token, `[C, T, D]`.
    """
    model = architecture.model(params)
    hidden_CTD, (places_CT, _) = model.norm(x_CTD), _places(pieces_C4, x_CTD.shape[1])
    counts_C1 = jax.reshard(pieces_C4[:, 2:3], RULES.spec("batch", "time"))
    last_CD = last_hidden(hidden_CTD, places_CT, counts_C1)
    if len(last_CD) == 1:  # a CPU multiplies a single row in another order
        last_CD = jnp.concatenate([last_CD, last_CD])
    return model.logits(last_CD[:, None])[:, 0], hidden_CTD


def _places(pieces_C4, length: int) -> tuple[jax.Array, jax.Array]:
    """The places of tokens in their pieces, and in their texts, `[C, T]`."""
    by_time = RULES.spec("batch", "time")
    places_CT = jax.reshard(jnp.zeros_like(pieces_C4[:, :1]), by_time) + jnp.arange(length, dtype=jnp.int32)
    return places_CT, places_CT + jax.reshard(pieces_C4[:, 1:2], by_time)


def alike_layers(kinds: Sequence[int]) -> int:
    """How many layers one program reads: the smallest divisor of all, an eighth of them at least, with which all parts
    have the same kinds. All parts share the program.

    Args:
        kinds: of each layer.
    """
    sizes = [size for size in range(-(-len(kinds) // 8), len(kinds) + 1) if len(kinds) % size == 0]
    return next(size for size in sizes if all(kind == kinds[n % size] for n, kind in enumerate(kinds)))


class _Held:
    """The arrays of a band's blocks, while a program extends them."""

    def __init__(self, blocks: tuple[Block, ...]):
        self._blocks = [(list(block.keys), list(block.values)) for block in blocks]
        ends = list(itertools.accumulate(block.slots for block in blocks))
        self._begins, self.slots = [0, *ends[:-1]], ends[-1]

    def write(self, layer: int, rows, positions_CT, k_CKTH, v_CKTH) -> None:
        """Put the keys and values of tokens in their places; a row or slot that there is not is left out."""
        new_keys, new_values = jnp.swapaxes(k_CKTH, 1, 2), jnp.swapaxes(v_CKTH, 1, 2)
        for (keys, values), begin in zip(self._blocks, self._begins, strict=True):
            # A place before 0 would be one from the end.
            places = jnp.where(positions_CT >= begin, positions_CT - begin, self.slots)
            for old, new in ((keys, new_keys), (values, new_values)):
                at = old[layer].at[rows, :, places]
                old[layer] = at.set(new.astype(old[layer].dtype), mode="drop", out_sharding=_spec())

    def parts(self, layer: int) -> list[tuple[jax.Array, jax.Array]]:
        """The keys and values of a layer, block by block."""
        return [(keys[layer], values[layer]) for keys, values in self._blocks]

    def rows_of(self, layer: int, rows_C: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """The same of some rows, `[C, K, S, H]`."""
        own = lambda array: array.at[rows_C].get(mode="clip", out_sharding=_spec())  # noqa: E731
        return [(own(keys), own(values)) for keys, values in self.parts(layer)]

    def blocks(self) -> tuple[Block, ...]:
        """All arrays."""
        return tuple(Block(tuple(keys), tuple(values)) for keys, values in self._blocks)


def _spec() -> jax.sharding.PartitionSpec:
    return RULES.spec("batch", "kv_heads", None, "head")


def _queries() -> jax.sharding.PartitionSpec:
    return RULES.spec("batch", "time", "heads", "head")


def _whole(array: jax.Array) -> jax.Array:
    return jax.reshard(array, jax.sharding.PartitionSpec())


def _visible(positions_BT: jax.Array, slots: int, window: int) -> jax.Array:
    """Whether each token attends to each slot, `[B, T, S]` bool. The slot of a token is its position."""
    positions_BT1 = jax.reshard(positions_BT, RULES.spec("batch", "time"))[:, :, None]
    slots_S = jnp.arange(slots)
    mask = slots_S <= positions_BT1
    return mask & (slots_S > positions_BT1 - window) if window else mask


@partial(jax.jit, static_argnames=("architecture", "dtype"), donate_argnames=("memory",))
def advance(
    architecture, params, layers, memory: tuple[tuple[Block, ...], ...], tokens_BT3, chosen_B, *, dtype
) -> tuple[jax.Array, tuple[tuple[Block, ...], ...]]:
    """Write T tokens to each row: the logits after each, `[B * T, V]`.

    Args:
        memory: of some bands, their first blocks; B is the rows of these bands.
        tokens_BT3: of each row its tokens, their positions (one that its blocks do not have is no token), and how long
            the text may become.
        chosen_B: of each row the token in the place of `UNSEEN`.
    """
    tokens_BT, positions_BT = (jax.reshard(tokens_BT3[:, :, n], RULES.spec("batch", "time")) for n in range(2))
    chosen_B1 = jax.reshard(chosen_B[:, None], RULES.spec("batch", "time"))
    tokens_BT = jnp.where(tokens_BT == UNSEEN, chosen_B1, tokens_BT)
    bands, counts = [_Held(blocks) for blocks in memory], [blocks[0].rows for blocks in memory]
    ends = list(itertools.accumulate(counts))

    def attention(layer: int, window: int) -> Callable:
        def mixed(q_BTNH, k_BKTH, v_BKTH, softcap, sinks_N):
            found = []
            for held, end, rows in zip(bands, ends, counts, strict=True):
                part = partial(_part, first=end - rows, count=rows)
                positions_RT = part(positions_BT)
                held.write(layer, jnp.arange(rows)[:, None], _whole(positions_RT), part(k_BKTH), part(v_BKTH))
                masks_RTS = _visible(positions_RT, held.slots, window)
                found.append(_each_alone(part(q_BTNH), held.parts(layer), masks_RTS, softcap, sinks_N))
            return _joined(found)

        return mixed

    slots_B = np.repeat([held.slots for held in bands], counts)
    slots_B1 = jax.reshard(jnp.asarray(slots_B, jnp.int32)[:, None], RULES.spec("batch", "time"))
    segments_BT = (positions_BT < slots_B1).astype(jnp.int32)
    model = architecture.model(params)
    arguments = tokens_BT, segments_BT, positions_BT, tokens_BT3[:, 0, 2], layers, attention
    logits_BTV = model.logits(model.remembering(*arguments, dtype=dtype))
    flat = (-1, logits_BTV.shape[-1]), RULES.spec("batch", "vocabulary")
    return jnp.reshape(logits_BTV, flat[0], out_sharding=flat[1]), tuple(held.blocks() for held in bands)


def _each_alone(q_RTNH, parts, masks_RTS, softcap: float, sinks_N) -> jax.Array:
    """The values that tokens mix, each token by itself: it has the same bits with and without the others."""
    tokens = [slice(n, n + 1) for n in range(q_RTNH.shape[1])]
    each = [_attend(q_RTNH[:, one], parts, masks_RTS[:, one], softcap, sinks_N) for one in tokens]
    return each[0] if len(each) == 1 else jnp.concatenate(each, axis=1)


def _attend(q_RTNH, parts, masks_RTS, softcap: float, sinks_N) -> jax.Array:
    return attend(q_RTNH, *parts[-1], masks_RTS, softcap, sinks_N, parts[:-1])[0]


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


@partial(jax.jit, static_argnames=("alone",))
def row_of(block: Block, number: jax.Array, *, alone: bool) -> Block:
    """One row of a block, on every part of the mesh that shares rows. `alone`: as a block of a band of one row."""
    spec = _spec() if alone else jax.P(None, *_spec()[1:])
    return jax.tree.map(lambda array: array.at[number[None]].get(out_sharding=spec), block)


@partial(jax.jit, donate_argnames=("block",))
def with_row(block: Block, row: Block, number: jax.Array) -> Block:
    """A block, one row of which is another."""
    return jax.tree.map(lambda array, own: array.at[number[None]].set(own, out_sharding=_spec()), block, row)


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
