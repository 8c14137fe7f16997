"""The key/value cache: groups of rows, their sizes, and what is computed on them.

The cache has a few groups: many rows with few slots, few rows with many. A text begins in the first group with room for
its prompt and moves on when it has outgrown it, so one long text does not make all rows long. One step computes one
token for the rows of the groups that are in use; its matmuls read the weights once. Prompts are read in groups of their
own, the prefill slots.

Shapes: R rows of a group, K key/value heads, S slots of a block, H head width, C pieces, T tokens, V vocabulary.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.forward import (
    Block,
    cache_spec,
    embed,
    embed_new,
    last_logits,
    new_logits,
    read_layers,
    write_layers,
)
from tpullm.engine.programs import Run, dispatch, only_compile
from tpullm.engine.sampling import Choice, given_tokens
from tpullm.engine.session import Session
from tpullm.model.architecture import Architecture
from tpullm.model.cpu_memory import zeros
from tpullm.model.platform import layers_per_program, matmul_dtype
from tpullm.model.rows import put_whole

# Rows that are computed if there are no more texts. 12 M parameters, JAX 0.12: 2 rows took 12 ms, 32 took 19.
FIRST_ROWS = (2, 12)
# A prompt is read in chunks of so many tokens; what is used again for another text is a whole number of these. 64
# tokens at a time or more give the same bits, in any number of rows; 32 tokens give others in float32 (12 M parameters,
# JAX 0.12). How many blocks are attended to changes no bit.
CHUNK, SIZE = 32, 64  # and it is read in pieces of so many
SHORT = 512  # slots of the rows with the fewest
BLOCK = 128  # slots of the first block of a row; see `row_block_sizes`
FEW = 2 * BLOCK  # slots that are attended to at least: a softmax over one block is computed in another way
# Groups of the shortest rows if all rows are computed in each step, and how many bytes each has at least. 64 rows, 12 M
# parameters, float32, two cores: 47 ms with 256 slots in one group, 36 in two, 32 in four; with 384 slots 52, 47 and
# 46; with 384 in half of four and 256 in the others 39, 48 if there are two. XLA for a CPU computes side by side only
# where more than eight things can be computed. To compile a step of four takes 4 s, of one 1.2.
MOST_GROUPS, GROUP_BYTES = 4, 1 << 26
LEAST_ROWS = 8  # of each: a step of 64 rows took 42 ms with groups of 8, 32 with 16, 36 with 32

Step = tuple[int, ...]  # of each group how many slots its rows attend to, or 0 if they are not computed


def cache_group_sizes(context: int, rows: int, parts: int, split: bool, slot_bytes: int = 0) -> list[tuple[int, int]]:
    """Rows and slots of each group, for texts of up to `context` tokens.

    Args:
        rows: of all groups. Each size has four times the slots and a quarter of the rows of the one before.
        parts: of the mesh that share the rows.
        split: each size is several groups, a few rows first: a step of few texts computes few. Of long rows one comes
            first, as there is seldom more than one long text, and attention reads whole groups. Without it, the first
            size is several equal groups if it takes many bytes: texts of like length can stand together.
        slot_bytes: what a token's keys and values take.
    """
    whole = -(-context // CHUNK) * CHUNK
    sizes = [min(SHORT, whole)]
    while sizes[-1] < whole:
        sizes.append(min(4 * sizes[-1], whole))
    longer = [_rows_for_parts(rows >> 2 * n, parts) for n in range(1, len(sizes))]
    first = _rows_for_parts(rows - sum(longer), parts)
    if not split:
        count = max(1, min(MOST_GROUPS, rows * context * slot_bytes // GROUP_BYTES, first // (LEAST_ROWS * parts)))
        shares = [_rows_for_parts((first + n) // count, parts) for n in range(count)]
        return [*((share, sizes[0]) for share in shares), *zip(longer, sizes[1:], strict=True)]
    ends = sorted({_rows_for_parts(count, parts) for count in FIRST_ROWS})
    ends = [end for end in ends if end + _rows_for_parts(2, parts) <= first]
    short = [(end - before, sizes[0]) for before, end in itertools.pairwise([0, *ends, first])]
    one = [(parts, slots) for slots in sizes[1:]]
    return [*short, *one, *((count - parts, slots) for count, slots in zip(longer, sizes[1:], strict=True))]


def _rows_for_parts(rows: int, parts: int) -> int:
    """As many rows, or more: the same number for each part, and two at least."""
    return max(2, -(-rows // parts)) * parts


def row_block_sizes(slots: int, equal: bool = False) -> list[int]:
    """The slots of each block of a row; two blocks or more, for a softmax over one has no rows of zeros beside it.

    Args:
        equal: up to `SHORT` slots no block is longer than `BLOCK`, so less is attended to, by more programs.
    """
    ends = [min(BLOCK, slots // 2)]
    while ends[-1] < slots:
        ends.append(min(ends[-1] + (BLOCK if equal and ends[-1] < SHORT else ends[-1]), slots))
    return [end - before for before, end in itertools.pairwise([0, *ends])]


def split_group_steps(sizes: Sequence[tuple[int, int]]) -> list[Step]:
    """The steps of groups that are `split`, each a program. Not all that there are: any number of the groups with the
    shortest rows; where a long text is, the single rows in front of the groups of long ones; where several are, all
    groups as far as some length. The last one is of all rows and slots.
    """
    slots = [slots for _, slots in sizes]
    short = slots.count(slots[0])
    single = [n for n in range(short, len(slots)) if slots[n] not in slots[:n]]
    step = lambda groups, most: tuple(min(most, own) if n in groups else 0 for n, own in enumerate(slots))  # noqa: E731
    every, numbers = range(len(slots)), range(1, short + 1)
    steps = [step(range(number), most) for most in (min(FEW, slots[0]), slots[0]) for number in numbers]
    beside = [range(min(2, short)), range(short)]
    steps += [step([*some, *single[:count]], max(slots)) for some in beside for count in range(1, len(single) + 1)]
    # 12 M parameters, a context of 4,352: a step of all took 100 ms with nine texts of 600 tokens.
    between = [own for own in dict.fromkeys(slots) if slots[0] < own < max(slots)]
    steps += [step([n for n in every if slots[n] <= most], view) for most in between for view in (most // 2, most)]
    return list(dict.fromkeys([*steps, step(every, FEW), step(every, max(slots))]))


def whole_group_steps(sizes: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[Step]:
    """The steps that compute all groups with the shortest rows, and any number of the longer groups.

    Of the shortest groups none, the first half or all attend to more than `FEW` slots.

    Args:
        ends: how many slots a program may attend to.
    """
    slots = [slots for _, slots in sizes]
    short, few, longer = slots.count(slots[0]), min(FEW, slots[0]), slots[slots.count(slots[0]) :]
    views = [end for end in ends if end <= slots[0]]
    first = [[view] * count + [few] * (short - count) for view in views for count in (0, short // 2, short)]
    rest = [longer[:count] + [0] * (len(longer) - count) for count in range(len(longer) + 1)]
    return list(dict.fromkeys((*one, *other) for other in rest for one in first))


def empty_block(architecture: Architecture, rows: int, slots: int, dtype: jnp.dtype, run: Run = dispatch) -> Block:
    """A block without texts, for matmuls in `dtype`."""
    config = architecture.config
    shape = (rows, config.kv_heads, slots, config.head_width)
    make = lambda: run(_zeros, shape=shape, dtype=matmul_dtype(dtype))  # noqa: E731
    return Block(*(tuple(make() for _ in range(config.layers)) for _ in ("keys", "values")))


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _zeros(*, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.reshard(zeros(shape, dtype), cache_spec())


def cache_slot_bytes(session: Session) -> int:
    """What the keys and values of a token take, in all layers."""
    config = session.architecture.config
    with jax.set_mesh(session.mesh):
        return 2 * config.layers * config.kv_heads * config.head_width * matmul_dtype(session.dtype).itemsize


@partial(jax.jit, static_argnames=("alone",))
def _row_of(block: Block, number: jax.Array, *, alone: bool) -> Block:
    """One row of a block, on every part of the mesh that shares rows. `alone`: as a block of a group of one row."""
    spec = cache_spec() if alone else jax.P(None, *cache_spec()[1:])
    return jax.tree.map(lambda array: array.at[number[None]].get(out_sharding=spec), block)


@partial(jax.jit, donate_argnames=("block",))
def _with_row(block: Block, row: Block, number: jax.Array) -> Block:
    """The block with one row replaced."""
    return jax.tree.map(lambda array, own: array.at[number[None]].set(own, out_sharding=cache_spec()), block, row)


class Piece(NamedTuple):
    """A piece of a prompt: the row of the group that holds it, where it begins, how long its text may become."""

    row: int
    start: int
    ids: tuple[int, ...]
    longest: int


class Written(NamedTuple):
    """A token to write: its position, and how long its text may become."""

    token: int
    position: int
    longest: int


class Cache:
    """Groups of rows, each row for the keys and values of one text.

    Args:
        sizes: rows and slots of each group.
        slots: of each group, the slots of each of its blocks; by default those of `row_block_sizes`.

    Attributes:
        used: the blocks that have been used, by their group and their number there.
    """

    _run = staticmethod(dispatch)

    def __init__(self, session: Session, sizes: Sequence[tuple[int, int]], slots: Sequence[Sequence[int]] = ()):
        self._session, self.sizes = session, list(sizes)
        self._slots = slots or [row_block_sizes(own) for _, own in sizes]
        self.used: dict[tuple[int, int], Block] = {}
        self._costs: dict[Step, int] = {}

    def bytes(self) -> int:
        """What all groups take. A block takes its part when it is first used: long texts may never come."""
        return cache_slot_bytes(self._session) * sum(rows * slots for rows, slots in self.sizes)

    def rows(self, step: Step) -> list[int]:
        """The rows that a step computes, by their number among those of all groups."""
        slots = [slots for (rows, _), slots in zip(self.sizes, step, strict=False) for _ in range(rows)]
        return [n for n, seen in enumerate(slots) if seen]

    def cost(self, step: Step) -> int:
        """How many slots are attended to in a step."""
        if step not in self._costs:  # it is asked for all steps before each step
            each = (self.sizes[group][0] * self.attended(group, slots) for group, slots in enumerate(step) if slots)
            self._costs[step] = sum(each)
        return self._costs[step]

    def attended(self, group: int, tokens: int) -> int:
        """How many slots a text of so many tokens attends to there."""
        return sum(self._slots[group][n] for n in self._numbers(group, max(tokens, FEW)))

    def ends(self, group: int) -> list[int]:
        """How many slots a program may attend to there."""
        return [end for end in np.cumsum(self._slots[group]).tolist() if end >= min(FEW, self.sizes[group][1])]

    def copy(self, to: tuple[int, int], of: tuple[int, int], tokens: int) -> None:
        """Copy the first `tokens` tokens, or more, from one row to another. A row is its group and its number there."""
        for number in self._numbers(of[0], tokens):
            whole, alone = self._block(of[0], number), self.sizes[to[0]][0] == 1
            for part in self.parts():
                found = whole.of(part)
                if alone or whole.rows > 1:
                    found = self._run(_row_of, found, np.int32(of[1]), alone=alone)
                if not alone:
                    to_part = self._block(to[0], number).of(part)
                    found = self._run(_with_row, to_part, found, np.int32(to[1]))
                self.used[to[0], number] = self._block(to[0], number).changed(part, found)

    def read(
        self, group: int, pieces: Sequence[Piece], count: int, size: int = SIZE, end: int = 1
    ) -> Iterator[jax.Array | tuple[jax.Array, jax.Array]]:
        """Read up to `count` pieces of up to `size` tokens, some layers at a time. Yields after each part but the last
        the input of the next, which this donates; then the logits after each piece and the states after each token.

        Args:
            end: no piece ends after it; those that are given may be later.
        """
        tokens = np.full((count, size), self._session.tokenizer.pad_id, np.int32)
        places = np.tile(np.array([self.sizes[group][0], 0, 1, 1], np.int32), (count, 1))
        for n, piece in enumerate(pieces):
            tokens[n, : len(piece.ids)] = piece.ids
            places[n] = piece.row, piece.start, len(piece.ids), piece.longest
            end = max(end, piece.start + len(piece.ids))
        architecture, params, layers = self._session.arrays
        kinds = architecture.config.kinds_by_layer
        pieces_C4 = self.put(places, "batch", None)
        tokens_CT = self.put(tokens, "batch", "time")
        x_CTD = self._run(embed, architecture, params, tokens_CT, pieces_C4, dtype=self._session.dtype)
        for part in self.parts():
            blocks = self.blocks(group, end)
            arguments = params, layers and layers[part], tuple(block.of(part) for block in blocks), x_CTD, pieces_C4
            x_CTD, found = self._run(read_layers, architecture, *arguments, kinds=kinds[part])
            self._keep(group, [block.changed(part, new) for block, new in zip(blocks, found, strict=True)])
            if part.stop < len(kinds):
                yield x_CTD
        yield self._run(last_logits, architecture, params, x_CTD, pieces_C4)

    def parts(self) -> list[slice]:
        """The layers of each program."""
        layers = self._session.architecture.config.layers
        with jax.set_mesh(self._session.mesh):
            size = layers_per_program(layers)
        return [slice(first, first + size) for first in range(0, layers, size)]

    def given(self, hidden_CTD: jax.Array, after: Sequence[tuple[int, ...]], top: int) -> Choice:
        """The tokens `after` those of pieces, whose states are given, as if they had been chosen; on the device."""
        tokens_CT = np.zeros(hidden_CTD.shape[:2], np.int32)
        for n, ids in enumerate(after):
            tokens_CT[n, : len(ids)] = ids
        arguments = self._session.params, hidden_CTD, self.put(tokens_CT, "batch", "time")
        return self._run(given_tokens, self._session.architecture, *arguments, top=top)

    def write(
        self, step: Step, tokens: Mapping[int, Sequence[Written]], count: int = 1, chosen_B: jax.Array | None = None
    ) -> jax.Array:
        """Write up to `count` tokens to each row of a step: the logits after each, `[len(rows(step)) * count, V]`.

        Args:
            tokens: of some rows, by their number among those of all groups.
            chosen_B: the tokens that the step before chose for the same rows, in the place of `UNSEEN`; None: of none.
        """
        used, nowhere = [group for group, slots in enumerate(step) if slots], max(slots for _, slots in self.sizes)
        tokens_BT3 = np.array([[(0, nowhere, -1)] * count for _ in self.rows(step)], np.int32)
        for n, row in enumerate(self.rows(step)):
            if each := tokens.get(row):
                tokens_BT3[n, : len(each)] = each
                tokens_BT3[n, :, 2] = each[0].longest
        if chosen_B is None:
            chosen_B = self.put(np.zeros(len(tokens_BT3), np.int32), "batch")
        (architecture, params, layers), new_BT3 = self._session.arrays, self.put(tokens_BT3, "batch", None, None)
        x_BTD = self._run(embed_new, architecture, params, new_BT3, chosen_B, dtype=self._session.dtype)
        kinds = architecture.config.kinds_by_layer
        for part in self.parts():
            whole = [self.blocks(group, step[group]) for group in used]
            groups = tuple(tuple(block.of(part) for block in blocks) for blocks in whole)
            arguments = params, layers and layers[part], groups, x_BTD, new_BT3
            x_BTD, groups = self._run(write_layers, architecture, *arguments, kinds=kinds[part])
            for group, blocks, found in zip(used, whole, groups, strict=True):
                self._keep(group, [block.changed(part, new) for block, new in zip(blocks, found, strict=True)])
        return self._run(new_logits, architecture, params, x_BTD)

    def blocks(self, group: int, tokens: int) -> tuple[Block, ...]:
        """The blocks that texts of `tokens` tokens attend to: at least `FEW` slots."""
        return tuple(self._block(group, number) for number in self._numbers(group, max(tokens, FEW)))

    def put(self, array: np.ndarray, *dimensions: str | None) -> jax.Array:
        """An array that every host has, on the mesh."""
        return put_whole(self._session.mesh, array, *dimensions)

    def _numbers(self, group: int, tokens: int) -> list[int]:
        """The numbers of the blocks that hold the first `tokens` tokens of a row."""
        sizes = self._slots[group]
        return [n for n in range(len(sizes)) if sum(sizes[:n]) < tokens]

    def _block(self, group: int, number: int) -> Block:
        if (group, number) not in self.used:
            sizes = self.sizes[group][0], self._slots[group][number]
            arguments = self._session.architecture, *sizes, self._session.dtype
            self.used[group, number] = empty_block(*arguments, self._run)
        return self.used[group, number]

    def _keep(self, group: int, blocks: Sequence[Block]) -> None:
        self.used |= {(group, number): block for number, block in enumerate(blocks)}


class ShapesOnly(Cache):
    """A cache whose blocks are shapes: the programs of what it is asked to do are compiled, and nothing is computed."""

    _run = staticmethod(only_compile)
