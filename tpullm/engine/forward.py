"""The forward pass over the key/value cache: some texts are prefilled, all texts are extended by a token.

A row holds the keys and values of one text: its slots are contiguous. With pages of 64 slots in any order, as on a GPU,
a CPU copies each page before it multiplies it, and attention took 8.3 to 9.4 ms where it takes 2.6 (32 rows, 6 heads of
64, 320 slots, float32, two cores). The slots of a row are in a few blocks, and a program gets the first ones, as far as
its texts reach: attention waits for the bytes of keys and values that it reads. (One program for all of them, with a
branch for each number of blocks, took 10 to 25 % longer.) Several rows can share the keys of one prompt.

Shapes: B rows of all groups, R rows of a group, S slots of a block, C pieces of T tokens, P slots of shared prompts,
A rows that share each of these, K key/value heads, H head width, V vocabulary.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.sampling import choose
from tpullm.model.attention.cpu import attend_to_slots, can_attend
from tpullm.model.attention.plain import attend
from tpullm.model.mesh import RULES
from tpullm.model.rows import last_hidden

Tree = Any
UNSEEN = -1  # stands for a token that the step before chose and that is still on the device


class Block(NamedTuple):
    """Some slots of all rows of a group: the keys and the values of each layer, `[R, K, S, H]`."""

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


class SharedPrompts(NamedTuple):
    """Prompts that rows share: `[B / A, K, P, H]`, in the order of the rows; `lengths_B`: of each row's prompt."""

    block: Block
    lengths_B: jax.Array


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def embed(architecture, params, tokens_CT, pieces_C4, *, dtype) -> jax.Array:
    """What the first layer gets of pieces of prompts, `[C, T, D]`.

    Args:
        tokens_CT: T is one or more chunks.
        pieces_C4: of each piece its row in the group (one that it does not have only fills the arrays), where it begins
            in its text, its tokens (the others are padding), how long the text may become.
    """
    _, positions_CT = _positions_of_pieces(pieces_C4, tokens_CT.shape[1])
    return architecture.model(params).embed(tokens_CT, positions_CT, dtype)


@partial(jax.jit, static_argnames=("architecture", "kinds"), donate_argnames=("blocks", "x_CTD"))
def read_layers(
    architecture, params, layers, blocks: tuple[Block, ...], x_CTD, pieces_C4, *, kinds: tuple[tuple[str, int], ...]
) -> tuple[jax.Array, tuple[Block, ...]]:
    """Read pieces in some of the layers: what the next layer gets, `[C, T, D]`.

    Several pieces may be of one text: in each layer all keys are written before any is read.

    Args:
        layers, kinds: as for `Transformer.after_layers`.
        blocks: the first ones of the group, of these layers; no piece ends after them.
        pieces_C4: as for `embed`.
    """
    C, T, _ = x_CTD.shape
    rows_C, held = _replicated(pieces_C4[:, 0]), _Held(blocks)
    by_time, by_head = RULES.spec("batch", "time"), RULES.spec("batch", "time", "heads", "head")
    places_CT, positions_CT = _positions_of_pieces(pieces_C4, T)
    segments_CT = (places_CT < jax.reshard(pieces_C4[:, 2:3], by_time)).astype(jnp.int32)

    def attention(layer: int, window: int) -> Callable:
        def mixed(q_CTNH, k_CKTH, v_CKTH, softcap, sinks_N):
            held.write(layer, rows_C[:, None], _replicated(positions_CT), k_CKTH, v_CKTH)
            if blocks[0].rows > 1:
                own = lambda array: array.at[rows_C].get(mode="clip", out_sharding=cache_spec())  # noqa: E731
                q_RQNH, slots_RQ, parts = q_CTNH, positions_CT, jax.tree.map(own, held.parts(layer))
            else:  # all pieces are of the one text: its keys need not be copied for each of them
                q_RQNH = jnp.reshape(q_CTNH, (1, C * T, *q_CTNH.shape[2:]), out_sharding=by_head)
                slots_RQ, parts = jnp.reshape(positions_CT, (1, C * T), out_sharding=by_time), held.parts(layer)
            if _has_own_code(q_RQNH, parts, softcap, sinks_N):
                mixed_RQNH = attend_to_slots(q_RQNH, parts, slots_RQ, window)
            else:
                masks_RQS = _visible_slots(slots_RQ, held.slots, window)
                mixed_RQNH = _attend_to_blocks(q_RQNH, parts, masks_RQS, softcap, sinks_N)
            return jnp.reshape(mixed_RQNH, q_CTNH.shape, out_sharding=by_head)

        return mixed

    arguments = segments_CT, positions_CT, pieces_C4[:, 3], layers, kinds, attention
    return architecture.model(params).after_layers(x_CTD, *arguments), held.blocks()


