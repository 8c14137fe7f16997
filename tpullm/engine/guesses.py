"""Guesses of the tokens that come next, which the model checks several at a time (Leviathan et al. 2023).

A guess only saves time: the engine chooses every token itself, and takes a guess where it is the token that it chose.
So the distribution of texts is the same with and without. Several tokens are summed in another order than one, so the
logits may differ in their last bits.
"""

import os.path
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from tpullm.engine.cache import SIZE, Cache, Piece, Written
from tpullm.engine.sampling import SAMPLED, Next, choose_next, fetched_choice
from tpullm.engine.session import Session
from tpullm.system.errors import UserError

PIECES = 8  # of a prompt, that a draft reads at a time
MOST = 5  # tokens that are guessed at a time
LOOKED_UP = (3, 2)  # the last tokens of a text that are looked for in it: the more, the better the guess


class Lookup:
    """The text goes on as it did before: after the last place where its last tokens stood (Saxena 2023)."""

    def compile(self, rows: int, slots: int) -> None:
        """Compile the programs of what guesses, for `rows` rows of `slots` tokens: here there are none."""

    def of(self, texts: Mapping[int, Next], rows: int, slots: int) -> dict[int, list[int]]:
        """Up to `MOST` guesses of each text, by its row: what followed."""
        return {row: _tokens_after_repeat(np.array((*text.request.ids, *text.new))) for row, text in texts.items()}


def _tokens_after_repeat(ids: np.ndarray) -> list[int]:
    for count in LOOKED_UP:
        if len(ids) > count:
            same = np.ones(len(ids) - count, bool)
            for n in range(count):
                same &= ids[n : len(ids) - count + n] == ids[len(ids) - count + n]
            if same.any():
                period = len(ids) - count - int(np.flatnonzero(same)[-1])
                return np.resize(ids[-period:], MOST).tolist()  # over and over where it is short
    return []


class Draft:
    """A smaller model guesses, by the same rules and the same random numbers as the one that it guesses for."""

    def __init__(self, small: Session):
        self._session = small
        self._cache: Cache | None = None
        self._held: dict[int, list[int]] = {}  # of each row, the tokens whose keys it holds

    def compile(self, rows: int, slots: int) -> None:
        """Compile what reads, what writes the last tokens, and what writes one more."""
        with jax.set_mesh(self._session.mesh):
            _ = [*self._cache_of(rows, slots).read(0, [], PIECES)]
            for count in (MOST + 1, 1):
                logits = self._logits({}, rows, slots, count)
                choose_next(self._session.mesh, logits, [None] * len(logits), SAMPLED)

    def of(self, texts: Mapping[int, Next], rows: int, slots: int) -> dict[int, list[int]]:
        """The tokens that the draft model would choose; none for a text that it has still to prefill."""
        most = min(slots, self._session.context_length) - MOST
        ids = {row: [*text.request.ids, *text.new] for row, text in texts.items()}
        ids = {row: own for row, own in ids.items() if len(own) <= most}
        for row, own in ids.items():
            self._held[row] = os.path.commonprefix([self._held.get(row, []), own[:-1]])
        with jax.set_mesh(self._session.mesh):
            self._read_some(ids, rows, slots)
            unread = {row: own[len(self._held[row]) :] for row, own in ids.items()}
            ready = {row: own for row, own in unread.items() if len(own) <= MOST + 1}
            return self._guessed({row: texts[row] for row in ready}, ready, rows, slots) if ready else {}

    def _read_some(self, ids: Mapping[int, list[int]], rows: int, slots: int) -> None:
        """Read some pieces of texts that came since, such as prompts: all but the last token."""
        pieces: list[Piece] = []
        for row, own in ids.items():
            if len(own) - len(self._held[row]) > MOST + 1:
                starts = range(len(self._held[row]), len(own) - 1, SIZE)[: PIECES - len(pieces)]
                parts = [(start, tuple(own[start : min(start + SIZE, len(own) - 1)])) for start in starts]
                pieces += [Piece(row, start, part, start + len(part)) for start, part in parts]
        if pieces:
            _ = [*self._cache_of(rows, slots).read(0, pieces, PIECES)]
        for piece in pieces:
            self._held[piece.row] += piece.ids

    def _guessed(self, texts: Mapping[int, Next], unread: Mapping[int, list[int]], rows: int, slots: int):
        found: dict[int, list[int]] = {row: [] for row in texts}
        for _ in range(MOST):
            count = 1 if any(found.values()) else MOST + 1
            asked: list[Next | None] = [None] * (rows * count)
            for row, text in texts.items():
                asked[row * count + len(unread[row]) - 1] = text._replace(new=(*text.new, *found[row]))
            logits = self._logits(unread, rows, slots, count)
            choice = fetched_choice(self._session.mesh, choose_next(self._session.mesh, logits, asked))
            for row in texts:
                self._held[row] += unread[row]
                found[row].append(int(choice.tokens[row * count + len(unread[row]) - 1]))
            unread = {row: found[row][-1:] for row in texts}
        return found

    def _logits(self, new: Mapping[int, Sequence[int]], rows: int, slots: int, count: int) -> jax.Array:
        tokens = {}
        for row, ids in new.items():
            held = len(self._held[row])
            tokens[row] = [Written(token, held + n, held + MOST + 1) for n, token in enumerate(ids)]
        return self._cache_of(rows, slots).write((slots,), tokens, count)

    def _cache_of(self, rows: int, slots: int) -> Cache:
        self._cache = self._cache or Cache(self._session, [(rows, slots)])
        return self._cache


def check_draft(small: Session, model: Session, name: str) -> None:
    """Refuse a model that can't guess for another: their tokens differ.

    Raises:
        UserError: with the draft's `name`.
    """
    count = small.tokenizer.vocabulary_size
    if count != model.tokenizer.vocabulary_size or any(
        small.tokenizer.bytes_of(token) != model.tokenizer.bytes_of(token) for token in range(count)
    ):
        raise UserError(f"--draft {name}: its tokens are not those of the model; use one with the same tokenizer")
