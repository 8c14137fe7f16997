"""The bands of an engine, and what is computed on them: the programs of `row_memory` with arrays of this host."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tpullm.engine.row_memory import (
    Block,
    Choice,
    advance,
    alike_layers,
    bytes_of_slot,
    embed,
    empty_block,
    last_logits,
    read_layers,
    row_of,
    told,
    with_row,
)
from tpullm.engine.row_sizes import FEW, bands, block_sizes
from tpullm.engine.session import Session
from tpullm.model.rows import fetch, put_whole, row_parts

TWO_DESKS = (1, 1)  # so one long prompt does not keep all others waiting


class Piece(NamedTuple):
    """A piece of a prompt: the row of the band that holds it, where it begins, how long its text may become."""

    row: int
    start: int
    ids: tuple[int, ...]
    longest: int


class Written(NamedTuple):
    """A token to write: its position, and how long its text may become."""

    token: int
    position: int
    longest: int


class TextMemory:
    """Bands of rows, each for the keys and values of one text.

    Args:
        longest, rows, groups: as in `bands`.
        desks: the rows of each desk on each part of the mesh. Texts of one desk are read in one program.

    Attributes:
        groups: as it was given.
        sizes: rows and slots of each band in which texts are written.
        desks: the numbers of further bands, to read texts of any length.
    """

    def __init__(self, session: Session, longest: int, rows: int, groups: bool, desks: Sequence[int] = TWO_DESKS):
        self._session, self.groups, parts = session, groups, row_parts(session.mesh)
        self.sizes = bands(longest, rows, parts, groups, self._bytes_of_slot())
        self.desks = [len(self.sizes) + n for n in range(len(desks))]
        self._sizes = [*self.sizes, *((parts * count, self.sizes[-1][1]) for count in desks)]
        self._slots = [block_sizes(slots, equal=not groups) for _, slots in self._sizes]
        self._blocks: dict[tuple[int, int], Block] = {}

    def bytes(self) -> int:
        """What all bands take. A block takes its part when it is first used: long texts may never come."""
        return self._bytes_of_slot() * sum(rows * slots for rows, slots in self._sizes)

    def _bytes_of_slot(self) -> int:
        with jax.set_mesh(self._session.mesh):
            return bytes_of_slot(self._session.architecture, self._session.dtype)

    def blocks(self) -> dict[tuple[int, int], Block]:
        """Those that have been used, by their band and their number there."""
        return self._blocks

    def seats(self, desk: int) -> int:
        """How many texts have a place at a desk."""
        return self._sizes[desk][0]

    def rows(self, seen: Sequence[int]) -> list[int]:
        """The rows that a step computes, by their number among those of all bands; arguments as for `write`."""
        ends = np.cumsum([rows for rows, _ in self.sizes]).tolist()
        bands = zip(self.sizes, ends, seen, strict=True)
        return [row for (rows, _), end, slots in bands if slots for row in range(end - rows, end)]

    def slots(self, seen: Sequence[int]) -> int:
        """How many are attended to in a step."""
        return sum(self.sizes[band][0] * self.seen(band, slots) for band, slots in enumerate(seen) if slots)

    def seen(self, band: int, tokens: int) -> int:
        """How many slots a text of so many tokens attends to there."""
        return sum(self._slots[band][n] for n in self._seen(band, tokens))

    def ends(self) -> list[int]:
        """How many slots reading may attend to: each is a program."""
        return [end for end in np.cumsum(self._slots[self.desks[0]]).tolist() if end >= min(FEW, self.sizes[-1][1])]

    def copy(self, to: tuple[int, int], of: tuple[int, int], tokens: int) -> None:
        """Let a row, by its band and its number there, hold so many tokens that another one holds, or more."""
        for number in self._numbers(of[0], tokens):
            found, alone = self._block(of[0], number), self._sizes[to[0]][0] == 1
            if alone or found.rows > 1:
                found = row_of(found, np.int32(of[1]), alone=alone)
            if not alone:
                found = with_row(self._block(to[0], number), found, np.int32(to[1]))
            self._blocks[to[0], number] = found

    def move(self, to: tuple[int, int], of: tuple[int, int], tokens: int) -> None:
        """The same, where nobody needs what they hold else: two bands of one row exchange their blocks."""
        if self._sizes[to[0]][0] > 1 or self._sizes[of[0]][0] > 1:
            return self.copy(to, of, tokens)
        for number in self._numbers(of[0], tokens):
            blocks = self._block(of[0], number), self._block(to[0], number)
            self._blocks[to[0], number], self._blocks[of[0], number] = blocks

    def read(
        self, band: int, pieces: Sequence[Piece], count: int, size: int, end: int = 1
    ) -> Iterator[jax.Array | tuple[jax.Array, jax.Array]]:
        """Read up to `count` pieces of up to `size` tokens, some layers at a time. Yields after each part but the last
        the input of the next, which this donates; then the logits after each piece and the states after each token.

        Args:
            end: no piece ends after it; those that are given may be later.
        """
        rows = self._sizes[band][0]
        tokens = np.full((count, size), self._session.tokenizer.pad_id, np.int32)
        places = np.tile(np.array([rows, 0, 1, 1], np.int32), (count, 1))
        for n, piece in enumerate(pieces):
            tokens[n, : len(piece.ids)] = piece.ids
            places[n] = piece.row, piece.start, len(piece.ids), piece.longest
            end = max(end, piece.start + len(piece.ids))
        architecture, params, layers = self._model()
        kinds = architecture.config.window_indices
        pieces_C4 = self._put(places, "batch", None)
        x_CTD = embed(architecture, params, self._put(tokens, "batch", "time"), pieces_C4, dtype=self._session.dtype)
        for part in self.parts():
            blocks = self._band(band, end)
            arguments = params, layers and layers[part], tuple(block.of(part) for block in blocks), x_CTD, pieces_C4
            x_CTD, found = read_layers(architecture, *arguments, kinds=kinds[part])
            self._keep(band, [block.changed(part, new) for block, new in zip(blocks, found, strict=True)])
            if part.stop < len(kinds):
                yield x_CTD
        yield last_logits(architecture, params, x_CTD, pieces_C4)

    def parts(self) -> list[slice]:
        """The layers that are read in one program, part by part."""
        kinds = self._session.architecture.config.window_indices
        size = alike_layers(kinds) if self._session.layers else len(kinds)
        return [slice(first, first + size) for first in range(0, len(kinds), size)]

    def told(self, hidden_CTD: jax.Array, after: Sequence[tuple[int, ...]], top: int) -> Choice:
        """What the model held of the tokens `after` those of pieces, whose states are given."""
        tokens_CT = np.zeros(hidden_CTD.shape[:2], np.int32)
        for n, ids in enumerate(after):
            tokens_CT[n, : len(ids)] = ids
        arguments = self._session.params, hidden_CTD, self._put(tokens_CT, "batch", "time")
        choice = told(self._session.architecture, *arguments, top=top)
        return Choice(*(fetch(self._session.mesh, array) for array in choice))

    def write(
        self,
        seen: Sequence[int],
        tokens: Mapping[int, Sequence[Written]],
        count: int = 1,
        chosen_B: jax.Array | None = None,
    ) -> jax.Array:
        """Write up to `count` tokens to each row of some bands: the logits after each, `[len(rows(seen)) * count, V]`.

        Args:
            seen: of each band, how many slots its rows attend to at least; 0 if it is left out. Each is a program.
            tokens: of some rows, by their number among those of all bands.
            chosen_B: the tokens that the step before chose for the same rows, in the place of `UNSEEN`; None: of none.
        """
        used = [band for band, slots in enumerate(seen) if slots]
        tokens_BT3 = np.array([[(0, self.sizes[-1][1], 1)] * count for _ in self.rows(seen)], np.int32)
        for n, row in enumerate(self.rows(seen)):
            if each := tokens.get(row):
                tokens_BT3[n, : len(each)] = each
                tokens_BT3[n, :, 2] = each[0].longest
        memory = tuple(self._band(band, seen[band]) for band in used)
        if chosen_B is None:
            chosen_B = self._put(np.zeros(len(tokens_BT3), np.int32), "batch")
        arguments = memory, self._put(tokens_BT3, "batch", None, None), chosen_B
        logits, memory = advance(*self._model(), *arguments, dtype=self._session.dtype)
        for band, found in zip(used, memory, strict=True):
            self._keep(band, found)
        return logits

    def _numbers(self, band: int, tokens: int) -> list[int]:
        """The blocks that hold so many tokens of a row."""
        sizes = self._slots[band]
        return [n for n in range(len(sizes)) if sum(sizes[:n]) < tokens]

    def _seen(self, band: int, tokens: int) -> list[int]:
        """The blocks that are attended to: those that texts of so many tokens reach, and `FEW` slots."""
        return self._numbers(band, max(tokens, FEW))

    def _band(self, band: int, tokens: int) -> tuple[Block, ...]:
        return tuple(self._block(band, number) for number in self._seen(band, tokens))

    def _block(self, band: int, number: int) -> Block:
        if (band, number) not in self._blocks:
            sizes = self._sizes[band][0], self._slots[band][number]
            self._blocks[band, number] = empty_block(self._session.architecture, *sizes, self._session.dtype)
        return self._blocks[band, number]

    def _keep(self, band: int, memory: Sequence[Block]) -> None:
        self._blocks |= {(band, number): block for number, block in enumerate(memory)}

    def _model(self) -> tuple:
        return self._session.architecture, self._session.params, self._session.layers

    def _put(self, array: np.ndarray, *dimensions: str | None) -> jax.Array:
        return put_whole(self._session.mesh, array, *dimensions)