@partial(jax.jit, static_argnames=("architecture",))
def last_logits(architecture, params, x_CTD, pieces_C4) -> tuple[jax.Array, jax.Array]:
    """After the last layer: the logits after the last token of each piece, `[C, V]` (of one piece twice), and the
    hidden states after each token, `[C, T, D]`.
    """
    model = architecture.model(params)
    hidden_CTD, (places_CT, _) = model.normalized(x_CTD), _positions_of_pieces(pieces_C4, x_CTD.shape[1])
    counts_C1 = jax.reshard(pieces_C4[:, 2:3], RULES.spec("batch", "time"))
    last_CD = last_hidden(hidden_CTD, places_CT, counts_C1)
    if len(last_CD) == 1:  # a CPU multiplies a single row in another order
        last_CD = jnp.concatenate([last_CD, last_CD])
    return model.logits(last_CD[:, None])[:, 0], hidden_CTD


def _positions_of_pieces(pieces_C4, length: int) -> tuple[jax.Array, jax.Array]:
    """The places of tokens in their pieces, and in their texts, `[C, T]`."""
    by_time = RULES.spec("batch", "time")
    places_CT = jax.reshard(jnp.zeros_like(pieces_C4[:, :1]), by_time) + jnp.arange(length, dtype=jnp.int32)
    return places_CT, places_CT + jax.reshard(pieces_C4[:, 1:2], by_time)


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def embed_new(architecture, params, tokens_BT3, chosen_B, *, dtype) -> jax.Array:
    """What the first layer gets of new tokens, `[B, T, D]`.

    Args:
        tokens_BT3: of each row its tokens, their positions (one that its blocks do not have is no token), and how long
            the text may become, or -1 if there is none.
        chosen_B: of each row the token in the place of `UNSEEN`.
    """
    tokens_BT, positions_BT, longest_B = _new_tokens(tokens_BT3)
    chosen_B1, longest_B1 = jax.reshard((chosen_B[:, None], longest_B[:, None]), RULES.spec("batch", "time"))
    tokens_BT = jnp.where(tokens_BT == UNSEEN, chosen_B1, tokens_BT)
    x_BTD = architecture.model(params).embed(tokens_BT, positions_BT, dtype)
    return jnp.where(longest_B1[:, :, None] < 0, 0, x_BTD)  # on a CPU, rows of zeros cost no matmuls


@partial(jax.jit, static_argnames=("architecture", "kinds"), donate_argnames=("groups", "x_BTD"))
def write_layers(
    architecture,
    params,
    layers,
    groups: tuple[tuple[Block, ...], ...],
    x_BTD,
    tokens_BT3,
    *,
    kinds: tuple[tuple[str, int], ...],
) -> tuple[jax.Array, tuple[tuple[Block, ...], ...]]:
    """Write T tokens to each row in some of the layers: what the next layer gets, `[B, T, D]`.

    Args:
        layers, kinds: as for `Transformer.after_layers`.
        groups: their first blocks, of these layers; B is the rows of these groups.
        tokens_BT3: as for `embed_new`.
    """
    _, positions_BT, longest_B = _new_tokens(tokens_BT3)
    return _extend_layers(architecture.model(params), layers, kinds, groups, x_BTD, positions_BT, longest_B)


