"""Preferences for tuning: pairs of answers, packed into rows so that both share the computation of their prompt.

In a row stand the tokens of the prompt but its last one, then the first answer, then the second. Each answer begins
with the last token of the prompt, which predicts its first token. Its positions go on from the prompt, and a token sees
its own answer and the prompt, not the other answer: segment ids say so (`data.batch.BRANCH`).

A judged answer stands in a row in the same way. In place of the other answer is one to another prompt: from such
mismatched ones KTO estimates how far the model has moved. Each answer keeps its mismatched one, so the
log-probabilities of both under the model that tuning starts from are computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.data.batch import BRANCH, PairBatch, Segments, flat_ranges
from tpullm.data.conversations import Pair
from tpullm.recipe.schema import PreferenceConfig
from tpullm.system.errors import UserError
from tpullm.system.log import say

# The branch of an answer: liked, disliked, and (of judged answers) one to another prompt.
GOOD, BAD, MISMATCHED = 1, 2, 3


@dataclass(frozen=True)
class Pairs:
    """Tokenized preferences or judged answers; it implements `tpullm.data.batch.Documents`.

    Args:
        inputs, targets, positions: int32 [all predictions], of the pairs one after the other.
        weights: float32 [all predictions], 1 on both answers.
        branches: int32 [all predictions]: 0 the prompt, else `GOOD`, `BAD` or `MISMATCHED`.
        offsets: int64 [pairs + 1], where each pair begins.
        ids: uint64 [pairs], the first 8 bytes of the hash of each prompt.
        references: float32 [pairs, branches], the log-probability of each answer under the model that tuning starts
            from, in nats; filled before training.
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
    each = [len(pair.prompt) - 1 + len(pair.chosen) + len(pair.rejected) for _, pair in found]
    kept = _fitting(found, each, sequence_length, name, ("pair", "both answers together"))
    parts = [_laid_out(pair.prompt, {GOOD: pair.chosen, BAD: pair.rejected}) for _, pair in kept]
    return _pairs([number for number, _ in kept], parts, settings, sequence_length)


def judged(
    found: Sequence[tuple[int, list[int], list[int], bool]], settings: PreferenceConfig, sequence_length: int, name: str
) -> Pairs:
    """The judged answers that fit a row, each beside an answer to another prompt, of which the beginning may do.

    Args:
        found: of each the hash of the prompt, the ids of both, and whether the answer is good.
        name: the stage, for errors.

    Raises:
        UserError: no answer is left.
    """
    each = [len(prompt) + len(answer) for _, prompt, answer, _ in found]  # and a token at least of the mismatched one
    kept = _fitting(found, each, sequence_length, name, ("judged answer", "with its prompt"))
    parts = []
    for (_, prompt, answer, good), other in zip(kept, mismatched([number for number, *_ in kept]), strict=True):
        room = sequence_length - (len(prompt) - 1 + len(answer))
        parts.append(_laid_out(prompt, {GOOD if good else BAD: answer, MISMATCHED: kept[other][2][:room]}))
    return _pairs([number for number, *_ in kept], parts, settings, sequence_length)


def mismatched(prompts: Sequence[int]) -> np.ndarray:
    """For each example the number of another one, every number once.

    Args:
        prompts: hashes. The other example has another prompt, unless more than half of the examples have the same.
    """
    order = np.argsort(np.array(prompts, np.uint64), kind="stable")
    _, counts = np.unique(np.array(prompts, np.uint64), return_counts=True)
    found = np.empty_like(order)
    found[order] = np.roll(order, -counts.max())
    return found


def _fitting(found: Sequence, lengths: Sequence[int], most: int, name: str, what: tuple[str, str]) -> list:
    one, which = what
    kept = [each for each, length in zip(found, lengths, strict=True) if length <= most]
    if skipped := len(found) - len(kept):
        say(f"{name}: {skipped:,} of {len(found):,} {one}s are longer than {most} tokens and left out")
    if not kept:
        raise UserError(
            f"{name}: no {one} of at most {most} tokens, {which} (the longest has {max(lengths, default=0)}); "
            f"give more {one}s or raise {name}.train.sequence_length"
        )
    return kept


def _pairs(
    ids: Sequence[int], parts: Sequence[tuple[np.ndarray, ...]], settings: PreferenceConfig, sequence_length: int
) -> Pairs:
    lengths = np.array([len(part[0]) for part in parts])
    inputs, targets, positions, weights, branches = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(
        *(array.astype(np.int32) for array in (inputs, targets, positions)),
        weights.astype(np.float32),
        branches.astype(np.int32),
        np.cumsum([0, *lengths]),
        np.array(ids, np.uint64),
        np.zeros((len(ids), MISMATCHED if settings.kind == "kto" else BAD), np.float32),
        settings,
        int(sequence_length // lengths.min()),
    )


def _laid_out(prompt: list[int], answers: dict[int, list[int]]) -> tuple[np.ndarray, ...]:
    """Inputs, targets, positions, weights and branches of a prompt and its answers by branch."""
    before = len(prompt) - 1
    parts = [(prompt[:-1], prompt[1:], np.arange(before), 0.0, 0)]
    for branch, answer in answers.items():
        parts.append(([prompt[-1], *answer[:-1]], answer, before + np.arange(len(answer)), 1.0, branch))
    columns = [np.concatenate([np.asarray(part[n], np.int64) for part in parts]) for n in range(3)]
    sizes = [len(part[0]) for part in parts]
    return *columns, *(np.repeat([part[n] for part in parts], sizes) for n in (3, 4))
