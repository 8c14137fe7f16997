"""An engine that needs no model: the next token depends on the last one, by a random table, or is prescribed.

It has the methods of `tpullm.engine.engine.Engine`. A prompt that holds `⟦text⟧` is answered with this text.
"""

import re
import threading
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from tpullm.engine.request import Request, Token
from tpullm.system.errors import UserError

SPARE = 32  # rows of the embedding that stand for no token, as published models have them


def session_of(tokenizer, context_length: int = 1024, talks: bool = True) -> SimpleNamespace:
    """What the server reads of a `Session`."""
    architecture = SimpleNamespace(config=SimpleNamespace(vocabulary_size=tokenizer.vocabulary_size + SPARE))
    return SimpleNamespace(tokenizer=tokenizer, context_length=context_length, talks=talks, architecture=architecture)


class StandIn:
    """An engine. If `turns` is a semaphore, a step waits for it; `cancelled` are requests that ran then."""

    def __init__(self, session, rows: int = 8, longest: int = 0, guesses=None, reproducible: bool = False):
        self.guesses, self.reproducible = guesses, reproducible
        self.longest = longest or session.context_length
        self.session, self._rows, self._lock = session, rows, threading.Lock()
        size = session.architecture.config.vocabulary_size
        self._table_VV = np.random.default_rng(0).normal(0, 2, (size, size))
        self._table_VV[:, -SPARE:] = -30
        self._running: dict[int, SimpleNamespace] = {}
        self._count = self._written = 0
        self.turns: threading.Semaphore | None = None
        self.cancelled: set[int] = set()
        self.compiled = False

    def memory_bytes(self) -> int:
        return 1 << 30

    def compile(self) -> None:
        self.compiled = True

    def submit(self, request: Request, heard: Callable[[Token], None]) -> int:
        if len(request.ids) >= self.longest:
            raise UserError("the prompt does not fit")
        said = re.findall("⟦(.*?)⟧", self.session.tokenizer.decode(request.ids), re.DOTALL)
        script = [*self.session.tokenizer.encode(said[-1]), request.stop_ids[0]] if said else []
        with self._lock:
            self._count += 1
            rng = np.random.default_rng(request.seed)
            self._running[self._count] = SimpleNamespace(request=request, heard=heard, script=script, new=[], rng=rng)
            return self._count

    def cancel(self, number: int) -> None:
        with self._lock:
            if self._running.pop(number, None):
                self.cancelled.add(number)

    def late(self) -> set[int]:
        return set()

    def step(self, late=()) -> bool:
        if self._running and self.turns:
            self.turns.acquire()
        with self._lock:
            rows = [(n, row) for n, row in self._running.items() if n not in late][: self._rows]
        for number, row in rows:
            for token in [] if row.new else self._told(row.request):
                row.heard(token)
            token = self._next(row)
            with self._lock:
                if number not in self._running:
                    continue
                if token.ends:
                    del self._running[number]
            row.heard(token)
        return bool(self._running)

    def _next(self, row: SimpleNamespace) -> Token:
        request = row.request
        ids = [*request.ids, *row.new]
        logits_V = self._table_VV[ids[-1]].copy()
        for token, value in request.bias.items():
            logits_V[token] += value
        for written in row.new:
            logits_V[written] -= request.frequency_penalty
        for written in set(row.new):
            logits_V[written] -= request.presence_penalty
        if request.allowed:
            logits_V[~request.allowed(tuple(row.new))] = -np.inf
        token = row.script[len(row.new)] if row.script else self._choose(logits_V, request.sampling, row.rng)
        row.new.append(token)
        self._written += 1
        is_full = len(row.new) >= request.tokens or len(ids) + 1 >= self.longest
        ends = "stop" if token in request.stop_ids else "length" if is_full else ""
        return self._token(token, self._table_VV[ids[-1]], request.top, ends)

    def _told(self, request: Request) -> list[Token]:
        """The tokens of the prompt that are echoed."""
        told, before = (request.ids[len(request.ids) - request.echo - n :][: request.echo] for n in (0, 1))
        pairs = zip(told, before, strict=True)
        return [self._token(token, self._table_VV[one], request.top, "") for token, one in pairs]

    def _token(self, token: int, logits_V, top: int, ends: str) -> Token:
        log_probabilities_V = logits_V - np.logaddexp.reduce(logits_V)
        best = np.argsort(-log_probabilities_V)[:top]
        pairs = tuple((int(one), float(log_probabilities_V[one])) for one in best)
        return Token(int(token), float(log_probabilities_V[token]), pairs, ends)

    def _choose(self, logits_V, sampling, rng) -> int:
        if sampling.temperature == 0:
            return int(np.argmax(logits_V))
        chances_V = np.exp((logits_V - logits_V.max()) / sampling.temperature)
        order = np.argsort(-chances_V)
        share = np.cumsum(chances_V[order]) / chances_V.sum()
        kept = order[: 1 + int(np.sum(share < sampling.top_p))]
        chances = chances_V[kept] / chances_V[kept].sum()
        return int(rng.choice(kept, p=chances))

    def figures(self) -> dict[str, float]:
        running = min(self._rows, len(self._running))
        figures = dict.fromkeys(("pages", "pages_used", "prompt_tokens", "reused_tokens"), 0)
        return {"waiting": len(self._running) - running, "running": running, **figures, "new_tokens": self._written}
