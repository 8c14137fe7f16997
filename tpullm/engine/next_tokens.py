"""The choice of the tokens that come next, by the rules of each request; `choose` is one choice by given arrays."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from tpullm.engine.request import Request
from tpullm.engine.row_memory import Choice, pick
from tpullm.model.rows import fetch, put_whole
from tpullm.recipe.sampling import GREEDY

MOST_TOP = 20  # likeliest tokens that are told with each, as in OpenAI's interface


class Next(NamedTuple):
    """A token to choose: of which request, after which new tokens, and how many more that nobody has seen yet."""

    request: Request
    new: tuple[int, ...]
    unseen: int = 0

    def follows(self, new: Sequence[int]) -> bool:
        """Whether it comes next after these."""
        return len(new) == len(self.new) + self.unseen and tuple(new[: len(self.new)]) == self.new


def choose_next(mesh: jax.sharding.Mesh, logits: jax.Array, asked: Sequence[Next | None]) -> Choice:
    """The next token of each row of logits `[B, V]` that is asked for, still on the device: `fetched` waits for it."""
    known = [one.request for one in asked if one is not None]
    if not any(request.is_biased or request.top for request in known):
        return _pick(mesh, logits, asked, None, 0)
    bias = np.zeros(logits.shape, np.float32)
    for bias_V, one in zip(bias, asked, strict=True):
        if one is not None:
            _add_bias(bias_V, one)
    return _pick(mesh, logits, asked, bias, MOST_TOP)


def fetched(mesh: jax.sharding.Mesh, found: Choice) -> Choice:
    """A choice as numpy arrays; waits for the device."""
    return Choice(*(fetch(mesh, array) for array in found))


def compile_for(mesh: jax.sharding.Mesh, logits: jax.Array) -> None:
    """Compile what chooses among such logits."""
    for bias, top in ((None, 0), (np.zeros(logits.shape, np.float32), MOST_TOP)):
        fetched(mesh, _pick(mesh, logits, [None] * len(logits), bias, top))


def _pick(mesh, logits: jax.Array, asked: Sequence[Next | None], bias: np.ndarray | None, top: int) -> Choice:
    rules, shares = np.zeros((len(asked), 3), np.int32), np.zeros((len(asked), 3), np.float32)
    for n, one in enumerate(asked):
        sampling = GREEDY if one is None else one.request.sampling
        shares[n] = sampling.temperature, sampling.top_p, sampling.min_p
        rules[n, 2] = sampling.top_k
        if one is not None:
            rules[n, :2] = (
                np.uint32(one.request.seed).astype(np.int32),
                len(one.request.ids) + len(one.new) + one.unseen,
            )
    arrays = (None if array is None else put_whole(mesh, array, "batch", None) for array in (rules, shares, bias))
    return pick(logits, *arrays, top=top)


def _add_bias(bias_V: np.ndarray, asked: Next) -> None:
    request = asked.request
    for token, value in request.bias.items():
        bias_V[token] += value
    if request.presence_penalty or request.frequency_penalty:
        for token, count in Counter(asked.new).items():
            bias_V[token] -= request.presence_penalty + count * request.frequency_penalty
    if request.allowed is not None:
        allowed_V = request.allowed(asked.new)
        bias_V[: len(allowed_V)][~allowed_V] = -np.inf
        bias_V[len(allowed_V) :] = -np.inf
