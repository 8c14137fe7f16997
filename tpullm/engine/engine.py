"""Many texts at once: each is read and continued as it comes, and ends without the others waiting (Yu et al. 2022).

A turn of the engine writes one token to every text that has been read, and reads some of a prompt. So a long prompt
does not stop the others. A text's tokens do not depend on what is computed beside it: a prompt is read in pieces that
begin at multiples of `CHUNK`, and only programs are used that were seen to give the same bits (`engine_programs.py`).

A turn dispatches its work, and the next turn fetches the result. Where it can, that turn first dispatches its own step,
so the device does not wait for the host: the tokens that this step needs and nobody has seen are still on the device.

Shapes: B rows of all bands, V vocabulary.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from tpullm.engine.engine_programs import Programs, Step
from tpullm.engine.guesses import MOST, Guesses
from tpullm.engine.next_tokens import MOST_TOP, Next, choose_next, fetched
from tpullm.engine.padding import fits
from tpullm.engine.prompt_reading import PromptReading, Read
from tpullm.engine.request import Request, Token
from tpullm.engine.row_memory import UNSEEN, Choice
from tpullm.engine.row_sizes import CHUNK
from tpullm.engine.session import Session
from tpullm.engine.text_memory import TWO_DESKS, Piece, TextMemory, Written
from tpullm.engine.text_rows import Text, TextRows
from tpullm.recipe.schema import ModelConfig
from tpullm.system.errors import UserError
from tpullm.system.log import say

ROWS = 32
# Texts at a desk if all are read before one is written. 12 M parameters, texts of 200 tokens: one after the other they
# were read in 108 turns of 27 ms, four together in 25 of 84.
SEATS = 4
PATIENCE = 16  # turns at most in which nothing is guessed for a text after guesses that were wrong


class _Unseen(NamedTuple):
    """A dispatched step whose tokens are not fetched: which one, and the next token of each of its rows."""

    step: Step
    tokens_B: jax.Array


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
        self._rows = TextRows(self._memory)
        self._prompts = PromptReading(self._memory, self._rows, waits=reads_first)
        self._lock, self._number = threading.Lock(), 0
        self._waiting: OrderedDict[str, deque[Text]] = OrderedDict()
        self._texts: dict[int, Text] = {}  # that are waiting or have a row
        self._cancelled: set[int] = set()
        self._begun: list[Iterator[None]] = []  # the parts of the last turn that are dispatched and not finished
        self._unseen: _Unseen | None = None
        self._counts = dict.fromkeys(("prompt_tokens", "new_tokens", "guesses", "right_guesses"), 0)

    def submit(self, request: Request, heard: Callable[[Token], None]) -> int:
        """Ask for a text; returns its number. `heard` gets each token, in the thread of `step`.

        Raises:
            UserError: the prompt does not fit.
        """
        ids = request.ids
        fits(self.session, list(ids), "prompt")
        if len(ids) >= self.longest:
            raise UserError(f"prompt: {len(ids)} tokens leave no room for an answer in {self.longest}; shorten it")
        most = min(len(ids) + request.tokens, self.longest)
        longest = _longest(self.session.architecture.config, most)
        with self._lock:
            self._number += 1
            text = Text(self._number, request, heard, longest, most)
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
            running = self._rows.texts()
        pages = sum(self._rows.slots(row) // CHUNK for row in self._rows.all)
        used = sum(-(-(text.read + len(text.new)) // CHUNK) for text in running)
        found = {"waiting": waiting, "running": len(running), "pages": pages, "pages_used": used}
        return found | self._counts | {"reused_tokens": self._prompts.reused_tokens}

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
        self._rows.turn += 1
        self._forget_cancelled()
        before, self._begun = self._begun, []
        with jax.set_mesh(self.session.mesh):
            ahead = self._begin_ahead()
            for turn in before:
                next(turn, None)
            self._admit()
            if not ahead:
                self._unseen = None
                if not self.reads_first or self._prompts.is_whole():
                    self._begin(self._write_turn())
            self._begin(self._read_turn())
        with self._lock:
            # Nobody needs what is dispatched, and a generator that has not ended would keep the engine's memory.
            if not self._texts:
                self._begun, self._unseen = [], None
            return bool(self._texts)

    # The parts of a turn are generators. Up to `yield` they dispatch what they compute; after it they wait for it.

    def _begin(self, turn: Iterator[None]) -> None:
        next(turn, None)
        self._begun.append(turn)

    def _begin_ahead(self) -> bool:
        """Dispatch the next step before the tokens of the last one are fetched. False if it depends on them, or needs
        another program or other rows.
        """
        if self._unseen is None or (self.reads_first and not self._prompts.is_whole()):
            return False
        texts = self._rows.written()
        if not texts or self._step_of(texts.values()) != self._unseen.step or self._guesses_for(texts):
            return False
        if self._rows.crowded() or self._rows.closing() or any(text.request.depends_on_new for text in texts.values()):
            return False
        self._begin(self._write(texts, {}, self._unseen.step, 1))
        return True

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
                while queue and self._rows.place(queue[0]):
                    self._counts["prompt_tokens"] += len(queue.popleft().request.ids)
                    self._waiting.move_to_end(client)
                    if len(self._waiting) > 1:
                        break
                if not queue:
                    del self._waiting[client]

    # Prompts.

    def _read_turn(self) -> Iterator[None]:
        """Read some of the prompts; tell what is known by that, and the first new token where a prompt is whole."""
        read = self._prompts.read(self._programs.pieces)
        if not isinstance(read, Read):
            yield
            if read is not None:  # else parts of several turns would queue, and the next step would wait for all
                read.block_until_ready()
            return
        ends = read.ends()
        choosing = self._choose(read.logits_CV, ends, [text and Next(text.request, ()) for text in ends])
        next(choosing, None)
        yield
        told = [(n, text, piece) for n, text, piece in read.pieces if text.request.told and text.row.text is text]
        if told:
            self._tell_prompts(read.hidden_CTD, told)
        next(choosing, None)
        self._prompts.leave(read)  # the first token need not wait for this

    def _tell_prompts(self, hidden_CTD: jax.Array, pieces: Sequence[tuple[int, Text, Piece]]) -> None:
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

    def _write_turn(self) -> Iterator[None]:
        """Write the last token of each text that is read, and choose the next one."""
        self._rows.move(self._rows.crowded())
        self._rows.move(self._rows.closing(), room=1)
        if texts := self._rows.written():
            ahead = self._guessed(texts) if self._guesses_for(texts) else {}
            if any(ahead.values()):
                longest = max(text.length + len(ahead.get(n, ())) for n, text in texts.items())
                yield from self._write(texts, ahead, self._programs.first_band(longest), self._programs.together)
            else:
                yield from self._write(texts, {}, self._step_of(texts.values()), 1)

    def _step_of(self, texts: Iterable[Text]) -> Step:
        """The one that computes all the texts."""
        longest = [0] * len(self._memory.sizes)
        for text in texts:
            longest[text.row.band] = max(longest[text.row.band], text.length)
        return self._programs.step_of(longest)

    def _guesses_for(self, texts: Mapping[int, Text]) -> bool:
        """Whether guesses are checked for so few texts."""
        return self.guesses is not None and not any(text.row.band for text in texts.values())

    def _guessed(self, texts: Mapping[int, Text]) -> dict[int, list[int]]:
        """Guesses of what follows in each text, no more than it has room for."""
        rows, slots = self._memory.sizes[0]
        for text in texts.values():
            text.guess_in = max(0, text.guess_in - 1)
        asked = {n: text for n, text in texts.items() if not (text.guess_in or text.request.allowed)}
        found = self.guesses.of({n: Next(text.request, tuple(text.new)) for n, text in asked.items()}, rows, slots)
        for n, ids in found.items():
            most = min(texts[n].most - 1, slots) - texts[n].length
            found[n] = ids[: max(0, min(most, MOST))]
        return found

    def _write(
        self, texts: Mapping[int, Text], ahead: Mapping[int, list[int]], step: Step, count: int
    ) -> Iterator[None]:
        """Write the last token of each text, and guesses of those that follow; `count` tokens of each."""
        rows = self._memory.rows(step)
        last, heard, asked = {}, [None] * (len(rows) * count), [None] * (len(rows) * count)
        for first, n in zip(range(0, len(heard), count), rows, strict=True):
            if text := texts.get(n):
                ids = [UNSEEN if text.unseen else text.new[-1], *ahead.get(n, ())]
                last[n] = [Written(token, text.length - 1 + place, text.longest) for place, token in enumerate(ids)]
                for place in range(len(ids)):
                    heard[first + place] = text
                    asked[first + place] = Next(text.request, (*text.new, *ids[1 : place + 1]), text.unseen)
        logits = self._memory.write(step, last, count, self._unseen and self._unseen.tokens_B)
        choosing, before = self._choose(logits, heard, asked), {n: len(texts[n].new) for n in ahead}
        tokens_B = next(choosing)
        self._unseen = _Unseen(step, tokens_B) if count == 1 else None
        for text in texts.values():
            text.unseen += 1
        yield
        for text in texts.values():
            text.unseen -= 1
        next(choosing, None)
        for n, ids in ahead.items():
            if right := len(texts[n].new) - before[n]:  # else it was cancelled
                self._learn(texts[n], ids, right - 1)

    def _learn(self, text: Text, guessed: list[int], right: int) -> None:
        """Guess less often for a text whose guesses are wrong."""
        self._counts["guesses"] += len(guessed)
        self._counts["right_guesses"] += right
        if guessed:
            text.wrong = 0 if right else text.wrong + 1
            text.guess_in = min(PATIENCE, (1 << text.wrong) - 1)

    def _choose(
        self, logits: jax.Array, heard: Sequence[Text | None], asked: Sequence[Next | None]
    ) -> Iterator[jax.Array]:
        """Choose a token for each text that asks, `[B]`; tell those of texts that go on, up to a wrong guess."""
        if not any(asked):
            return
        found = choose_next(self.session.mesh, logits, asked)
        yield found.tokens
        found = fetched(self.session.mesh, found)
        for n, (text, one) in enumerate(zip(heard, asked, strict=True)):
            if text is not None and text.row.text is text and one.follows(text.new):
                self._tell(text, found, n)

    def _tell(self, text: Text, choice: Choice, n: int) -> None:
        """Keep the token, free the row if it is the last one, and tell it."""
        request, token = text.request, int(choice.tokens[n])
        text.new.append(token)
        self._counts["new_tokens"] += 1
        ends = "stop" if token in request.stop_ids else "length" if text.is_full else ""
        if ends:
            text.row.text = None
            with self._lock:
                self._texts.pop(text.number, None)
        text.heard(_token(request, choice, n, ends))


def _token(request: Request, choice: Choice, n: int | tuple[int, int], ends: str = "") -> Token:
    """A token of a choice, as it is told."""
    pairs = zip(choice.top[n].tolist(), choice.top_log_probabilities[n].tolist(), strict=True)
    return Token(int(choice.tokens[n]), float(choice.log_probabilities[n]), tuple(pairs)[: request.top], ends)


def _longest(config: ModelConfig, tokens: int) -> int:
    """What rotations depend on: the length that a text may reach, or 0 where they do not depend on it."""
    return tokens if config.rope_scaling.kind in ("dynamic", "longrope") else 0
