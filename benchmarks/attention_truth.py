"""What attention is measured on, and whether a result is right; numpy alone, so that each library is compared with it.

Shapes: B rows, T tokens of a row, N query heads, K key/value heads, G = N / K, H head width; C probed tokens, S keys.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from gpu_cases import Attention

# Relative to the norm of what is compared. Weights, their gradients and results are rounded to bfloat16, by up to 2^-9
# (0.2 %) each, and the gradients' inner product is of rounded values. A mask that is wrong by one token changes the
# first tokens of a document by far more.
TOLERANCE = 0.02
PROBED = 16  # tokens at the beginning and at the end of a document
NAMES = ("mixed", "dq", "dk", "dv")


class Arrays(NamedTuple):
    """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`, and the gradient of the mixed values, as float32.

    All numbers are exact in bfloat16.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    d: np.ndarray


def arrays(case: Attention) -> Arrays:
    """Random numbers from -2 to 2, the same for each library. Bytes are made much faster than normal numbers."""
    random = np.random.default_rng(0)

    def make(heads: int) -> np.ndarray:
        numbers = random.integers(256, size=(case.rows, case.length, heads, case.width), dtype=np.uint8)
        return (numbers - np.float32(127.5)) / 64  # odd multiples of 1 / 128 up to 255: 8 bits, as bfloat16 has

    return Arrays(make(case.heads), make(case.kv_heads), make(case.kv_heads), make(case.heads))


def begins(case: Attention) -> np.ndarray:
    """Index in the row of the first token of each token's document, `[B, T]` int32; documents are cut at random."""
    random, found = np.random.default_rng(1), np.zeros((case.rows, case.length), np.int32)
    for row in found:
        row[1 + random.choice(case.length - 1, case.documents - 1, replace=False)] = 1
        row[:] = np.maximum.accumulate(np.where(row, np.arange(case.length), 0))
    return found


def ends(begins_T: np.ndarray) -> list[int]:
    """Index after the last token of each document of a row, in order."""
    return [*np.unique(begins_T)[1:].tolist(), len(begins_T)]


def visible_pairs(begins_BT: np.ndarray) -> int:
    """Pairs of a query and a key that it attends to."""
    return int((np.arange(begins_BT.shape[1]) - begins_BT + 1).sum())


def flops(case: Attention, pairs: int) -> dict[str, float]:
    """FLOPs of the forward pass (two products), and of it with the gradients (five more), of the visible pairs."""
    product = 2.0 * case.heads * case.width * pairs
    return {"forward": 2 * product, "gradient": 7 * product}


def error(case: Attention, given: Arrays, begins_BT: np.ndarray, found: Sequence[np.ndarray]) -> float:
    """The largest relative error of the mixed values and of the three gradients, among the probes of the last row.

    Probed are the first and the last tokens of its first, longest and last document that have room for both, for the
    first and the last key/value head. A query's results depend on the keys before it alone, a key's gradients on the
    queries after it: so keys are probed at the end of a document, where few queries follow.

    Args:
        found: mixed values, gradients of queries `[T, N, H]`, of keys and of values `[T, K, H]`, of the last row.
    """
    worst = 0.0
    for name, expected, at, heads in _probes(case, given, begins_BT[-1]):
        wrong = np.asarray(found[NAMES.index(name)][at, heads], np.float64) - expected
        relative = np.linalg.norm(wrong) / np.linalg.norm(expected)
        worst = max(worst, float(np.nan_to_num(relative, nan=np.inf)))
    return worst


def _probes(case: Attention, given: Arrays, begins_T) -> Iterator[tuple[str, np.ndarray, slice, slice | int]]:
    """Name, expected values, tokens and heads."""
    documents = [(int(begins_T[end - 1]), end) for end in ends(begins_T)]
    longest = max(documents, key=lambda of: of[1] - of[0])
    long = [of for of in documents if of[1] - of[0] >= 2 * PROBED] or [longest]
    groups = case.heads // case.kv_heads
    for begin, end in {long[0], longest, long[-1]}:
        last = slice(max(begin, end - PROBED), end)
        for head in {0, case.kv_heads - 1}:
            heads = slice(head * groups, (head + 1) * groups)
            for at in (slice(begin, begin + PROBED), last):
                mixed, dq, dk, dv = _gradients(given, begin, at, head, heads)
                yield "mixed", mixed, at, heads
                yield "dq", dq, at, heads
            yield "dk", dk[last.start - begin :], last, head
            yield "dv", dv[last.start - begin :], last, head


_einsum = partial(np.einsum, optimize=True)  # by matmuls


def _gradients(given: Arrays, begin: int, at: slice, head: int, heads: slice):
    """Of the queries `at`: mixed values and gradients `[C, G, H]`; of the keys from `begin` on: `[S, H]`."""
    q, d = (x[-1, at, heads].astype(np.float64) for x in (given.q, given.d))
    k, v = (x[-1, begin : at.stop, head].astype(np.float64) for x in (given.k, given.v))
    scale = q.shape[-1] ** -0.5
    scores = _einsum("cgh,sh->cgs", q, k) * scale
    visible = np.arange(begin, at.stop) <= np.arange(at.start, at.stop)[:, None]
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = _einsum("cgs,sh->cgh", weights, v)
    inner = (d * mixed).sum(axis=-1, keepdims=True)
    slopes = weights * (_einsum("cgh,sh->cgs", d, v) - inner) * scale
    return (
        mixed,
        _einsum("cgs,sh->cgh", slopes, k),
        _einsum("cgs,cgh->sh", slopes, q),
        _einsum("cgs,cgh->sh", weights, d),
    )
