"""The bands of an engine, and what is computed on them: the programs of `row_memory` with arrays of this host."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tpullm.inference.row_memory import (
    Band,
    Choice,
    advance,
    bands,
    bytes_of_slot,
    copied,
    empty_band,
    read,
    seen,
    told,
)
from tpullm.inference.session import Session
from tpullm.mesh.rows import fetch, put_whole, row_parts


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
    """

    def __init__(self, session: Session, longest: int, rows: int, groups: bool):
        self._session = session
        self.sizes = bands(longest, rows, row_parts(session.mesh), groups)
        self._bands: dict[int, Band] = {}

    def bytes(self) -> int:
        """What all bands take. A band takes its part when it is first used: long texts may never come."""
        with jax.set_mesh(self._session.mesh):
            each = bytes_of_slot(self._session.architecture, self._session.dtype)
        return each * sum(rows * slots for rows, slots in self.sizes)

    def bands(self) -> dict[int, Band]:
        """Those that have been used."""
        return self._bands

    def rows(self, used: int) -> int:
        """Of the first `used` bands."""
        return sum(rows for rows, _ in self.sizes[:used])

    def copy(self, to: tuple[int, int], of: tuple[int, int]) -> None:
        """Let a row, by its band and its number there, hold what another one holds."""
        source = None if of[0] == to[0] else self._band(of[0])
        self._bands[to[0]] = copied(self._band(to[0]), source, np.int32(to[1]), np.int32(of[1]))

    def read(
        self, band: int, pieces: Sequence[Piece], count: int, size: int, end: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """Read up to `count` pieces of up to `size` tokens: the logits after each and the states after each token.

        Args:
            end: no piece ends after it; those that are given may be later.
        """
        rows, slots = self.sizes[band]
        tokens = np.full((count, size), self._session.tokenizer.pad_id, np.int32)
        places = np.tile(np.array([rows, 0, 1, 1], np.int32), (count, 1))
        for n, piece in enumerate(pieces):
            tokens[n, : len(piece.ids)] = piece.ids
            places[n] = piece.row, piece.start, len(piece.ids), piece.longest
            end = max(end, piece.start + len(piece.ids))
        arguments = self._band(band), self._put(tokens, "batch", "time"), self._put(places, "batch", None)
        sizes = {"seen": seen(end, slots), "dtype": self._session.dtype}
        logits_CV, hidden_CTD, self._bands[band] = read(*self._model(), *arguments, **sizes)
        return logits_CV, hidden_CTD

    def told(self, hidden_CTD: jax.Array, after: Sequence[tuple[int, ...]], top: int) -> Choice:
        """What the model held of the tokens `after` those of pieces, whose states are given."""
        tokens_CT = np.zeros(hidden_CTD.shape[:2], np.int32)
        for n, ids in enumerate(after):
            tokens_CT[n, : len(ids)] = ids
        arguments = self._session.params, hidden_CTD, self._put(tokens_CT, "batch", "time")
        choice = told(self._session.architecture, *arguments, top=top)
        return Choice(*(fetch(self._session.mesh, array) for array in choice))

    def write(self, used: int, tokens: Mapping[int, Sequence[Written]], count: int = 1) -> jax.Array:
        """Write up to `count` tokens to each row of the first `used` bands: the logits after each, `[B * count, V]`.

        Args:
            tokens: of some rows, by their number among those of all bands.
        """
        slots_B = [slots for rows, slots in self.sizes[:used] for _ in range(rows)]
        tokens_BT3 = np.array([[(0, slots, 1)] * count for slots in slots_B], np.int32)
        for n, each in tokens.items():
            tokens_BT3[n, : len(each)] = each
            tokens_BT3[n, :, 2] = each[0].longest
        arguments = tuple(map(self._band, range(used))), self._put(tokens_BT3, "batch", None, None)
        logits, memory = advance(*self._model(), *arguments, dtype=self._session.dtype)
        self._bands |= dict(enumerate(memory))
        return logits

    def _band(self, number: int) -> Band:
        if number not in self._bands:
            sizes = self.sizes[number]
            self._bands[number] = empty_band(self._session.architecture, *sizes, self._session.dtype)
        return self._bands[number]

    def _model(self) -> tuple:
        return self._session.architecture, self._session.params, self._session.layers

    def _put(self, array: np.ndarray, *dimensions: str | None) -> jax.Array:
        return put_whole(self._session.mesh, array, *dimensions)
