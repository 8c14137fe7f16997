"""Many texts at once: each is read and continued as it comes, and ends without the others waiting (Yu et al. 2022).

A turn of the engine reads a few chunks of prompts, then writes one token to every text that has been read. So a long
prompt does not stop the others. A text's tokens do not depend on what is computed beside it: a prompt is read in chunks
that begin at multiples of `CHUNK`, and a step has only so many rows as were seen to give the same bits as all rows. (A
CPU multiplies few rows in another order, in float32 and with JAX 0.10.)

Shapes: B rows of all bands, C chunks of T tokens, V vocabulary.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from tpullm.errors import UserError
from tpullm.inference.padding import fits
from tpullm.inference.request import Request, Token
from tpullm.inference.row_memory import (
    CHUNK,
    Band,
    Choice,
    advance,
    bands,
    bytes_of_slot,
    copied,
    empty_band,
    pick,
    read,
    told,
)
from tpullm.inference.sampling_options import GREEDY
from tpullm.inference.session import Session
from tpullm.mesh.rows import fetch, put_whole, row_parts
from tpullm.recipe.schema import ModelConfig

ROWS = 32
FEW, MANY = 2, 8  # chunks that are read in a turn: while texts are written, and while none is
MOST_TOP = 20  # likeliest tokens that are told with each, as in OpenAI's interface

Heard = Callable[[Token], None]


@dataclass(eq=False)
class _Row:
    """A row of the memory: which one, the prompt tokens that it holds as they were read, and whose it is."""

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

    @property
    def length(self) -> int:
        return len(self.request.ids) + len(self.new)

    @property
    def is_read(self) -> bool:
        return self.read == len(self.request.ids)


_Chunk = tuple[_Text, int, tuple[int, ...]]  # of a prompt: whose, where it begins, its tokens


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
    """

    def __init__(self, session: Session, rows: int = ROWS, longest: int = 0, reads_first: bool = False):
        self.session, self.reads_first = session, reads_first
        self.longest = min(longest or session.context_length, session.context_length)
        parts = row_parts(session.mesh)
        self._few, self._many = (-(-count // parts) * parts for count in (FEW, MANY))
        self._sizes = bands(self.longest, rows, parts, groups=not reads_first)
        self._alike = list(range(1, len(self._sizes) + 1))  # numbers of bands whose steps give the same bits
        self._memory: dict[int, Band] = {}
        self._rows = [_Row(band, index) for band, (count, _) in enumerate(self._sizes) for index in range(count)]
        self._lock, self._number = threading.Lock(), 0
        self._waiting: OrderedDict[str, deque[_Text]] = OrderedDict()
        self._texts: dict[int, _Text] = {}  # that are waiting or have a row
        self._cancelled: set[int] = set()
        self._turn = 0
        self._counts = dict.fromkeys(("prompt_tokens", "reused_tokens", "new_tokens"), 0)

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
        """What the rows of all bands take. A band takes its part when it is first used."""
        with jax.set_mesh(self.session.mesh):
            each = bytes_of_slot(self.session.architecture, self.session.dtype)
        return each * sum(rows * slots for rows, slots in self._sizes)

    def compile(self) -> None:
        """Compile every program; otherwise the first text that needs one waits for it.

        It also sees which steps of few rows give the same bits as one of all rows: no other is used then. Without it,
        all are, which matters to nobody if the engine writes one text at a time.
        """
        one_of_each = [next(row for row in self._rows if row.band == band) for band in range(len(self._sizes))]
        tokens = np.random.default_rng(0).integers(self.session.tokenizer.vocabulary_size, size=len(self._rows))
        found = []
        with jax.set_mesh(self.session.mesh):
            for band, row in enumerate(one_of_each):
                read = [self._read(band, [], count) for count in {self._few, self._many}]
                for other in one_of_each:
                    self._copy(other, row)
                found.append(self._logits(band + 1, {n: (int(token), 0, 1) for n, token in enumerate(tokens)}))
                for logits in (*(logits for logits, _ in read), found[-1]):
                    nothing = np.zeros(logits.shape, np.float32)
                    for bias, top in ((None, 0), (nothing, MOST_TOP)):
                        self._picked(logits, [None] * len(logits), bias, top)
                for _, hidden in read:
                    self._told(hidden, [])
            logits_BV = [fetch(self.session.mesh, array) for array in found]
        self._alike = [n for n, own in enumerate(logits_BV, 1) if np.array_equal(own, logits_BV[-1][: len(own)])]

    def step(self) -> bool:
        """One turn; False if no text is left."""
        self._turn += 1
        self._forget_cancelled()
        with jax.set_mesh(self.session.mesh):
            self._admit()
            read = self._read_turn()
            if not (read and self.reads_first):
                self._write_turn()
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
        shared = self._shared(row, text)
        if not shared:
            self._keep(row)
        row.held, row.held_for = ids[:shared], text.longest
        text.row, text.read, row.text, row.used = row, shared, text, self._turn
        self._counts["prompt_tokens"] += len(ids)
        self._counts["reused_tokens"] += shared
        return True

    def _free_row(self, slots: int, worth: Callable[[_Row], int] = lambda row: 0) -> _Row | None:
        """In the first band of so many slots that has a free row, the one of the highest worth; of several, the one
        that holds nothing, or was used longest ago.
        """
        free = [row for row in self._rows if row.text is None and self._slots(row) >= slots]
        return max(free, key=lambda row: (-row.band, worth(row), not row.held, -row.used, -row.index), default=None)

    def _keep(self, row: _Row) -> None:
        """Copy what a row holds to one that is free and needed later, before it holds something else."""
        later = [other for other in self._rows if other.band > row.band and self._slots(other) == self._slots(row)]
        if len(row.held) >= CHUNK and (free := [other for other in later if other.text is None]):
            to = min(free, key=lambda other: (bool(other.held), other.used))
            self._copy(row, to)
            to.held, to.held_for, to.used = row.held, row.held_for, row.used

    def _shared(self, row: _Row, text: _Text) -> int:
        """How many tokens of the prompt the row holds: whole chunks, and one token at least is left to read, and those
        that are told.
        """
        ids = text.request.ids
        most = (len(ids) - 1 - text.request.told) // CHUNK * CHUNK
        if row.held_for != text.longest:
            return 0
        for start in range(0, min(most, len(row.held) // CHUNK * CHUNK), CHUNK):
            if row.held[start : start + CHUNK] != ids[start : start + CHUNK]:
                return start
        return min(most, len(row.held) // CHUNK * CHUNK)

    # Prompts.

    def _read_turn(self) -> bool:
        """Read some chunks, of those who wait longest; whether there were any."""
        unread = [row.text for row in self._rows if row.text is not None and not row.text.is_read]
        if not unread:
            return False
        unread.sort(key=lambda text: text.number)
        some_write = any(row.text is not None and row.text.is_read for row in self._rows)
        count = self._few if some_write and not self.reads_first else self._many
        band, chunks = unread[0].row.band, []
        for text in unread:
            if text.row.band == band and len(chunks) < count:
                self._reuse(text)
                ids, end = text.request.ids, text.read + CHUNK
                if end < len(ids) - text.request.told and any(
                    start < end and one.request.ids[:end] == ids[:end] for one, start, _ in chunks
                ):
                    continue  # another text reads what this one can copy in the next turn
                starts = range(text.read, len(ids), CHUNK)[: count - len(chunks)]
                chunks += [(text, start, ids[start : start + CHUNK]) for start in starts]
        count = self._few if len(chunks) <= self._few else count
        logits_CV, hidden_CTD = self._read(band, chunks, count)
        if any(text.request.told for text, _, _ in chunks):
            self._tell_prompts(hidden_CTD, chunks)
        ends: list[_Text | None] = [None] * count
        for n, (text, start, ids) in enumerate(chunks):
            text.read = start + len(ids)
            text.row.held = text.request.ids[: text.read]
            ends[n] = text if text.is_read else None
        if any(ends):
            self._choose(logits_CV, ends)
        return True

    def _reuse(self, text: _Text) -> None:
        """Copy what another row holds of the prompt, if that is more than has been read."""
        best = max(self._rows, key=lambda row: self._shared(row, text))
        shared = self._shared(best, text)
        if shared > text.read:
            self._copy(best, text.row)
            self._counts["reused_tokens"] += shared - text.read
            text.read, text.row.held = shared, text.request.ids[:shared]

    def _copy(self, of: _Row, to: _Row) -> None:
        source = None if of.band == to.band else self._band(of.band)
        numbers = (np.int32(row.index) for row in (to, of))
        self._memory[to.band] = copied(self._band(to.band), source, *numbers)

    def _band(self, number: int) -> Band:
        """A band, made when it is first used: long texts may never come."""
        if number not in self._memory:
            self._memory[number] = empty_band(self.session.architecture, *self._sizes[number], self.session.dtype)
        return self._memory[number]

    def _slots(self, row: _Row) -> int:
        return self._sizes[row.band][1]

    def _read(self, band: int, chunks: Sequence[_Chunk], count: int) -> tuple[jax.Array, jax.Array]:
        tokens = np.full((count, CHUNK), self.session.tokenizer.pad_id, np.int32)
        places = np.tile(np.array([self._sizes[band][0], 0, 1, 1], np.int32), (count, 1))
        for n, (text, start, ids) in enumerate(chunks):
            tokens[n, : len(ids)] = ids
            places[n] = text.row.index, start, len(ids), text.longest
        arguments = (self._band(band), self._put(tokens, "batch", "time"), self._put(places, "batch", None))
        logits_CV, hidden_CTD, self._memory[band] = read(*self._model(), *arguments, dtype=self.session.dtype)
        return logits_CV, hidden_CTD

    def _tell_prompts(self, hidden_CTD: jax.Array, chunks: Sequence[_Chunk]) -> None:
        """Tell the tokens that follow those of chunks, where a request asks for them."""
        choice = self._told(hidden_CTD, chunks)
        for n, (text, start, ids) in enumerate(chunks):
            first = len(text.request.ids) - text.request.told - 1  # the token before the first one that is told
            for place in range(max(first, start), min(start + len(ids), len(text.request.ids) - 1)):
                text.heard(_token(text.request, choice, (n, place - start)))

    def _told(self, hidden_CTD: jax.Array, chunks: Sequence[_Chunk]) -> Choice:
        tokens_CT = np.zeros(hidden_CTD.shape[:2], np.int32)
        for n, (text, start, ids) in enumerate(chunks):
            after = text.request.ids[start + 1 : start + 1 + len(ids)]
            tokens_CT[n, : len(after)] = after
        arguments = self.session.params, hidden_CTD, self._put(tokens_CT, "batch", "time")
        choice = told(self.session.architecture, *arguments, top=MOST_TOP)
        return Choice(*(fetch(self.session.mesh, array) for array in choice))

    # New tokens.

    def _write_turn(self) -> None:
        """Write the last token of each text that is read, and choose the next one."""
        for row in self._rows:
            if row.text is not None and row.text.is_read and row.text.length > self._slots(row):
                self._move(row.text, row.text.length)
        self._close_ranks()
        texts = {n: row.text for n, row in enumerate(self._rows) if self._writes(row)}
        if texts:
            highest = 1 + max(text.row.band for text in texts.values())
            used = next((n for n in self._alike if n >= highest), len(self._sizes))
            last = {n: (text.new[-1], text.length - 1, text.longest) for n, text in texts.items()}
            logits_BV = self._logits(used, last)
            self._choose(logits_BV, [texts.get(n) for n in range(len(logits_BV))])

    def _writes(self, row: _Row) -> bool:
        return row.text is not None and row.text.is_read and row.text.length <= self._slots(row)

    def _move(self, text: _Text, slots: int) -> None:
        """Give a text another row, of so many slots at least; it stays if none is free."""
        old, row = text.row, self._free_row(slots)
        if row is not None:
            self._copy(old, row)
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

    def _logits(self, used: int, last: Mapping[int, tuple[int, int, int]]) -> jax.Array:
        """The logits of the rows of the first `used` bands, `[B, V]`; `last`: of some rows, what `advance` asks."""
        tokens = np.array([(0, self._slots(row), 1) for row in self._rows if row.band < used], np.int32)
        for n, numbers in last.items():
            if n < len(tokens):
                tokens[n] = numbers
        memory = tuple(map(self._band, range(used)))
        logits_BV, memory = advance(*self._model(), memory, self._put(tokens, "batch", None), dtype=self.session.dtype)
        self._memory |= dict(enumerate(memory))
        return logits_BV

    def _choose(self, logits: jax.Array, texts: Sequence[_Text | None]) -> None:
        """Choose a token for each text that is given, and tell it."""
        asked = [text for text in texts if text is not None]
        bias, top = None, 0
        if any(text.request.is_biased or text.request.top for text in asked):
            bias, top = np.zeros(logits.shape, np.float32), MOST_TOP
            for n, text in enumerate(texts):
                if text is not None:
                    _add_bias(bias[n], text)
        choice = self._picked(logits, texts, bias, top)
        for n, text in enumerate(texts):
            if text is not None:
                self._tell(text, choice, n)

    def _picked(self, logits, texts: Sequence[_Text | None], bias: np.ndarray | None, top: int) -> Choice:
        rules, shares = np.zeros((len(texts), 3), np.int32), np.zeros((len(texts), 3), np.float32)
        for n, text in enumerate(texts):
            sampling = GREEDY if text is None else text.request.sampling
            shares[n] = sampling.temperature, sampling.top_p, sampling.min_p
            rules[n, 2] = sampling.top_k
            if text is not None:
                rules[n, :2] = np.uint32(text.request.seed).astype(np.int32), text.length
        arrays = (None if array is None else self._put(array, "batch", None) for array in (rules, shares, bias))
        choice = pick(logits, *arrays, top=top)
        return Choice(*(fetch(self.session.mesh, array) for array in choice))

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

    def _model(self) -> tuple:
        return self.session.architecture, self.session.params, self.session.layers

    def _put(self, array: np.ndarray, *dimensions: str | None) -> jax.Array:
        return put_whole(self.session.mesh, array, *dimensions)


def _token(request: Request, choice: Choice, n: int | tuple[int, int], ends: str = "") -> Token:
    """A token of a choice, as it is told."""
    pairs = zip(choice.top[n].tolist(), choice.top_log_probabilities[n].tolist(), strict=True)
    return Token(int(choice.tokens[n]), float(choice.log_probabilities[n]), tuple(pairs)[: request.top], ends)


def _longest(config: ModelConfig, tokens: int) -> int:
    """What rotations depend on: the length that a text may reach, or 0 where they do not depend on it."""
    return tokens if config.rope_scaling.kind in ("dynamic", "longrope") else 0


def _add_bias(bias_V: np.ndarray, text: _Text) -> None:
    request = text.request
    for token, value in request.bias.items():
        bias_V[token] += value
    if request.presence_penalty or request.frequency_penalty:
        for token, count in Counter(text.new).items():
            bias_V[token] -= request.presence_penalty + count * request.frequency_penalty
    if request.allowed is not None:
        allowed_V = request.allowed(tuple(text.new))
        bias_V[: len(allowed_V)][~allowed_V] = -np.inf
        bias_V[len(allowed_V) :] = -np.inf
