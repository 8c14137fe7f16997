"""An engine without a model: the next token follows from all tokens before it, so nothing is compiled.

A row holds tokens in place of keys. A token in a wrong row or slot, or one that is not there, gives another text. The
real cache is in `test_forward.py`.
"""

import zlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.engine import engine as engine_module
from tpullm.engine import guesses, sampling
from tpullm.engine.cache import SIZE, Cache
from tpullm.engine.forward import UNSEEN
from tpullm.engine.request import Request
from tpullm.engine.sampling import Choice
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import ModelConfig

V = 640
ROWS = 6  # three groups of 2
CONTEXT = 640  # and a group of two texts with more than 512 tokens


class Form:
    """`Request.allowed` by a function. If it is slow, a mask is ready when `ready` says so."""

    def __init__(self, of, slow=False):
        self.of, self.slow, self.ready, self.asked = of, slow, False, []

    def __call__(self, ids):
        return self.of(ids)

    def is_slow(self):
        return self.slow

    def is_ready(self, ids):
        self.asked.append(ids)
        return self.ready


class Chain(Cache):
    """The cache with tokens of texts in its slots; `programs` has what would have been compiled."""

    def __init__(self, session, sizes, slots=()):
        super().__init__(session, sizes, slots)
        self.held, self.programs = [np.full(size, -1) for size in self.sizes], set()

    def copy(self, to, of, tokens):
        own = self.held[of[0]][of[1], :tokens].copy()
        self.held[to[0]][to[1]] = -1
        self.held[to[0]][to[1], : len(own)] = own
        rows, alone = self.sizes[of[0]][0], self.sizes[to[0]][0] == 1
        for number in self._numbers(of[0], tokens):
            slots = self._slots[of[0]][number]
            self.programs |= {("row of", rows, slots, alone)} if alone or rows > 1 else set()
            self.programs |= set() if alone else {("with row", self.sizes[to[0]][0], self._slots[to[0]][number], slots)}

    def read(self, group, pieces, count, size=SIZE, end=1):
        self.programs.add(("read", self.sizes[group][0], count, self.attended(group, max([end, *map(_end, pieces)]))))
        for _ in self.parts()[1:]:
            yield jnp.zeros(())
        logits = np.zeros((max(count, 2), V), np.float32)
        for piece in pieces:
            self.held[group][piece.row, piece.start : _end(piece)] = piece.ids
        for n, piece in enumerate(pieces):
            logits[n] = scores(self.held[group][piece.row, : _end(piece)], self._session.model)
        yield jnp.asarray(logits), jnp.zeros((count, size, 1))

    def given(self, hidden_CTD, after, top):
        tokens = np.zeros(hidden_CTD.shape[:2], int)
        for n, ids in enumerate(after):
            tokens[n, : len(ids)] = ids
        return Choice(*map(jnp.asarray, (tokens, np.zeros(tokens.shape), *np.zeros((2, *tokens.shape, top)))))

    def write(self, step, tokens, count=1, chosen_B=None):
        self.programs.add(("write", tuple(slots and self.attended(n, slots) for n, slots in enumerate(step)), count))
        rows, logits = self.rows(step), np.zeros((len(self.rows(step)) * count, V), np.float32)
        places = [(group, index) for group, (size, _) in enumerate(self.sizes) for index in range(size)]
        for n, row in enumerate(rows):
            group, index = places[row]
            held = self.held[group][index]
            for number, written in enumerate(tokens.get(row, ())):
                assert written.position < self.attended(group, step[group])
                held[written.position] = int(chosen_B[n]) if written.token == UNSEEN else written.token
                logits[n * count + number] = scores(held[: written.position + 1], self._session.model)
        return jnp.asarray(logits)


def _end(piece):
    return piece.start + len(piece.ids)


def scores(ids, model: int = 0) -> np.ndarray:
    """The logits after a text, of a model with this number."""
    ids = np.asarray(ids, np.int32)
    assert ids.min() >= 0, "a token is read that was not written"
    return 3 * np.random.default_rng([model, zlib.crc32(ids.tobytes())]).standard_normal(V, np.float32)


def pick(logits_BV, integers_B3, shares_B3, bias_BV, *, top):
    """`sampling.pick` by numpy, without top-k, top-p and min-p."""
    logits_BV = np.asarray(logits_BV)
    shares_B3 = np.zeros((len(logits_BV), 3)) if shares_B3 is None else np.asarray(shares_B3)
    biased_BV = np.array(logits_BV) if bias_BV is None else logits_BV + np.asarray(bias_BV)
    for n in np.flatnonzero(shares_B3[:, 0]).tolist():
        of_token = np.random.default_rng(np.asarray(integers_B3)[n, :2].astype(np.uint32))
        biased_BV[n] += shares_B3[n, 0] * of_token.gumbel(size=V)
    tokens_B = np.argmax(biased_BV, axis=1)
    if top is None:
        return Choice(jnp.asarray(tokens_B))
    logps_BV = logits_BV - np.log(np.exp(logits_BV).sum(axis=1, keepdims=True))
    best_BT = np.argsort(-logps_BV, axis=1)[:, :top] if top else np.zeros((len(logps_BV), 0), int)
    found = tokens_B, logps_BV[np.arange(len(tokens_B)), tokens_B], best_BT, np.take_along_axis(logps_BV, best_BT, 1)
    return Choice(*map(jnp.asarray, found))


def alone(request: Request, model: int = 0) -> list[int]:
    """The new tokens of a request, by no engine."""
    new, sampling_ = [], request.sampling
    while len(new) < request.tokens and len(request.ids) + len(new) < CONTEXT:
        logits_1V = scores([*request.ids, *new], model)[None]
        of = [[request.seed, len(request.ids) + len(new), 0]], [[sampling_.temperature, 1, 0]]
        new.append(int(pick(logits_1V, *of, None, top=None).tokens[0]))
        if new[-1] in request.stop_ids:
            break
    return new


@pytest.fixture(scope="module")
def long():
    """What an engine asks of a session of two layers; engines have a `Chain`."""
    config = ModelConfig(layers=2, width=32, heads=4, context_length=CONTEXT).resolved(V)
    parts = {"architecture": Architecture(config), "mesh": mesh(), "dtype": jnp.dtype("float32")}
    with pytest.MonkeyPatch.context() as patched:
        for module in (engine_module, guesses):
            patched.setattr(module, "Cache", Chain)
        patched.setattr(engine_module, "ShapesOnly", Chain)
        patched.setattr(engine_module, "only_compile", lambda function, *arguments, **static: None)
        patched.setattr(sampling, "pick", pick)
        tokenizer = SimpleNamespace(pad_id=0, vocabulary_size=V, stop_ids=[2])
        yield SimpleNamespace(**parts, tokenizer=tokenizer, context_length=CONTEXT, layers=[[]], model=0)


@pytest.fixture(scope="module")
def engine(long):
    """One for several tests: what it did before must not matter."""
    return engine_module.Engine(long, ROWS)


def emitted_by(engine, requests) -> list[list]:
    """The tokens of each request, all of them asked for at once."""
    emitted = [[] for _ in requests]
    for request, own in zip(requests, emitted, strict=True):
        engine.submit(request, own.append)
    finish(engine)
    return emitted


def continued(engine, requests) -> list[list[int]]:
    return [[token.id for token in tokens] for tokens in emitted_by(engine, requests)]


def finish(engine) -> None:
    while engine.step():
        pass


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(4, 600, length).tolist())
