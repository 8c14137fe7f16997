"""Many texts at once: each is read and continued as it comes, and ends without the others waiting (Yu et al. 2022).

A turn of the engine reads some of a prompt, then writes one token to every text that has been read. So a long prompt
does not stop the others. A prompt is read at a desk, a row of its own; then the text gets its row among those that are
written. A text's tokens do not depend on what is computed beside it: a prompt is read in pieces that begin at multiples
of `CHUNK`, and only programs are used that were seen to give the same bits (`engine_programs.py`).

Shapes: B rows of all bands, C pieces of T tokens, V vocabulary.
"""

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from tpullm.errors import UserError
from tpullm.inference.engine_programs import Programs, Step
from tpullm.inference.guesses import MOST, Guesses
from tpullm.inference.next_tokens import MOST_TOP, Next, chosen
from tpullm.inference.padding import fits
from tpullm.inference.request import Request, Token
from tpullm.inference.row_memory import CHUNK, SIZE, Choice
from tpullm.inference.session import Session
from tpullm.inference.text_memory import TWO_DESKS, Piece, TextMemory, Written
from tpullm.log import say
from tpullm.recipe.schema import ModelConfig

ROWS = 32
# A piece of a prompt is read in some turns if texts are written meanwhile and it attends to more slots than this. 12 M
# parameters, bfloat16: a step of 8 texts takes 13 ms, a piece with 1,024 slots 18, with 4,352 37.
MOST_SEEN = 1536
# Texts at a desk if all are read before one is written. 12 M parameters, texts of 200 tokens: one after the other they
# were read in 108 turns of 27 ms, four together in 25 of 84.
SEATS = 4
PATIENCE = 16  # turns at most in which nothing is guessed for a text after guesses that were wrong

Heard = Callable[[Token], None]


@dataclass(eq=False)
class _Row:
    """A row of the memory: which one, the prompt tokens that it holds as they were read, and whose it is.

    While the prompt of its text is read, it holds what it held before.
    """

    band: int
    index: int
    held: tuple[int, ...] = ()
    held_for: int = 0  # `_longest` of the text: rotations may depend on it
    text: "_Text | None" = None
    used: int = 0


@dataclass(eq=False)
class _Text:
    """A request that is computed: its row, how much of its prompt is read, and its new tokens."""

    number: int
    request: Request
    heard: Heard
    longest: int
    row: _Row | None = None
    read: int = 0
    new: list[int] = field(default_factory=list)
    wrong: int = 0  # guesses in a row
    guess_in: int = 0  # turns

    @property
    def length(self) -> int:
        return len(self.request.ids) + len(self.new)

    @property
    def is_read(self) -> bool:
        return self.read == len(self.request.ids)


class _Reading(NamedTuple):
    """Pieces that are being read: the seats and the number of their desk, whose they are, what `read` finds, and how
    many parts of it are for one turn.
    """

    seats: list[_Text | None]
    desk: int
    pieces: list[tuple[_Text, Piece]]
    found: Iterator[tuple[jax.Array, jax.Array] | None]
    parts: int


