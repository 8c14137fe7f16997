"""The batch, which every kind of training reads, and how it is built from pieces of documents.

Shapes: B rows, T tokens in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np

from tpullm.recipe.schema import PolicyConfig, PreferenceConfig, TeacherConfig


@dataclass(frozen=True)
class Batch:
    """Rows of tokens to predict; all `[B, T]`.

    Args:
        inputs: int32, the tokens that are read.
        targets: int32, the token that follows each input in its document.
        segment_ids: int32, from 1 in each row; 0 is padding. Attention never crosses a segment.
        positions: int32, the position within the segment, from 0.
        weights: float32, the weight of the target in the loss; 0 on padding.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


FIELDS = [field.name for field in fields(Batch)]
# In a row with several answers to a prompt, the segment id of a token is that of the prompt, plus this for the first
# answer, twice this for the second, and so on. A token sees its own answer and the prompt.
BRANCH = 1 << 16


@dataclass(frozen=True)
class MixedBatch(Batch):
    """Rows of answers, and rows of old text beside them.

    Args:
        beside: the rows of old text; None is none.
        share: of the text in the loss, of 1.
    """

    beside: Batch | None = field(default=None, kw_only=True)
    share: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class PairBatch(MixedBatch):
    """Rows of preferences: of each pair the prompt, then both answers. Or of judged answers (`answer_rows.py`).

    Args:
        references: float32 `[B, T]`, at the first token of an answer its log-probability under the model that tuning
            starts from, nats; elsewhere 0.
        settings: of the objective.
        sequences: the most pairs of a row.
        kl: of judged answers, `[B, T]`, everywhere KTO's divergence from that model over the whole batch, nats. None
            where these rows are the whole batch.
    """

    references: np.ndarray
    settings: PreferenceConfig
    sequences: int
    kl: np.ndarray | None = None


@dataclass(frozen=True)
class AnswerBatch(MixedBatch):
    """Rows of answers that the model gave itself: of each prompt its tokens once, then the answers.

    Args:
        answers: int32 `[B, T]`, the number of the token's answer in its row, from 1; 0 for prompts and padding.
        advantages: float32 `[B, T]`, how much better than the others the token's answer is.
        old: float32 `[B, T]`, log-probabilities when the answers were sampled, nats. In the first step that learns from
            them they are not read: there the model is the one that answered.
        settings: of the objective.
        sequences: at least the most answers of a row.
        first: whether it is the first step that learns from them.
    """

    answers: np.ndarray
    advantages: np.ndarray
    old: np.ndarray
    settings: PolicyConfig
    sequences: int
    first: bool


@dataclass(frozen=True)
class TaughtBatch(Batch):
    """Rows with a teacher's probabilities of the next tokens; K tokens at each place.

    Args:
        ids: int32 `[B, T, K]`, the teacher's likeliest tokens.
        logps: float32 `[B, T, K]`, their log-probabilities, nats; -inf where there is none.
        settings: of the objective.
        branched: whether a row holds several answers to a prompt, as in `AnswerBatch`.
    """

    ids: np.ndarray
    logps: np.ndarray
    settings: TeacherConfig
    branched: bool = False

    @property
    def plain(self) -> Batch:
        """The rows alone."""
        return Batch(self.inputs, self.targets, self.segment_ids, self.positions, self.weights)


@dataclass(frozen=True)
class Lengths:
    """The lengths of documents, in groups: consecutive documents that are equally long. All int64 [groups].

    Args:
        tokens: of each document of a group.
        firsts: the number of its first document.
        counts: how many documents there are; none is 0.
    """

    tokens: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray) -> "Lengths":
        """Those of documents in memory; int64 [documents]. Each is a group of its own."""
        return cls(np.asarray(tokens, np.int64), np.arange(len(tokens)), np.ones(len(tokens), np.int64))

    def only(self, groups: np.ndarray) -> "Lengths":
        """Those of some groups, by their numbers."""
        return Lengths(self.tokens[groups], self.firsts[groups], self.counts[groups])

    @property
    def predictions(self) -> np.ndarray:
        """The predictions of each document of a group: one less than its tokens, but not less than none."""
        return np.maximum(self.tokens - 1, 0)

    @property
    def total(self) -> int:
        """The predictions of all documents."""
        return int((self.predictions * self.counts).sum())

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return int(self.counts.sum())


class Documents(Protocol):
    """Documents of tokens with random access: a token store, or conversations in memory."""

    lengths: Lengths

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of `[start, start + count)` of each document, concatenated."""
        ...

    def identities(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of each document in its corpus, int64, and the first 8 bytes of its hash, uint64."""
        ...


@dataclass(frozen=True)
class Segments:
    """Pieces of documents in rows, ordered by row; int64 `[segments]` each.

    Args:
        documents: the document of each piece.
        starts: the first token that is read.
        lengths: the number of predictions; the piece has one token more.
        rows: the row, in ascending order.
    """

    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray


def build(parts: Sequence[tuple[Documents, Segments]], batch_size: int, sequence_length: int) -> Batch:
    """The batch of the segments of all sources. Each row belongs to one source.

    The segments of a row stand side by side, and the rest of the row is padding. A row without segments is padding.
    Documents that lay out their rows themselves (`answer_rows.Pairs`) are the only ones of a batch.
    """
    for documents, segments in parts:
        if hasattr(documents, "build"):
            return documents.build(segments, batch_size, sequence_length)
    shape = (batch_size, sequence_length)
    inputs, targets, segment_ids, positions = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for documents, segments in parts:
        rows, lengths = segments.rows, segments.lengths
        tokens, token_weights = documents.read(segments.documents, segments.starts, lengths + 1)
        read, followed = np.ones((2, len(tokens)), bool)
        ends = np.cumsum(lengths + 1)
        read[ends - 1] = followed[ends - lengths - 1] = False
        in_row = np.bincount(rows)
        numbers = flat_ranges(np.ones_like(in_row), in_row)
        # A mask takes a quarter of the memory traffic of an index for every token.
        real = np.arange(sequence_length) < np.bincount(rows, lengths, batch_size)[:, None]
        inputs[real], targets[real], weights[real] = tokens[read], tokens[followed], token_weights[followed]
        segment_ids[real] = np.repeat(numbers.astype(np.int32), lengths)
        positions[real] = flat_ranges(np.zeros_like(lengths), lengths)
    return Batch(inputs, targets, segment_ids, positions, weights)


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` batches of equally many rows, in order; views of the given arrays."""
    found = {name: array for name, array in vars(batch).items() if isinstance(array, np.ndarray)}
    found = {name: array.reshape(parts, -1, *array.shape[1:]) for name, array in found.items()}
    return [replace(batch, **{name: array[n] for name, array in found.items()}) for n in range(parts)]


def flat_ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`begin, begin + 1, ..., begin + count - 1` of each pair, concatenated; int64."""
    return np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
