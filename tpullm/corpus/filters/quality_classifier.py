"""A classifier of good and bad texts that is learned from the user's own examples: linear, on hashed character n-grams.

The score of a text is that of fastText without its hidden layer (Joulin et al. 2017): the mean of a weight for each of
its n-grams, through a sigmoid. It is learned on whole batches by the gradient of logistic regression (AdaGrad, Duchi et
al. 2011), in numpy without BLAS, so the same examples give the same bits. E examples, B buckets, N n-grams.
"""

import dataclasses
import functools
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm.corpus.characters import code_points
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.files import readers, source_files
from tpullm.recipe.schema import ClassifierConfig, Source
from tpullm.system.errors import UserError

LENGTHS = (2, 3, 4)
BUCKETS_BITS = 18
MULTIPLIER, MIXER = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)  # odd, with well-mixed high bits
PIECE_CHARACTERS = 2000  # an example: long texts give several
MOST_EXAMPLES = 4000  # of each kind, those of the smallest hashes: about 150 MB while it learns
MOST_READ = 1 << 28  # characters of each kind
LEAST_EXAMPLES = 20
HELD_OUT = 5  # one of five examples is held out
STEPS, LEARNING_RATE = 60, 2.0


@dataclass(frozen=True)
class Model:
    """What was learned.

    Args:
        weights_B: of each bucket of n-grams: float32.
        bias: added to the mean of the weights.
        said: how well it tells good from bad, for the log.
    """

    weights_B: np.ndarray
    bias: float
    said: str = ""

    def score(self, text: str) -> float:
        """How likely a text is to be good, 0 to 1: 0.5 for one without n-grams. 20 MB/s and more on one core."""
        total, count = 0.0, 0
        for buckets_N in _n_gram_buckets(text):
            total += float(self.weights_B[buckets_N].sum(dtype=np.float64))
            count += len(buckets_N)
        return float(_sigmoid(total / count + self.bias)) if count else 0.5


@functools.lru_cache(maxsize=2)
def learned(config: ClassifierConfig) -> Model:
    """The classifier of a recipe. Every process learns it once, in some seconds: the same bits everywhere.

    `UserError` names the key if there are too few examples.
    """
    examples = [_example_pieces(path, key) for path, key in ((config.good, "good"), (config.bad, "bad"))]
    held_out = [_held_out_examples(found) for found in examples]
    rest = [[text for text in found if text not in held] for found, held in zip(examples, held_out, strict=True)]
    weights_B, bias = _fitted_classifier([*rest[0], *rest[1]], np.repeat([True, False], [len(rest[0]), len(rest[1])]))
    model = Model(weights_B, bias)
    good, bad = (np.mean([model.score(text) >= config.threshold for text in sorted(held)]) for held in held_out)
    counts = f"{sum(map(len, rest))} examples; of {sum(map(len, held_out))} others"
    said = f"learned from {counts} it keeps {good:.1%} of the good and drops {1 - bad:.1%} of the bad"
    return dataclasses.replace(model, said=said)


def _example_pieces(path: str, key: str) -> dict[str, str]:
    """The pieces of the texts at a path, each with the hash of its text; of very many those of the smallest hashes."""
    hashed = ((-int(text_hash(piece)[:16], 16), piece, document) for piece, document in _pieces_of_texts(path, key))
    found = {piece: document for _, piece, document in sorted(heapq.nlargest(MOST_EXAMPLES, hashed))}
    if len(found) < LEAST_EXAMPLES:
        there = f"{path} holds {len(found)} examples of up to {PIECE_CHARACTERS} characters"
        advice = f"give {LEAST_EXAMPLES} at least, and some hundreds for a useful classifier"
        raise UserError(f"corpus.classifier.{key}: {there}; {advice}")
    return found


def _held_out_examples(examples: dict[str, str]) -> set[str]:
    """One fifth of the examples: all those of some documents; if there are few documents, some of the pieces."""
    documents = set(examples.values())
    of = examples if len(documents) >= LEAST_EXAMPLES else {piece: text_hash(piece) for piece in examples}
    names = sorted(set(of.values()))
    chosen = set(names[: len(names) // HELD_OUT])
    return {piece for piece, document in of.items() if document in chosen}


def _pieces_of_texts(path: str, key: str) -> Iterator[tuple[str, str]]:
    """The pieces of the texts at a path, up to a bound, with the hash of the text that each is of."""
    source, left = Source(f"classifier.{key}", "files", path, licence="examples"), MOST_READ
    for file in source_files.find(source, Path()).files:
        for raw in readers.read(file, source):
            text = raw.text.encode(errors="replace").decode()
            document = text_hash(text)
            for start in range(0, len(text), PIECE_CHARACTERS):
                if (piece := text[start : start + PIECE_CHARACTERS]).strip():
                    yield piece, document
            left -= len(text)
            if left < 0:
                return


def _n_gram_buckets(text: str) -> Iterator[np.ndarray]:
    """The buckets of the n-grams of a text, one array for each length: uint32 [N]."""
    points = code_points(text)
    grams = points
    for length in range(2, max(LENGTHS) + 1):
        grams = grams[:-1] * MULTIPLIER + points[length - 1 :]
        if length in LENGTHS:
            yield ((grams ^ (grams >> np.uint32(15))) * MIXER) >> np.uint32(32 - BUCKETS_BITS)


def _fitted_classifier(texts: list[str], is_good_E: np.ndarray) -> tuple[np.ndarray, float]:
    """The weights and the bias, where both kinds count alike however many examples they have."""
    # The share of each bucket in the n-grams of each text, where it is not 0.
    frequencies = []
    for row, text in enumerate(texts):
        found, counts = np.unique(np.concatenate(list(_n_gram_buckets(text))), return_counts=True)
        share = (counts / max(counts.sum(), 1)).astype(np.float32)
        frequencies.append((np.full(len(found), row, np.int32), found.astype(np.int32), share))
    rows, columns, values = map(np.concatenate, zip(*frequencies, strict=True))
    share_E = np.where(is_good_E, 0.5 / is_good_E.sum(), 0.5 / (~is_good_E).sum())
    seen_B = np.bincount(columns, minlength=1 << BUCKETS_BITS) > 1  # an n-gram in one example teaches nothing of others
    weights_B, squares_B = np.zeros(1 << BUCKETS_BITS), np.full(1 << BUCKETS_BITS, 1e-12)
    bias, square = 0.0, 1e-12
    for _ in range(STEPS):
        logits_E = np.bincount(rows, weights_B[columns] * values, minlength=len(texts)) + bias
        errors_E = (_sigmoid(logits_E) - is_good_E) * share_E
        gradient_B = np.bincount(columns, errors_E[rows] * values, minlength=1 << BUCKETS_BITS) * seen_B
        squares_B += gradient_B**2
        square += errors_E.sum() ** 2
        weights_B -= LEARNING_RATE * gradient_B / np.sqrt(squares_B)
        bias -= LEARNING_RATE * errors_E.sum() / np.sqrt(square) / STEPS
    return weights_B.astype(np.float32), float(bias)


def _sigmoid(logits: np.ndarray | float) -> np.ndarray | float:
    """0 to 1. Without an exponential, whose last bit differs between processors: the operations here are IEEE's."""
    return 0.5 + 0.5 * logits / (1 + np.abs(logits))