@partial(jax.jit, static_argnames=("architecture",))
def new_logits(architecture, params, x_BTD) -> jax.Array:
    """After the last layer: the logits after each new token, `[B * T, V]`."""
    model = architecture.model(params)
    logits_BTV = model.logits(model.normalized(x_BTD))
    spec = RULES.spec("batch", "vocabulary")
    return jnp.reshape(logits_BTV, (-1, logits_BTV.shape[-1]), out_sharding=spec)


def _new_tokens(tokens_BT3):
    """Tokens and positions, `[B, T]`, and how long the text of each row may become, `[B]`."""
    tokens_BT, positions_BT = (jax.reshard(tokens_BT3[:, :, n], RULES.spec("batch", "time")) for n in range(2))
    return tokens_BT, positions_BT, tokens_BT3[:, 0, 2]


@partial(jax.jit, static_argnames=("architecture", "dtype"), donate_argnames=("blocks",))
def advance_answers(
    architecture, params, layers, blocks: tuple[Block, ...], prompts, tokens_B, rows_B3, sampling, *, dtype
) -> tuple[jax.Array, jax.Array, tuple[Block, ...]]:
    """Write a token to each row of a group, and choose the next one: it, the rows for the next step, and the blocks.

    Args:
        prompts: `SharedPrompts` that stand before the rows; None is none.
        rows_B3: of each row the position of its token, its seed, how long the text may become.
    """
    by_time = RULES.spec("batch", "time")
    tokens_B1, positions_B1 = jax.reshard((tokens_B[:, None], rows_B3[:, :1]), (by_time, by_time))
    model, kinds = architecture.model(params), architecture.config.kinds_by_layer
    x_B1D, new = model.embed(tokens_B1, positions_B1, dtype), (positions_B1, rows_B3[:, 2])
    x_B1D, (blocks,) = _extend_layers(model, layers, kinds, (blocks,), x_B1D, *new, prompts)
    logits_B1V, rows_B3 = model.logits(model.normalized(x_B1D)), rows_B3 + jnp.array([1, 0, 0])
    return choose(logits_B1V[:, 0], sampling, rows_B3[:, 1].astype(jnp.uint32), rows_B3[:, 0]), rows_B3, blocks


def _extend_layers(model, layers, kinds, groups, x_BTD, positions_BT, longest_B, prompts=None):
    """What the next layer gets, and the groups with the tokens. With prompts there is one group."""
    held, counts = [_Held(blocks) for blocks in groups], [blocks[0].rows for blocks in groups]
    ends, by_time = list(itertools.accumulate(counts)), RULES.spec("batch", "time")
    lengths_B1 = 0 if prompts is None else jax.reshard(prompts.lengths_B[:, None], by_time)
    slots_BT = positions_BT - lengths_B1

    def attention(layer: int, window: int) -> Callable:
        def mixed(q_BTNH, k_BKTH, v_BKTH, softcap, sinks_N):
            found = []
            for group, end, rows in zip(held, ends, counts, strict=True):
                part = partial(_part_of_rows, first=end - rows, count=rows)
                slots_RT = part(slots_BT)
                group.write(layer, jnp.arange(rows)[:, None], _replicated(slots_RT), part(k_BKTH), part(v_BKTH))
                q_RTNH, parts = part(q_BTNH), group.parts(layer)
                if prompts is None and _has_own_code(q_RTNH, parts, softcap, sinks_N):
                    found.append(attend_to_slots(q_RTNH, parts, slots_RT, window))
                    continue
                masks_RTS = _visible_slots(slots_RT, group.slots, window)
                if prompts is not None:
                    P = prompts.block.slots
                    before_BTP = _visible_slots(positions_BT, P, window) & (jnp.arange(P) < lengths_B1[:, :, None])
                    masks_RTS = jnp.concatenate([before_BTP, masks_RTS], axis=2)
                    parts = [(prompts.block.keys[layer], prompts.block.values[layer]), *parts]
                # Each token by itself: it has the same bits with and without the others.
                tokens = [slice(n, n + 1) for n in range(q_BTNH.shape[1])]
                each = [_attend_to_blocks(q_RTNH[:, one], parts, masks_RTS[:, one], softcap, sinks_N) for one in tokens]
                found.append(each[0] if len(each) == 1 else jnp.concatenate(each, axis=1))
            if len(found) == 1:
                return found[0]
            spec = jax.typeof(found[0]).sharding.spec
            whole = [jax.reshard(part_RTNH, jax.P(None, *spec[1:])) for part_RTNH in found]
            return jax.reshard(jnp.concatenate(whole), spec)

        return mixed

    counted_B = jnp.asarray(np.repeat([group.slots for group in held], counts), jnp.int32)
    segments_BT = (slots_BT < jax.reshard(counted_B[:, None], by_time)).astype(jnp.int32)
    x_BTD = model.after_layers(x_BTD, segments_BT, positions_BT, longest_B, layers, kinds, attention)
    return x_BTD, tuple(group.blocks() for group in held)


