"""The scheduler: many texts at once, each read and continued as it comes and ended without the others (Yu et al. 2022).

A step of the engine writes one token to every text that has been read, and reads some of a prompt. So a long prompt
does not stop the others.

A step dispatches its work, and the next one fetches the result. Where it can, that one first dispatches its own work,
so the device does not wait for the host: the tokens that it needs and nobody has seen are still on the device.

Programs of few rows and of many sum in another order, so the last bits of a text depend on what is written beside it.
`reproducible` computes all rows in each step and as many pieces in each prefill: a text has the same bits alone and
among others. 12 M parameters on two cores: a step of 32 rows takes 19 ms, one of two rows 12.

Shapes: B rows of all groups, V vocabulary.
"""

import itertools
import operator
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from tpullm.engine.cache import (
    CHUNK,
    SIZE,
    Cache,
    Piece,
    ShapesOnly,
    Step,
    Written,
    cache_group_sizes,
    cache_slot_bytes,
    row_block_sizes,
    split_group_steps,
    whole_group_steps,
)
from tpullm.engine.forward import UNSEEN
from tpullm.engine.guesses import MOST, Draft, Lookup
from tpullm.engine.prefill import Prefill, Read
from tpullm.engine.programs import Programs, of_weak, only_compile
from tpullm.engine.request import Request, Token
from tpullm.engine.rows import Rows, Text
from tpullm.engine.sampling import LIKELIEST, MOST_TOP, SAMPLED, Next, choose_next, fetched_choice, form_of
from tpullm.engine.session import Session, check_context
from tpullm.model.mesh import named_sharding
from tpullm.model.rows import fetch_whole, row_parts
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say

