"""How likely each of some languages is for a text: the model of py3langid, naive Bayes over n-grams of bytes.

The arithmetic is ours, because a text has to have the same language on every machine. py3langid sums in float32, in an
order that the kernels of a processor decide: its probabilities differ in the last digits between three of OpenBLAS's.
Here every term is an integer below 2**26, so float64 sums thousands of them exactly, in any order. Only additions,
multiplications, divisions and a root follow, which IEEE 754 defines to the last bit; `exp` is not one of them.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

# Log-probabilities of the model are float16 between -15 and -2.7, all of them multiples of 1/512. What a count weighs,
# log(1 + count), is rounded to a multiple of 1/1024.
LONGEST = 6  # bytes of an n-gram
PER_NAT, PER_WEIGHT = 512, 1024
WEIGHTS = np.array([round(PER_WEIGHT * math.log1p(count)) for count in range(4096)], np.float64)


@dataclass(frozen=True, slots=True)
class Model:
    """The model as py3langid ships it.

    Args:
        log_probabilities: of each n-gram in each class, float16 [n-grams, classes].
        priors: log-probabilities of the classes, float32 [classes].
        classes: the language of each class. A language in two scripts has two classes.
        moves: the next state of the automaton that finds n-grams, flat: one row of 256 for some states together.
        rows: where the row of each state begins in `moves`: int32 [states].
        found: the n-gram that ends in each state, -1 for none: int32 [states].
    """

    log_probabilities: np.ndarray
    priors: np.ndarray
    classes: Sequence[str]
    moves: np.ndarray
    rows: np.ndarray
    found: np.ndarray


@dataclass(frozen=True, slots=True)
class Table:
    """The part of the model that is about some languages, in integers.

    Args:
        languages: without repeats.
        of_class: for each class the place of its language in `languages`.
        log_probabilities: int16 [n-grams, classes], 1/512 nat.
        priors: float64 [classes], 1/512/1024 nat.
    """

    languages: tuple[str, ...]
    of_class: np.ndarray
    log_probabilities: np.ndarray
    priors: np.ndarray


@cache
def model() -> Model:
    """The model, read when it is first needed: in 0.5 s of a core, 93 MiB with the table of the Latin script."""
    from py3langid import langid, modelio

    log_probabilities, priors, classes, moves, rows, found = modelio.load_model(langid.MODEL_DIR / langid.MODEL_FILE)
    rows = np.array(rows, np.int32) << 8
    return Model(log_probabilities, priors, classes, np.asarray(moves), rows, np.array(found, np.int32))


@cache
def _table(languages: tuple[str, ...]) -> Table:
    whole = model()
    places = [place for place, language in enumerate(whole.classes) if language in languages]
    return Table(
        languages,
        np.array([languages.index(whole.classes[place]) for place in places]),
        # A choice of columns is laid out by columns; a row of n-grams is wanted as one piece of memory.
        (whole.log_probabilities[:, places].astype(np.float32) * PER_NAT).astype(np.int16, order="C"),
        np.rint(whole.priors[places].astype(np.float64) * PER_NAT * PER_WEIGHT),
    )


def probabilities(text: str, languages: tuple[str, ...]) -> dict[str, float]:
    """How likely each of `languages` is, if `text` is in one of them; all alike if the model finds nothing it knows.

    They are tempered by the root of the number of bytes, as py3langid does: n-grams overlap, so their sum is too sure.
    """
    content = unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "replace")
    table = _table(languages)
    scores = _scores(content, table)
    shares = _exp((scores - scores.max()) / (PER_NAT * PER_WEIGHT * math.sqrt(len(content) or 1)))
    of_languages = np.bincount(table.of_class, shares, len(languages)).tolist()
    whole = math.fsum(of_languages)
    return {language: share / whole for language, share in zip(languages, of_languages, strict=True)}


def _exp(exponents: np.ndarray) -> np.ndarray:
    """e to the `exponents`, which are 0 or less, within 0.0003: (1 + x / 1024) ** 1024."""
    powers = np.maximum(1 + exponents / 1024, 0.0)
    for _ in range(10):
        powers *= powers
    return powers


def _scores(content: bytes, table: Table) -> np.ndarray:
    """Log-probabilities of the classes, as integers: float64 [classes], 1/512/1024 nat."""
    if not (counts := Counter(_n_grams(content).tolist())):
        return np.zeros(len(table.priors))
    seen = np.fromiter(counts, np.intp, len(counts))
    weights = WEIGHTS[np.minimum(np.fromiter(counts.values(), np.intp, len(counts)), len(WEIGHTS) - 1)]
    return weights @ table.log_probabilities.take(seen, axis=0).astype(np.float64) + table.priors


def _n_grams(content: bytes) -> np.ndarray:
    """The n-grams of the model in a text, one for each place where one ends: int32.

    The state of the automaton is the longest end of what was read that begins an n-gram, so it depends on no more bytes
    than the longest n-gram has. All places read that many at once: a third of the time of one byte after the other.
    """
    whole, data = model(), np.frombuffer(content, np.uint8)
    states = np.zeros(len(data), np.int64)
    for back in range(min(LONGEST, len(data)) - 1, -1, -1):
        states[back:] = whole.moves[whole.rows[states[back:]] + data[: len(data) - back]]
    found = whole.found[states]
    return found[found >= 0]