class _Held:
    """The arrays of a group's blocks, while a program extends them."""

    def __init__(self, blocks: tuple[Block, ...]):
        self._blocks = [(list(block.keys), list(block.values)) for block in blocks]
        ends = list(itertools.accumulate(block.slots for block in blocks))
        self._begins, self.slots = [0, *ends[:-1]], ends[-1]

    def write(self, layer: int, rows, slots_CT, k_CKTH, v_CKTH) -> None:
        """Put the keys and values of tokens in their slots; a row or slot that there is not is left out."""
        new_keys, new_values = jnp.swapaxes(k_CKTH, 1, 2), jnp.swapaxes(v_CKTH, 1, 2)
        for (keys, values), begin in zip(self._blocks, self._begins, strict=True):
            # A place before 0 would be one from the end.
            places = jnp.where(slots_CT >= begin, slots_CT - begin, self.slots)
            for old, new in ((keys, new_keys), (values, new_values)):
                at = old[layer].at[rows, :, places]
                old[layer] = at.set(new.astype(old[layer].dtype), mode="drop", out_sharding=cache_spec())

    def parts(self, layer: int) -> list[tuple[jax.Array, jax.Array]]:
        """The keys and values of a layer, block by block."""
        return [(keys[layer], values[layer]) for keys, values in self._blocks]

    def blocks(self) -> tuple[Block, ...]:
        """All arrays."""
        return tuple(Block(tuple(keys), tuple(values)) for keys, values in self._blocks)


def cache_spec() -> jax.sharding.PartitionSpec:
    """How keys and values are sharded, `[R, K, S, H]`."""
    return RULES.spec("batch", "kv_heads", None, "head")


def _replicated(array: jax.Array) -> jax.Array:
    return jax.reshard(array, jax.sharding.PartitionSpec())


def _visible_slots(slots_BT: jax.Array, slots: int, window: int) -> jax.Array:
    """Whether each token, which stands in a slot, attends to each slot, `[B, T, S]` bool."""
    slots_BT1 = jax.reshard(slots_BT, RULES.spec("batch", "time"))[:, :, None]
    slots_S = jnp.arange(slots)
    mask = slots_S <= slots_BT1
    return mask & (slots_S > slots_BT1 - window) if window else mask


def _has_own_code(q_RTNH, parts, softcap: float, sinks_N) -> bool:
    """Whether `attend_to_slots` can do it."""
    return not softcap and sinks_N is None and can_attend(q_RTNH, parts)


def _attend_to_blocks(q_RTNH, parts, masks_RTS, softcap: float, sinks_N) -> jax.Array:
    return attend(q_RTNH, *parts[-1], masks_RTS, softcap, sinks_N, parts[:-1])[0]


def _part_of_rows(array: jax.Array, first: int, count: int) -> jax.Array:
    """Some rows of an array; each device gets its share of these."""
    spec = jax.typeof(array).sharding.spec
    if count == len(array):
        return array
    return jax.reshard(jax.reshard(array, jax.P(None, *spec[1:]))[first : first + count], spec)
