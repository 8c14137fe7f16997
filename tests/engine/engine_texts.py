"""Models and texts that tests of the engine share."""

import dataclasses

import jax
import numpy as np
import pytest

from tpullm.engine.engine import Engine
from tpullm.engine.request import Request
from tpullm.evaluation.scoring import next_log_probabilities
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import ModelConfig

ROWS = 6  # three groups of 2, and the same everywhere: each number of rows is a program
CONTEXT = 640  # and a group of two texts with more than 512 tokens
KINDS = {
    "shared keys": {"kv_heads": 2},
    "windows": {"windows": (24, 0), "attention_softcap": 20.0, "sinks": True, "positions": "learned"},
    "experts": {"experts": 4, "experts_per_token": 2, "mlp_width": 32},
}


def made(session, **changes):
    """A session with another model of random parameters, of `CONTEXT` tokens."""
    config = ModelConfig(layers=2, width=32, heads=4, context_length=CONTEXT, **changes)
    architecture = Architecture(config.resolved(session.tokenizer.vocabulary_size))
    with jax.set_mesh(session.mesh):
        params = jax.device_put(architecture.init(jax.random.key(1)), architecture.shardings(session.mesh))
        params["embedding"] = params["embedding"] * 20
        # What a token adds by itself is small beside what it attends to: otherwise the next token shows no memory.
        out = params["layers"]["attention"]["out"]
        out["weight"] = out["weight"] * 200
    return dataclasses.replace(session, architecture=architecture, params=params)


@pytest.fixture(scope="module")
def long(session):
    return made(session, **KINDS["shared keys"])


@pytest.fixture(scope="module")
def engine(long):
    """One for several tests: what it did before must not matter."""
    return Engine(long, ROWS)


def continued(engine: Engine, requests) -> list[list[int]]:
    """The new tokens of each request, all of them asked for at once."""
    new = [[] for _ in requests]
    for request, ids in zip(requests, new, strict=True):
        engine.submit(request, lambda token, ids=ids: ids.append(token.id))
    finish(engine)
    return new


def finish(engine: Engine) -> None:
    """Step until every text has ended."""
    while engine.step():
        pass


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(4, 600, length).tolist())


def alone(one, request: Request) -> list[int]:
    """What the request gets of an engine that has never done anything."""
    return continued(Engine(one, ROWS), [request])[0]


def greedy_by_full_forward(session, ids, tokens):
    """The reference: the whole text through the model for every token, without a cache."""
    new = []
    for _ in range(tokens):
        new.append(int(np.argmax(next_log_probabilities(session, [[*ids, *new]])[0])))
    return new