ROWS = 32
# Prompt chunks per step. Offline batches compile only the largest size: seven empty chunks take less time than the
# programs for fewer take to compile.
PIECES = (1, 2, 8)
# Texts that are read together if all are read before one is written. 12 M parameters, texts of 200 tokens: one after
# the other they were read in 108 steps of 27 ms, four together in 25 of 84.
PREFILL_SLOTS = 4
BACKOFF = 16  # steps at most in which nothing is guessed for a text after guesses that were wrong
RECENT = 10_000  # steps for which a client is remembered after it asked
# Of several clients each has at most so many times the rows that are free (Choudhury and Hahne 1998): one has a fifth
# of them, four together a half. A step takes as long as its rows: with 8 in place of 1/4, 32 answers of a client took
# 28 rows of 32, and another one waited for 3.0 s in place of 1.9.
OF_FREE = 1 / 4
SOON = 64  # tokens before a text needs another program, this begins to be compiled
SAMPLES = 32  # tokens that each row is given, to see whether its bits are those of the others


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
        reproducible: compute all rows in each step and as many pieces in each prefill, and guess nothing.
    """

    def __init__(
        self,
        session: Session,
        rows: int = ROWS,
        longest: int = 0,
        reads_first: bool = False,
        guesses: Lookup | Draft | None = None,
        reproducible: bool = False,
    ):
        self.session, self.reads_first, self.reproducible = session, reads_first, reproducible
        self.guesses = None if reproducible else guesses
        self.longest = min(longest or session.context_length, session.context_length)
        parts = row_parts(session.mesh)
        sizes = cache_group_sizes(self.longest, rows, parts, not reads_first, cache_slot_bytes(session))
        prefill = [(parts * min(PREFILL_SLOTS, rows), sizes[-1][1])] if reads_first else [(parts, sizes[-1][1])] * 2
        every = [*sizes, *prefill]
        blocks = [row_block_sizes(slots, equal=reads_first) for _, slots in every]
        self._cache, self._shapes = Cache(session, every, blocks), ShapesOnly(session, every, blocks)
        self.programs = Programs(of_weak(self._compile))
        self._groups, ends = len(sizes), self._cache.ends(len(sizes))
        whole = PIECES[-1:] if reads_first else PIECES[1:2] if reproducible else PIECES
        self._pieces = [-(-count // parts) * parts for count in whole]
        self._steps = whole_group_steps(sizes, ends) if reads_first else split_group_steps(sizes)
        if reproducible:
            self._steps = [tuple(min(end, slots) for _, slots in sizes) for end in ends]
        self._every_row = next(step for step in self._steps if all(step))  # with the fewest slots
        self._rows = Rows(self._cache, len(sizes))
        prefill_groups = range(len(sizes), len(every))
        self._prefill = Prefill(self._cache, self._rows, prefill_groups, reads_first, of_weak(self._can_read))
        self._lock, self._number = threading.Lock(), 0
        self._waiting: OrderedDict[str, deque[Text]] = OrderedDict()
        self._texts: dict[int, Text] = {}  # that are waiting or have a row
        self._cancelled: set[int] = set()
        self._asked: OrderedDict[str, int] = OrderedDict()  # the step in which each recent client asked last
        self._begun: list[Iterator[None]] = []  # the parts of the last step that are dispatched and not finished
        # A dispatched step whose tokens are not fetched, and the next token of each of its rows.
        self._unseen: tuple[Step, jax.Array] | None = None
        self._counts = dict.fromkeys(("prompt_tokens", "new_tokens", "guesses", "right_guesses"), 0)

    def submit(self, request: Request, on_token: Callable[[Token], None]) -> int:
        """Ask for a text; returns its number. `on_token` gets each token, in the thread of `step`.

        Raises:
            UserError: the prompt does not fit.
        """
        ids = request.ids
        check_context(self.session, list(ids), "prompt")
        if len(ids) >= self.longest:
            raise UserError(f"prompt: {len(ids)} tokens leave no room for an answer in {self.longest}; shorten it")
        most = min(len(ids) + request.tokens, self.longest)
        with self._lock:
            self._number += 1
            text = Text(self._number, request, on_token, rotation_length(self.session, most), most)
            self._texts[text.number] = text
            self._waiting.setdefault(request.client, deque()).append(text)
            self._asked[request.client] = self._rows.step
            self._asked.move_to_end(request.client)
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
        return found | self._counts | {"reused_tokens": self._prefill.reused_tokens}

    def memory_bytes(self) -> int:
        """What the rows of all groups take."""
        return self._cache.bytes()

    def late(self) -> set[int]:
        """The texts that the next step leaves out, by their numbers: others would wait for the mask of their token."""
        found = {text.number: text for text in self._rows.texts() if (of := text.request.allowed) and of.is_slow()}
        # Before its last token is fetched, nobody knows which mask a text needs.
        known = {number: tuple(text.new) for number, text in found.items() if text.new and not text.unseen}
        return {n for n, text in found.items() if n not in known or not text.request.allowed.is_ready(known[n])}

    def step(self, late: Collection[int] | None = None) -> bool:
        """One step; False if no text is left.

        Args:
            late: the texts to leave out; None asks `late`. The hosts must agree on them.
        """
        self._rows.step += 1
        self._forget_cancelled()
        late, texts = self.late() if late is None else late, self._rows.texts()
        for text in texts:
            text.is_late = text.number in late
        before, self._begun, self._dispatched = self._begun, [], False
        with jax.set_mesh(self.session.mesh):
            ahead = self._begin_ahead()
            for part in before:
                next(part, None)
            self._admit()
            if not ahead:
                self._unseen = None
                if not self.reads_first or self._prefill.is_whole():
                    self._begin(self._write_step())
            self._begin(self._read_step())
        if texts and not self._dispatched:
            time.sleep(0.001)  # masks or programs are being made, and asking again at once would take a processor
        with self._lock:
            # Nobody needs what is dispatched, and a generator that has not ended would keep the engine's memory.
            if not self._texts:
                self._begun, self._unseen = [], None
            return bool(self._texts)

    # The parts of a step are generators. Up to `yield` they dispatch what they compute; after it they wait for it.

    def _begin(self, part: Iterator[None]) -> None:
        next(part, None)
        self._begun.append(part)

    def _begin_ahead(self) -> bool:
        """Dispatch the next step before the tokens of the last one are fetched. False if it depends on them, or needs
        another program or other rows.
        """
        if self._unseen is None or (self.reads_first and not self._prefill.is_whole()):
            return False
        texts = self._rows.written()
        if not texts or self._step_of(texts) != (self._unseen[0], texts) or self._guesses_for(texts):
            return False
        if self._rows.crowded() or self._rows.closing() or any(text.request.depends_on_new for text in texts.values()):
            return False
        self._begin(self._write(texts, {}, self._unseen[0], 1))
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
        """Give rows to those who wait: clients take turns, each in the order in which it asked, but for texts whose
        programs are being compiled.
        """
        with self._lock:
            while self._asked and next(iter(self._asked.values())) < self._rows.step - RECENT:
                self._asked.popitem(last=False)
            for client in list(self._waiting):
                queue = self._waiting[client]
                while text := next(filter(self._is_ready, queue), None):
                    if not (self._may_have_row(text) and self._rows.place(text)):
                        break
                    queue.remove(text)
                    self._counts["prompt_tokens"] += len(text.request.ids)
                    self._waiting.move_to_end(client)
                    if len(self._waiting) > 1:
                        break
                if not queue:
                    del self._waiting[client]

    def _is_ready(self, text: Text) -> bool:
        """Whether programs are compiled that read its prompt and write its first tokens; if not, this begins to compile
        them. A text that had a row and a prefill slot meanwhile would keep others waiting.
        """
        is_written = self.programs.have(*self._keys_of(self._every_row, [text]), first=True)
        return self._prefill.can_read(text, self._pieces) and is_written

    def _may_have_row(self, text: Text) -> bool:
        """Whether its client leaves enough of the rows with room for it; the last one is for who has none."""
        fit = [row.text for row in self._rows.all if self._rows.slots(row) > len(text.request.ids)]
        free = fit.count(None)
        own = sum(other is not None and other.request.client == text.request.client for other in fit)
        return len(self._asked) < 2 or own == 0 or (free > 1 and own < OF_FREE * free)

    # Prompts.

    def _read_step(self) -> Iterator[None]:
        """Read some of the prompts; emit what is echoed of them, and the first new token where a prompt is whole."""
        read = self._prefill.read(self._pieces)
        self._dispatched |= read is not None
        if not isinstance(read, Read):
            yield
            if read is not None:  # else parts of several steps would queue, and the next step would wait for all
                read.block_until_ready()
            return
        asked = [[text and Next(text.request, ()) for text in owners] for owners in read.firsts()]
        choosing = [self._choose(read.logits_CV, *of) for of in zip(read.firsts(), asked, strict=True)]
        for one in choosing:
            next(one, None)
        yield
        echoed = [(n, text, piece) for n, text, piece in read.pieces if text.request.echo and text.row.text is text]
        if echoed:
            after: list[tuple[int, ...]] = [()] * len(read.hidden_CTD)
            for n, text, piece in echoed:
                after[n] = text.request.ids[piece.start + 1 : piece.start + 1 + len(piece.ids)]
            choice = fetched_choice(self.session.mesh, self._cache.given(read.hidden_CTD, after, MOST_TOP))
        for n, text, piece in echoed:
            first = len(text.request.ids) - text.request.echo - 1  # the token before the first one that is echoed
            end = min(piece.start + len(piece.ids), len(text.request.ids) - 1)
            for place in range(max(first, piece.start), end):
                text.on_token(choice.token((n, place - piece.start), text.request))
        for one in choosing:
            next(one, None)
        self._prefill.leave(read)  # the first token need not wait for this

    # New tokens.

    def _write_step(self) -> Iterator[None]:
        """Write the last token of each text that is read, and choose the next one."""
        self._rows.move(self._rows.crowded())
        self._rows.move(self._rows.closing(), room=1)
        if texts := self._rows.written():
            ahead = self._guessed(texts) if self._guesses_for(texts) else {}
            step = self._first_group(max(text.length + len(ahead.get(n, ())) for n, text in texts.items()))
            if any(ahead.values()) and self.programs.have(*self._keys_of(step, texts.values(), MOST + 1)):
                return (yield from self._write(texts, ahead, step, MOST + 1))
            step, texts = self._step_of(texts)
            if texts:
                yield from self._write(texts, {}, step, 1)

    def _step_of(self, texts: dict[int, Text]) -> tuple[Step, dict[int, Text]]:
        """The step of the fewest slots that computes all the texts, and these. Until it is compiled, a step whose texts
        have waited longest together, and those: so none waits because others are many.
        """
        wanted = self._smallest_step(texts.values())
        self.programs.have(*self._keys_of(self._smallest_step(texts.values(), SOON), texts.values()))
        if self.programs.have(*self._keys_of(wanted, texts.values())):
            return wanted, texts
        found = []
        for step in self._steps:
            fit = {n: text for n, text in texts.items() if text.length <= step[text.row.group]}
            own = {n: text for n, text in fit.items() if self.programs.have(*self._keys_of(step, [text]), begin=False)}
            found.append((step, own))
        waited = lambda texts: sum(self._rows.step + 1 - text.written for text in texts.values())  # noqa: E731
        return max(found, key=lambda one: (waited(one[1]), -self._cache.cost(one[0])))

    def _smallest_step(self, texts: Iterable[Text], more: int = 0) -> Step:
        """The step of the fewest slots that computes all the texts, if each has so many tokens more."""
        longest = [0] * self._groups
        for text in texts:
            length = min(text.length + more, self._cache.sizes[text.row.group][1])
            longest[text.row.group] = max(longest[text.row.group], length)
        return min((step for step in self._steps if all(map(operator.ge, step, longest))), key=self._cache.cost)

    def _first_group(self, longest: int) -> Step:
        """A step of it alone."""
        return (self._cache.attended(0, longest), *[0] * (self._groups - 1))

    def _guesses_for(self, texts: Mapping[int, Text]) -> bool:
        """Whether guesses are checked for so few texts."""
        return self.guesses is not None and not any(text.row.group for text in texts.values())

    def _guessed(self, texts: Mapping[int, Text]) -> dict[int, list[int]]:
        """Guesses of what follows in each text, no more than it has room for."""
        rows, slots = self._cache.sizes[0]
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
        """Compute `count` tokens of each text: its last one, then guesses of the next ones."""
        rows, self._dispatched = self._cache.rows(step), True
        last, owners, asked = {}, [None] * (len(rows) * count), [None] * (len(rows) * count)
        for first, n in zip(range(0, len(owners), count), rows, strict=True):
            if text := texts.get(n):
                ids = [UNSEEN if text.unseen else text.new[-1], *ahead.get(n, ())]
                last[n] = [Written(token, text.length - 1 + place, text.longest) for place, token in enumerate(ids)]
                for place in range(len(ids)):
                    owners[first + place] = text
                    asked[first + place] = Next(text.request, (*text.new, *ids[1 : place + 1]), text.unseen)
        logits = self._cache.write(step, last, count, self._unseen and self._unseen[1])
        choosing, before = self._choose(logits, owners, asked), {n: len(texts[n].new) for n in ahead}
        tokens_B = next(choosing)
        self._unseen = (step, tokens_B) if count == 1 else None
        for text in texts.values():
            text.unseen += 1
            text.written = self._rows.step
        yield
        for text in texts.values():
            text.unseen -= 1
        next(choosing, None)
        for n, ids in ahead.items():
            text = texts[n]
            if ids and (right := len(text.new) - before[n]):  # else it was cancelled
                self._counts["guesses"] += len(ids)
                self._counts["right_guesses"] += right - 1
                text.wrong = 0 if right > 1 else text.wrong + 1
                text.guess_in = min(BACKOFF, (1 << text.wrong) - 1)

    def _choose(
        self, logits: jax.Array, owners: Sequence[Text | None], asked: Sequence[Next | None]
    ) -> Iterator[jax.Array]:
        """Choose a token for each text that asks, `[B]`. Of texts that go on, up to a wrong guess: keep the token, free
        the row if it is the last one, and emit it.
        """
        if not any(asked):
            return
        found = choose_next(self.session.mesh, logits, asked)
        yield found.tokens
        found = fetched_choice(self.session.mesh, found)
        for n, (text, one) in enumerate(zip(owners, asked, strict=True)):
            if text is None or text.row.text is not text or not one.follows(text.new):
                continue
            request, token = text.request, int(found.tokens[n])
            text.new.append(token)
            self._counts["new_tokens"] += 1
            is_full = len(request.ids) + len(text.new) >= text.most
            ends = "stop" if token in request.stop_ids else "length" if is_full else ""
            if ends:
                text.row.text = None
                with self._lock:
                    self._texts.pop(text.number, None)
            text.on_token(found.token(n, request, ends))

    # Programs. Their keys: what they do, and their sizes.

    def _keys_of(self, step: Step, texts: Iterable[Text], count: int = 1) -> list[tuple]:
        """The programs that write `count` tokens to texts."""
        rows = count * len(self._cache.rows(step))
        return [("write", step, count), ("choose", rows, max(form_of(text.request) for text in texts))]

    def _can_read(self, count: int, end: int, texts: Sequence[Text], begin: bool, first: bool = False) -> bool:
        """Whether what reads so many pieces, up to some slot, and chooses the first tokens is compiled."""
        keys = [("read", count, end), ("choose", max(2, count), max(form_of(text.request) for text in texts))]
        keys += [("tell", count)] if any(text.request.echo for text in texts) else []
        return self.programs.have(*keys, begin=begin, first=first)

    def _compile(self, key: tuple) -> None:
        """Compile what a key means."""
        mesh, V = self.session.mesh, self.session.architecture.config.vocabulary_size
        with jax.set_mesh(mesh):
            match key:
                case "read", count, end:
                    _ = [*self._shapes.read(self._groups, [], count, end=end)]
                case "tell", count:
                    *_, (_, hidden_CTD) = self._shapes.read(self._groups, [], count)
                    self._shapes.given(hidden_CTD, [], MOST_TOP)
                case "copy", to, of:
                    self._shapes.copy((to, 0), (of, 0), self._cache.sizes[to][1])
                case "write", step, count:
                    self._shapes.write(step, {}, count)
                case "choose", rows, form:
                    sharding = named_sharding(mesh, "batch", "vocabulary")
                    logits = jax.ShapeDtypeStruct((rows, V), jnp.float32, sharding=sharding)
                    choose_next(mesh, logits, [None] * rows, form, only_compile)

    def compile(self) -> None:
        """Compile what most texts need first: a step of few rows and one of all as far as `FEW` slots, few pieces of a
        prompt and many. On one host a thread compiles the others when they are needed. Several hosts must call the same
        programs, so there a step waits for what it needs.
        """
        ends = self._cache.ends(self._groups)
        steps = [self._steps[0], self._every_row]
        counts = [self._pieces[0], self._pieces[-1]]
        rows = [max(2, count) for count in counts] + [len(self._cache.rows(step)) for step in steps]
        keys = [("read", count, end) for count, end in zip(counts, [ends[0], ends[:2][-1]], strict=True)]
        keys += [("write", step, 1) for step in steps] + [("copy", 0, self._groups)]
        keys += [("choose", count, form) for count in rows for form in (LIKELIEST, SAMPLED)]
        self.programs.compile(list(dict.fromkeys(keys)))
        if self.guesses is not None:
            self.guesses.compile(*self._cache.sizes[0])
        with jax.set_mesh(self.session.mesh):
            alike = not self.reproducible or self._rows_are_alike()
        if not alike:
            say("engine: rows give other bits here than others do: a text may depend on what is written beside it")
        if hosts.count() == 1:
            self.programs.compile_in_thread()
            # Begun at once, since texts do not wait for these but whole steps: 12 M parameters, one step took 4 s.
            self.programs.have(*(("copy", to, of) for to, of in itertools.permutations(range(self._groups + 1), 2)))

    def _rows_are_alike(self) -> bool:
        """Whether all rows have the same logits after the same tokens.

        In bfloat16 another order of a sum is seen in one of ten tokens; hence many.
        """
        cache, step, ids = self._cache, self._steps[-1], range(1, SIZE + 1)
        *_, _ = cache.read(self._groups, [Piece(0, 0, tuple(ids)[: cache.sizes[0][1] - 1], 1)], self._pieces[0])
        held = min(len(ids), cache.sizes[0][1] - 1)
        for group, (rows, _) in enumerate(cache.sizes[: self._groups]):
            for row in range(rows):
                cache.copy((group, row), (self._groups, 0), held)
        found: dict[int, bytes] = {}
        for first in range(SAMPLES):
            tokens = {row: [Written((row + first) % SAMPLES, held, 1)] for row in cache.rows(step)}
            logits_BV = fetch_whole(self.session.mesh, cache.write(step, tokens))
            for row, (written,) in tokens.items():
                if found.setdefault(written.token, logits_BV[row].tobytes()) != logits_BV[row].tobytes():
                    return False
        return True


def rotation_length(session: Session, tokens: int) -> int:
    """What rotations depend on: the length that a text may reach, or 0 where they do not depend on it."""
    return tokens if session.architecture.config.rope_scaling.kind in ("dynamic", "longrope") else 0
