"""Prefill: the prompts of texts that have a row are read in prefill slots, some in each step, and then copied to it.

Two prefill groups alternate while texts are written, so one long prompt does not keep all others waiting.

Shapes: C pieces of T tokens, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from tpullm.engine.cache import SHORT, SIZE, Cache, Piece
from tpullm.engine.rows import Rows, Text
from tpullm.engine.sampling import form_of

# While texts are written, a step reads one piece for each so many texts that have a row, and one at least. 12 M
# parameters, bfloat16: a piece takes 17 ms, two of a text 27; a step of 12 rows takes 10, of 32 20.
TEXTS = 8
# While texts are written, a step reads as many layers of a prompt longer than `SHORT` as its budget pays for:
# SLOTS_OF_TEXT for each text that is written, and for LEAST_TEXTS at least. A whole piece costs SLOTS_OF_PIECE and the
# slots that it attends to: with 256 it takes 17 ms, with 4,352 37. Beside 8 texts, steps of whole pieces took 36 ms, a
# step alone 13, so their streams paused for 4.3 times as long as usual, now for 3.4.
SLOTS_OF_TEXT, LEAST_TEXTS, SLOTS_OF_PIECE = 256, 6, 3300
ALIKE = 8  # texts that begin as one that is read, and have their first tokens from the same step

IsCompiled = Callable[..., bool]


class Read(NamedTuple):
    """Pieces whose last layers are dispatched: in which prefill group; their numbers in the arrays, and whose they are;
    the logits after each, `[C, V]`, and the hidden states after each token, `[C, T, D]`; by the number of a piece with
    which a prompt is whole, the texts that begin alike.
    """

    group: int
    pieces: list[tuple[int, Text, Piece]]
    logits_CV: jax.Array
    hidden_CTD: jax.Array
    others: dict[int, list[Text]]

    def firsts(self) -> list[list[Text | None]]:
        """Whose first tokens are chosen from the logits, several times if several texts begin alike."""
        own = {n: text for n, text, _ in self.pieces if n in self.others}
        turns = itertools.zip_longest(*([own[n], *others] for n, others in self.others.items()))
        found = [dict(zip(self.others, turn, strict=True)) for turn in turns]
        return [[of.get(n) for n in range(len(self.logits_CV))] for of in found]


class _Reading(NamedTuple):
    """Pieces that are being read: in which prefill group, whose they are, what `Cache.read` finds, and how many parts
    of it are for one step.
    """

    group: int
    pieces: list[tuple[Text, Piece]]
    found: Iterator[jax.Array | tuple[jax.Array, jax.Array]]
    parts: int


class Prefill:
    """Reads the prompts of the texts that have a row.

    Args:
        groups: the numbers of the prefill groups.
        waits: nothing is written until all is read.
        is_compiled: `(count, slots, texts, begin, first=False)`: whether so many pieces of some texts can be read that
            attend to so many slots; the last two are as in `Programs.have`.

    Attributes:
        reused_tokens: of prompts, that were copied from a row, not read.
    """

    def __init__(self, cache: Cache, rows: Rows, groups: Sequence[int], waits: bool, is_compiled: IsCompiled):
        self._cache, self._rows, self._waits, self._is_compiled = cache, rows, waits, is_compiled
        self._slots: dict[int, list[Text | None]] = {group: [None] * cache.sizes[group][0] for group in groups}
        self._reading: _Reading | None = None
        self._readings = self.reused_tokens = 0
        self._turns: dict[str, int] = {}  # of each client that has texts, when one of these last got a slot

    def is_whole(self) -> bool:
        """Whether no prompt is left to read."""
        return all(text.is_read for text in self._rows.texts())

    def can_read(self, text: Text, counts: Sequence[int]) -> bool:
        """Whether a program for its whole prompt is compiled. If not, this begins to compile one."""
        group = next(iter(self._slots))
        needed = self._cache.attended(group, len(text.request.ids))
        ends = [end for end in self._cache.ends(group) if end >= needed]
        found = any(self._is_compiled(count, end, [text], False) for count in counts for end in ends)
        return found or self._is_compiled(counts[0], needed, [text], True, True)

    def read(self, counts: Sequence[int]) -> Read | jax.Array | None:
        """Read some of the prompts of a group, or the next layers of what is being read if this takes long and texts
        are written.

        Returns:
            A `Read` once the last layers are dispatched; before that, the input of the layers that follow; None if
            there is nothing to read.

        Args:
            counts: of pieces, that may be read in a step; the fewest first.
        """
        if self._reading is None and not self._begin(counts):
            return None
        reading = self._reading
        *_, found = itertools.islice(reading.found, reading.parts if self._written() else None)
        if isinstance(found, jax.Array):
            return found
        self._reading = None
        pieces = [(n, text, piece) for n, (text, piece) in enumerate(reading.pieces) if text.row.text is text]
        return Read(reading.group, pieces, *found, self._others(pieces))

    def leave(self, read: Read) -> None:
        """Count what was read. A text whose prompt is whole leaves its slot for its row; what this held goes to a free
        row if nothing of it is shared.
        """
        for n, text, piece in read.pieces:
            text.read = piece.start + len(piece.ids)
            if text.is_read:
                self._slots[read.group][piece.row] = None
                self.reused_tokens += text.read * len(read.others[n])
                for one in (text, *read.others[n]):
                    row, one.read = one.row, text.read
                    if not self._rows.shared(row, one):
                        self._rows.keep(row)
                    self._cache.copy((row.group, row.index), (read.group, piece.row), one.read)
                    row.held, row.held_for = one.request.ids, one.longest

    def _others(self, pieces: Sequence[tuple[int, Text, Piece]]) -> dict[int, list[Text]]:
        """By the number of a piece with which a prompt is whole: the texts that begin alike and have no slot.

        Their first tokens are chosen by the program that the step is compiled for.
        """
        slots = [text for slots in self._slots.values() for text in slots]
        form = max((form_of(text.request) for _, text, _ in pieces), default=0)
        unread = [text for text in self._rows.texts() if not text.is_read and text not in slots]
        free = [text for text in unread if form_of(text.request) == form]
        whole = [(n, text) for n, text, piece in pieces if piece.start + len(piece.ids) == len(text.request.ids)]
        return {n: [one for one in free if one.begins_as(text)][:ALIKE] for n, text in whole}

    def _written(self) -> int:
        """How many texts are written that should not wait for prompts."""
        return 0 if self._waits else sum(text.is_read for text in self._rows.texts())

    def _begin(self, counts: Sequence[int]) -> bool:
        """Choose what is read next; the groups alternate. False if there is nothing, or no program for it yet."""
        self._fill_slots()
        taken = [group for group, slots in self._slots.items() if any(slots)]
        if not taken:
            return False
        group, texts = taken[self._readings % len(taken)], self._rows.texts()
        own = [text for text in self._slots[group] if text is not None]
        left = sum(-(-(len(text.request.ids) - text.read) // SIZE) for text in own)
        most = min(left, len(texts) // TEXTS) if self._written() else 4 * left // 3
        count = max((count for count in counts[1:] if count <= most), default=counts[0])
        found = self._with_program(group, count, counts)
        if found is None:
            self._readings += 1  # the other group may have a program for what it reads
            return False
        count, end, pieces = found
        parts = len(self._cache.parts())
        if max(len(text.request.ids) for text, _ in pieces) > SHORT:
            cost, room = count * (SLOTS_OF_PIECE + end), SLOTS_OF_TEXT * max(LEAST_TEXTS, self._written())
            parts = max(1, parts * room // cost)
        found = self._cache.read(group, [piece for _, piece in pieces], count, end=end)
        self._reading, self._readings = _Reading(group, pieces, found, parts), self._readings + 1
        return True

    def _with_program(self, group: int, wanted: int, counts: Sequence[int]):
        """What the next step reads with a program that is compiled; None if there is none.

        Returns:
            The number of pieces of the program: as many as are wanted; else fewer, or more, and then some are empty.
            `end`, the slots that it attends to: what the pieces need, or more. The pieces.
        """
        for count in (wanted, *(count for count in reversed(counts) if count < wanted), *counts):
            pieces: list[tuple[Text, Piece]] = []
            for place, text in enumerate(self._slots[group]):
                if text is not None:
                    ids = text.request.ids
                    starts = range(text.read, len(ids), SIZE)[: count - len(pieces)]
                    pieces += [(text, Piece(place, start, ids[start : start + SIZE], text.longest)) for start in starts]
            end, texts = (
                self._cache.attended(group, max(p.start + len(p.ids) for _, p in pieces)),
                [t for t, _ in pieces],
            )
            if self._is_compiled(count, end, texts, count == wanted):
                return count, end, pieces
            for more in self._cache.ends(group):
                if more > end and self._is_compiled(count, more, texts, False):
                    return count, more, pieces
        return None

    def _fill_slots(self) -> None:
        """Give the free slots to those who wait, clients in turn, unless another reads what they can copy when it is
        read: a prompt is read once for all answers to it. With 12 M parameters, a text waited 1 s behind the 32 answers
        of another client.
        """
        for slots in self._slots.values():
            slots[:] = [text if text is not None and text.row.text is text else None for text in slots]
        reading = [text for slots in self._slots.values() for text in slots if text is not None]
        unread = [text for text in self._rows.texts() if not text.is_read and text not in reading]
        free = [(group, n) for group, slots in self._slots.items() for n, text in enumerate(slots) if not text]
        here = {text.request.client for text in self._rows.texts()}
        self._turns = {client: turn for client, turn in self._turns.items() if client in here}
        while free and unread:
            text = min(unread, key=lambda text: (self._turns.get(text.request.client, 0), text.number))
            unread.remove(text)
            best = max(self._rows.all, key=lambda row: self._rows.shared(row, text))
            shared = self._rows.shared(best, text)
            awaited = (text.shared(other.request.ids) for other in reading if other.longest == text.longest)
            if max(awaited, default=0) <= shared and not any(text.begins_as(other) for other in reading):
                group, place = free.pop(0)
                self._cache.copy((group, place), (best.group, best.index), shared)
                self.reused_tokens += shared
                text.read, self._slots[group][place] = shared, text
                self._turns[text.request.client] = 1 + max(self._turns.values(), default=0)
                reading.append(text)
