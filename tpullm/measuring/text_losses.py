"""How likely a model finds texts, by where in a document: nats in each stretch of its bytes.

A text is read in windows of the model's context. Each begins half a context after the one before it, so every token is
predicted after half a context at least, or after all of the text before it. The token that ends a document is not
predicted: what divides the nats is the text alone.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from tpullm.errors import UserError
from tpullm.log import one_line
from tpullm.measuring.likelihoods import Continuation
from tpullm.measuring.measured_model import MeasuredModel
from tpullm.tokenizer import Tokenizer

STRETCHES = (0, 256, 1024, 4096, 16384)  # the byte of a document at which each begins


def nats(model: MeasuredModel, documents: Sequence[str]) -> np.ndarray:
    """The negative log-probability of each stretch of each document, float64 `[documents, stretches]`.

    A token counts in the stretch that holds its first byte.
    """
    tokenizer, context = model.session.tokenizer, model.session.context_length
    bytes_V = tokenizer.bytes_per_token()
    requests, owners = [], []
    for number, text in enumerate(documents):
        for ids, starts, stretches in _windows(tokenizer, bytes_V, text, context):
            requests += [Continuation(ids[:start], ids[start:]) for start in starts]
            owners += [(number, stretch, start == starts[-1]) for start, stretch in zip(starts, stretches, strict=True)]
    found = np.zeros((len(documents), len(STRETCHES)))
    # Of one window, each request begins a stretch and goes on to the end of the window; they are computed together.
    log_p = [likelihood.log_probability for likelihood in model.likelihoods(requests)]
    for (number, stretch, is_last), own, after in zip(owners, log_p, [*log_p[1:], 0.0], strict=True):
        found[number, stretch] -= own if is_last else own - after
    return found


def sizes(documents: Sequence[str]) -> np.ndarray:
    """The bytes of each stretch of each document, int64 `[documents, stretches]`."""
    ends = np.array([*STRETCHES[1:], np.iinfo(np.int64).max])
    length = np.array([[len(text.encode())] for text in documents])
    return np.clip(np.minimum(length, ends) - STRETCHES, 0, None)


def _windows(
    tokenizer: Tokenizer, bytes_V: np.ndarray, text: str, context: int
) -> Iterator[tuple[tuple[int, ...], list[int], list[int]]]:
    """Windows of a text: their ids, the places in these at which stretches begin, and which stretches they are."""
    begin, own = tokenizer.begin or [tokenizer.eos_id], tokenizer.encode(text)
    if not own:  # a published tokenizer may do that
        raise UserError(f"--text: {one_line(text, 40)!r}: the model's tokenizer drops all of it; leave the text out")
    ids = [*begin, *own]
    held = bytes_V[own]
    stretch = np.searchsorted(STRETCHES, np.cumsum(held) - held, side="right") - 1
    ends = [len(begin), *range(context + 1, len(ids), max(1, context // 2)), len(ids)]
    for start, end in pairwise(ends):
        part = stretch[start - len(begin) : end - len(begin)]
        changes = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist()]
        left = max(0, end - context - 1)
        yield tuple(ids[left:end]), [start + change - left for change in changes], part[changes].tolist()