class Engine:
    """Continues texts for many at once.

    `submit` and `cancel` may be called from any thread, `step` from one. With several hosts, all of them make the same
    calls in the same order.

    Args:
        session: the model.
        rows: how many texts are written at a time.
        longest: tokens of the longest text; 0 is the model's context.
        reads_first: read all prompts for which there is a row before a token is written, and compute all rows in each
            step: best if all requests are there from the start.
        guesses: of the next tokens, which are checked together while few texts are written; None guesses nothing.
    """

    def __init__(
        self,
        session: Session,
        rows: int = ROWS,
        longest: int = 0,
        reads_first: bool = False,
        guesses: Guesses | None = None,
    ):
        self.session, self.reads_first, self.guesses = session, reads_first, guesses
        self.longest = min(longest or session.context_length, session.context_length)
        desks = (min(SEATS, rows),) if reads_first else TWO_DESKS
        self._memory = TextMemory(session, self.longest, rows, groups=not reads_first, desks=desks)
        self._programs = Programs(session, self._memory)
        self._desks: list[list[_Text | None]] = [[None] * self._memory.seats(desk) for desk in self._memory.desks]
        sizes = enumerate(self._memory.sizes)
        self._rows = [_Row(band, index) for band, (count, _) in sizes for index in range(count)]
        self._lock, self._number = threading.Lock(), 0
        self._waiting: OrderedDict[str, deque[_Text]] = OrderedDict()
        self._texts: dict[int, _Text] = {}  # that are waiting or have a row
        self._cancelled: set[int] = set()
        self._turn = self._readings = 0
        self._reading: _Reading | None = None
        self._counts = dict.fromkeys(("prompt_tokens", "reused_tokens", "new_tokens", "guesses", "right_guesses"), 0)

    def submit(self, request: Request, heard: Heard) -> int:
        """Ask for a text; returns its number. `heard` gets each token, in the thread of `step`.

        Raises:
            UserError: the prompt does not fit.
        """
        ids = request.ids
        fits(self.session, list(ids), "prompt")
        if len(ids) >= self.longest:
            raise UserError(f"prompt: {len(ids)} tokens leave no room for an answer in {self.longest}; shorten it")
        longest = _longest(self.session.architecture.config, min(len(ids) + request.tokens, self.longest))
        with self._lock:
            self._number += 1
            text = _Text(self._number, request, heard, longest)
            self._texts[text.number] = text
            self._waiting.setdefault(request.client, deque()).append(text)
            return text.number

    def cancel(self, number: int) -> None:
        """Forget a text. If it has ended, nothing happens."""
        with self._lock:
            self._cancelled.add(number)

    def figures(self) -> dict[str, float]:
        """How many texts wait and are computed, pages (of `CHUNK` slots) there are and in use, tokens so far."""
        with self._lock:
            waiting = sum(map(len, self._waiting.values()))
            running = [row.text for row in self._rows if row.text is not None]
        pages = sum(self._slots(row) // CHUNK for row in self._rows)
        used = sum(-(-(text.read + len(text.new)) // CHUNK) for text in running)
        return {"waiting": waiting, "running": len(running), "pages": pages, "pages_used": used, **self._counts}

    def memory_bytes(self) -> int:
        """What the rows of all bands take."""
        return self._memory.bytes()

    def compile(self) -> None:
        """Compile every program; otherwise the first text that needs one waits for it.

        It also sees which programs give the same bits: no other is used then. Without it, all are, which matters to
        nobody if the engine writes one text at a time and guesses nothing.
        """
        with jax.set_mesh(self.session.mesh):
            self._programs.compile(guesses=self.guesses is not None)
            if self.guesses is not None and self._programs.together:
                self.guesses.compile(*self._memory.sizes[0])
            elif self.guesses is not None:
                say("engine: nothing is guessed ahead: steps of several tokens would give other bits here")
                self.guesses = None

    def step(self) -> bool:
        """One turn; False if no text is left."""
        self._turn += 1
        self._forget_cancelled()
        with jax.set_mesh(self.session.mesh):
            self._admit()
            read = self._read_turn()
            if read is None or not self.reads_first:
                self._write_turn(read or ())
        with self._lock:
            return bool(self._texts)

    # Who has a row.

    def _forget_cancelled(self) -> None:
        with self._lock:
            for number in self._cancelled:
                if text := self._texts.pop(number, None):
                    if text.row is None:
                        self._waiting[text.request.client].remove(text)
                    else:
                        text.row.text = None
            self._cancelled.clear()

    def _admit(self) -> None:
        """Give rows to those who wait: clients take turns, each in the order in which it asked."""
        with self._lock:
            for client in list(self._waiting):
                queue = self._waiting[client]
                while queue and self._place(queue[0]):
                    queue.popleft()
                    self._waiting.move_to_end(client)
                    if len(self._waiting) > 1:
                        break
                if not queue:
                    del self._waiting[client]

    def _place(self, text: _Text) -> bool:
        """A free row that holds the prompt, the best one of the first band that has one."""
        ids = text.request.ids
        row = self._free_row(len(ids) + 1, lambda row: self._shared(row, text))
        if row is None:
            return False
        text.row, row.text, row.used = row, text, self._turn
        self._counts["prompt_tokens"] += len(ids)
        return True

    def _free_row(self, slots: int, worth: Callable[[_Row], int] = lambda row: 0) -> _Row | None:
        """In the first band of so many slots that has a free row, the one of the highest worth; of several, the one
        that holds nothing, or was used longest ago.
        """
        free = [row for row in self._rows if row.text is None and self._slots(row) >= slots]
        return max(free, key=lambda row: (-row.band, worth(row), not row.held, -row.used, -row.index), default=None)

    def _keep(self, row: _Row) -> None:
        """Copy what a row holds to one that is free and needed later."""
        later = [other for other in self._rows if other.band > row.band and self._slots(other) == self._slots(row)]
        if len(row.held) >= CHUNK and (free := [other for other in later if other.text is None]):
            to = min(free, key=lambda other: (bool(other.held), other.used))
            self._copy(row, to, len(row.held))
            to.held, to.held_for, to.used = row.held, row.held_for, row.used

    def _shared(self, row: _Row, text: _Text) -> int:
        """How many tokens of the prompt the row holds, as `_common` has them."""
        return _common(row.held, text) if row.held_for == text.longest else 0

    # Prompts.

    def _read_turn(self) -> list[_Text] | None:
        """Read some of the prompts at a desk, or the next layers of what is being read if this takes long and texts
        are written. The texts of which all is read now, or None if there is nothing to read.
        """
        if self._reading is None and not self._begin_reading():
            return None
        reading = self._reading
        parts = itertools.islice(reading.found, reading.parts if self._is_writing() else None)
        found = next(filter(None, parts), None)
        if found is None:
            return []
        self._reading = None
        return self._read(reading, *found)

    def _begin_reading(self) -> bool:
        """Choose what is read next; the desks take turns. False if there is nothing."""
        self._seat()
        taken = [n for n, seats in enumerate(self._desks) if any(seats)]
        if not taken:
            return False
        number = taken[self._readings % len(taken)]
        seats, desk = self._desks[number], self._memory.desks[number]
        count, pieces = self._count(seats), []
        for place, text in enumerate(seats):
            if text is not None:
                ids = text.request.ids
                starts = range(text.read, len(ids), SIZE)[: count - len(pieces)]
                pieces += [(text, Piece(place, start, ids[start : start + SIZE], text.longest)) for start in starts]
        seen = self._memory.seen(desk, max(piece.start + len(piece.ids) for _, piece in pieces))
        parts = max(1, len(self._memory.parts()) * MOST_SEEN // seen)
        found = self._memory.read(desk, [piece for _, piece in pieces], count, SIZE)
        self._reading, self._readings = _Reading(seats, desk, pieces, found, parts), self._readings + 1
        return True

    def _read(self, reading: _Reading, logits_CV: jax.Array, hidden_CTD: jax.Array) -> list[_Text]:
        """Tell what is known now that pieces are read, and bring texts of which all is read to their rows: these."""
        pieces = [(n, text, piece) for n, (text, piece) in enumerate(reading.pieces) if text.row.text is text]
        if any(text.request.told for _, text, _ in pieces):
            self._tell_prompts(hidden_CTD, pieces)
        ends: list[_Text | None] = [None] * len(logits_CV)
        for n, text, piece in pieces:
            text.read = piece.start + len(piece.ids)
            if text.is_read:
                ends[n], reading.seats[piece.row] = text, None
        if any(ends):
            self._choose(logits_CV, ends, [text and Next(text.request, ()) for text in ends])
        # After the first token is told, which need not wait for this.
        read = [(text, piece.row) for n, text, piece in pieces if text is ends[n]]
        for text, place in read:
            self._leave_desk(text, (reading.desk, place))
        return [text for text, _ in read]

    def _leave_desk(self, text: _Text, place: tuple[int, int]) -> None:
        """Bring a text that has been read to its row; what this one held goes to a free one if nothing is shared."""
        row = text.row
        if not self._shared(row, text):
            self._keep(row)
        self._memory.move((row.band, row.index), place, text.read)
        row.held, row.held_for = text.request.ids, text.longest

    def _seat(self) -> None:
        """Give the free seats to those who wait longest, unless another reads what they can copy when it is read."""
        for seats in self._desks:
            seats[:] = [text if text is not None and text.row.text is text else None for text in seats]
        seated = [text for seats in self._desks for text in seats if text is not None]
        unread = [row.text for row in self._rows if row.text is not None and not row.text.is_read]
        unread = sorted((text for text in unread if text not in seated), key=lambda text: text.number)
        free = [(desk, place) for desk, seats in enumerate(self._desks) for place, text in enumerate(seats) if not text]
        for text in unread:
            best = max(self._rows, key=lambda row: self._shared(row, text))
            shared = self._shared(best, text)
            awaited = (_common(other.request.ids, text) for other in seated if other.longest == text.longest)
            if free and max(awaited, default=0) <= shared:
                number, place = free.pop(0)
                self._memory.copy((self._memory.desks[number], place), (best.band, best.index), shared)
                self._counts["reused_tokens"] += shared
                text.read, self._desks[number][place] = shared, text
                seated.append(text)

    def _count(self, seats: Sequence[_Text | None]) -> int:
        """How many pieces are read in a turn; the fewest while texts are written."""
        few, *more = self._programs.pieces
        left = sum(-(-(len(text.request.ids) - text.read) // SIZE) for text in seats if text is not None)
        if self._is_writing():
            return few
        return max((count for count in more if 3 * count <= 4 * left), default=few)

    def _is_writing(self) -> bool:
        """Whether texts are written that should not wait for prompts."""
        return not self.reads_first and any(row.text is not None and row.text.is_read for row in self._rows)

    def _copy(self, of: _Row, to: _Row, tokens: int) -> None:
        self._memory.copy((to.band, to.index), (of.band, of.index), tokens)

    def _slots(self, row: _Row) -> int:
        return self._memory.sizes[row.band][1]

    def _tell_prompts(self, hidden_CTD: jax.Array, pieces: Sequence[tuple[int, _Text, Piece]]) -> None:
        """Tell the tokens that follow those of pieces, where a request asks for them."""
        after: list[tuple[int, ...]] = [()] * len(hidden_CTD)
        for n, text, piece in pieces:
            after[n] = text.request.ids[piece.start + 1 : piece.start + 1 + len(piece.ids)]
        choice = self._memory.told(hidden_CTD, after, MOST_TOP)
        for n, text, piece in pieces:
            first = len(text.request.ids) - text.request.told - 1  # the token before the first one that is told
            end = min(piece.start + len(piece.ids), len(text.request.ids) - 1)
            for place in range(max(first, piece.start), end):
                text.heard(_token(text.request, choice, (n, place - piece.start)))

    # New tokens.

    def _write_turn(self, read: Collection[_Text]) -> None:
        """Write the last token of each text that is read, and choose the next one.

        Args:
            read: those that were read in this turn. If a step is longer with them, they wait for the next turn: the
                others should not wait for both.
        """
        for row in self._rows:
            if row.text is not None and row.text.is_read and row.text.length > self._slots(row):
                self._move(row.text, row.text.length)
        self._close_ranks()
        texts = {n: row.text for n, row in enumerate(self._rows) if self._writes(row)}
        others = {n: text for n, text in texts.items() if text not in read}
        if others and self._step_of(others.values()) != self._step_of(texts.values()):
            texts = others
        if texts:
            ahead = self._guessed(texts) if self.guesses and not any(text.row.band for text in texts.values()) else {}
            if any(ahead.values()):
                longest = max(text.length + len(ahead.get(n, ())) for n, text in texts.items())
                self._write(texts, ahead, self._programs.first_band(longest), self._programs.together)
            else:
                self._write(texts, {}, self._step_of(texts.values()), 1)

    def _step_of(self, texts: Iterable[_Text]) -> Step:
        """The one that computes all the texts."""
        longest = [0] * len(self._memory.sizes)
        for text in texts:
            longest[text.row.band] = max(longest[text.row.band], text.length)
        return self._programs.step_of(longest)

    def _guessed(self, texts: Mapping[int, _Text]) -> dict[int, list[int]]:
        """Guesses of what follows in each text, no more than it has room for."""
        rows, slots = self._memory.sizes[0]
        for text in texts.values():
            text.guess_in = max(0, text.guess_in - 1)
        asked = {n: text for n, text in texts.items() if not (text.guess_in or text.request.allowed)}
        found = self.guesses.of({n: Next(text.request, tuple(text.new)) for n, text in asked.items()}, rows, slots)
        for n, ids in found.items():
            most = min(texts[n].request.tokens - len(texts[n].new) - 1, min(slots, self.longest) - texts[n].length)
            found[n] = ids[: max(0, min(most, MOST))]
        return found

    def _write(self, texts: Mapping[int, _Text], ahead: Mapping[int, list[int]], step: Step, count: int) -> None:
        """Write the last token of each text, and guesses of those that follow; `count` tokens of each."""
        rows = self._memory.rows(step)
        last, heard, asked = {}, [None] * (len(rows) * count), [None] * (len(rows) * count)
        for first, n in zip(range(0, len(heard), count), rows, strict=True):
            if text := texts.get(n):
                ids = [text.new[-1], *ahead.get(n, ())]
                last[n] = [Written(token, text.length - 1 + place, text.longest) for place, token in enumerate(ids)]
                for place in range(len(ids)):
                    heard[first + place] = text
                    asked[first + place] = Next(text.request, (*text.new, *ids[1 : place + 1]))
        before = {n: len(texts[n].new) for n in ahead}
        self._choose(self._memory.write(step, last, count), heard, asked)
        for n, ids in ahead.items():
            self._learn(texts[n], ids, len(texts[n].new) - before[n] - 1)

    def _learn(self, text: _Text, guessed: list[int], right: int) -> None:
        """Guess less often for a text whose guesses are wrong."""
        self._counts["guesses"] += len(guessed)
        self._counts["right_guesses"] += right
        if guessed:
            text.wrong = 0 if right else text.wrong + 1
            text.guess_in = min(PATIENCE, (1 << text.wrong) - 1)

    def _writes(self, row: _Row) -> bool:
        return row.text is not None and row.text.is_read and row.text.length <= self._slots(row)

    def _move(self, text: _Text, slots: int) -> None:
        """Give a text another row, of so many slots at least; it stays if none is free."""
        old, row = text.row, self._free_row(slots)
        if row is not None:
            self._copy(old, row, text.length)
            row.text, row.held, row.held_for, row.used = text, old.held, old.held_for, self._turn
            text.row, old.text = row, None

    def _close_ranks(self) -> None:
        """Move the texts of the last band that is in use to bands before it, if these have room for all of them."""
        last = max((row.band for row in self._rows if row.text is not None), default=0)
        texts = [row.text for row in self._rows if row.band == last and row.text is not None]
        most = max((text.length for text in texts), default=0)
        before = [row for row in self._rows if row.band < last and row.text is None and self._slots(row) > most]
        if last and all(text.is_read for text in texts) and len(texts) <= len(before):
            for text in texts:
                self._move(text, text.length + 1)

    def _choose(self, logits: jax.Array, heard: Sequence[_Text | None], asked: Sequence[Next | None]) -> None:
        """Choose a token for each text that asks, and tell it unless it follows a guess that was wrong."""
        choice = chosen(self.session.mesh, logits, asked)
        for n, (text, one) in enumerate(zip(heard, asked, strict=True)):
            if text is not None and text.row.text is text and tuple(text.new) == one.new:
                self._tell(text, choice, n)

    def _tell(self, text: _Text, choice: Choice, n: int) -> None:
        """Keep the token, free the row if it is the last one, and tell it."""
        request, token = text.request, int(choice.tokens[n])
        text.new.append(token)
        self._counts["new_tokens"] += 1
        full = len(text.new) == request.tokens or text.length == self.longest
        ends = "stop" if token in request.stop_ids else "length" if full else ""
        if ends:
            text.row.text = None
            with self._lock:
                self._texts.pop(text.number, None)
        text.heard(_token(request, choice, n, ends))


def _common(held: Sequence[int], text: _Text) -> int:
    """How many tokens of the text's prompt are as those that are held: whole chunks, and one token at least is left to
    read, and those that are told.
    """
    ids = text.request.ids
    most = min(len(ids) - 1 - text.request.told, len(held)) // CHUNK * CHUNK
    starts = range(0, most, CHUNK)
    return next((start for start in starts if held[start : start + CHUNK] != ids[start : start + CHUNK]), most)


def _token(request: Request, choice: Choice, n: int | tuple[int, int], ends: str = "") -> Token:
    """A token of a choice, as it is told."""
    pairs = zip(choice.top[n].tolist(), choice.top_log_probabilities[n].tolist(), strict=True)
    return Token(int(choice.tokens[n]), float(choice.log_probabilities[n]), tuple(pairs)[: request.top], ends)


def _longest(config: ModelConfig, tokens: int) -> int:
    """What rotations depend on: the length that a text may reach, or 0 where they do not depend on it."""
    return tokens if config.rope_scaling.kind in ("dynamic", "longrope") else 0
