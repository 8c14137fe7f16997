"""Preferences for tuning: pairs of answers, packed into rows so that both share the computation of their prompt.

In a row stand the tokens of the prompt but its last one, then the first answer, then the second. Each answer begins
with the last token of the prompt, which predicts its first token. Its positions go on from the prompt, and a token sees
its own answer and the prompt, not the other answer: segment ids say so (`data.batch.BRANCH`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.data.answer_tokens import Pair
from tpullm.data.batch import BRANCH, PairBatch, Segments, flat_ranges
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.recipe.schema import PreferenceConfig


@dataclass(frozen=True)
class Pairs:
    """Tokenized preferences; it implements `tpullm.data.batch.Documents`.

    Args:
        inputs, targets, positions: int32 [all predictions], of the pairs one after the other.
        weights: float32 [all predictions], 1 on both answers.
        branches: int32 [all predictions]: 0 the prompt, 1 the chosen answer, 2 the rejected one.
        offsets: int64 [pairs + 1], where each pair begins.
        ids: uint64 [pairs], the first 8 bytes of the hash of each prompt.
        references: float32 [pairs, 2], the log-probability of each answer under the model that tuning starts from, in
            nats; filled before training.
        settings: of the objective.
        sequences: the most pairs of a row.
    """

    inputs: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    branches: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    references: np.ndarray
    settings: PreferenceConfig
    sequences: int

    @property
    def lengths(self) -> np.ndarray:
        """One more than the predictions of each pair, int64: as of a document."""
        return np.diff(self.offsets) + 1

    def build(self, segments: Segments, batch_size: int, sequence_length: int) -> PairBatch:
        """The batch of some pairs; a row without any is padding."""
        rows, lengths = segments.rows, segments.lengths
        where = flat_ranges(self.offsets[segments.documents], lengths)
        in_row = np.bincount(rows)
        numbers = flat_ranges(np.ones_like(in_row), in_row)
        real = np.arange(sequence_length) < np.bincount(rows, lengths, batch_size)[:, None]
        branches = self.branches[where]
        begins = np.diff(branches, prepend=-1) != 0
        answers = np.where(branches > 0, branches - 1, 0)
        references = self.references[np.repeat(segments.documents, lengths), answers]

        def filled(values: np.ndarray) -> np.ndarray:
            array = np.zeros((batch_size, sequence_length), values.dtype)
            array[real] = values
            return array

        return PairBatch(
            filled(self.inputs[where]),
            filled(self.targets[where]),
            filled((np.repeat(numbers, lengths) + BRANCH * branches).astype(np.int32)),
            filled(self.positions[where]),
            filled(self.weights[where]),
            filled(np.where(begins & (branches > 0), references, 0).astype(np.float32)),
            self.settings,
            self.sequences,
        )


def tokenized(found: Sequence[tuple[int, Pair]], settings: PreferenceConfig, sequence_length: int, name: str) -> Pairs:
    """The pairs that fit a row; the log counts the others.

    Args:
        found: the hash of the prompt and the ids of each.
        name: the stage, for errors.

    Raises:
        UserError: no pair is left.
    """
    kept = [(number, pair) for number, pair in found if _predictions(pair) <= sequence_length]
    if skipped := len(found) - len(kept):
        say(f"{name}: {skipped:,} of {len(found):,} pairs are longer than {sequence_length} tokens and left out")
    if not kept:
        longest = max((_predictions(pair) for _, pair in found), default=0)
        raise UserError(
            f"{name}: no pair of at most {sequence_length} tokens, both answers together (the longest has {longest}); "
            f"give more pairs or raise {name}.train.sequence_length"
        )
    parts = [_laid_out(pair) for _, pair in kept]
    lengths = np.array([len(part[0]) for part in parts])
    inputs, targets, positions, weights, branches = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(
        *(array.astype(np.int32) for array in (inputs, targets, positions)),
        weights.astype(np.float32),
        branches.astype(np.int32),
        np.cumsum([0, *lengths]),
        np.array([number for number, _ in kept], np.uint64),
        np.zeros((len(kept), 2), np.float32),
        settings,
        int(sequence_length // lengths.min()),
    )


def _predictions(pair: Pair) -> int:
    return len(pair.prompt) - 1 + len(pair.chosen) + len(pair.rejected)


def _laid_out(pair: Pair) -> tuple[np.ndarray, ...]:
    """Inputs, targets, positions, weights and branches of one pair."""
    prompt = len(pair.prompt)
    parts = [(pair.prompt[:-1], pair.prompt[1:], np.arange(prompt - 1), 0.0, 0)]
    for branch, answer in ((1, pair.chosen), (2, pair.rejected)):
        read = [pair.prompt[-1], *answer[:-1]]
        parts.append((read, answer, prompt - 1 + np.arange(len(answer)), 1.0, branch))
    columns = [np.concatenate([np.asarray(part[n], np.int64) for part in parts]) for n in range(3)]
    sizes = [len(part[0]) for part in parts]
    return *columns, *(np.repeat([part[n] for part in parts], sizes) for n in (3, 4))
