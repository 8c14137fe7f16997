"""Answers in rows: several answers share the computation of their prompt, in tuning on preferences and on rewards.

In a row stand the tokens of the prompt but its last one, then the answers one after the other. Each answer begins with
the last token of the prompt, which predicts its first token. Its positions go on from the prompt, and a token sees its
own answer and the prompt, not the other answers: segment ids say so (`data.batch.BRANCH`).

A preference is a prompt with the liked answer and the disliked one. A judged answer stands beside an answer to another
prompt: from such mismatched ones KTO estimates how far the model has moved. Each answer keeps its mismatched one, so
the log-probabilities of both under the model that tuning starts from are computed once. Answers that the model gave
itself are any number to a prompt, and their tokens are those that were sampled: no text is tokenized again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.data import packing
from tpullm.data.batch import BRANCH, AnswerBatch, Lengths, PairBatch, Segments, flat_ranges
from tpullm.data.conversations import fitting
from tpullm.recipe.schema import PolicyConfig, PreferenceConfig

# The branch of an answer: liked, disliked, and (of judged answers) one to another prompt.
GOOD, BAD, MISMATCHED = 1, 2, 3


@dataclass(frozen=True)
class Branches:
    """Prompts with their answers, one after the other. A token that is read and the next one are a prediction.

    Args:
        inputs, targets, positions: int32 [all predictions].
        branches: int32 [all predictions]: 0 the prompt, else the branch of the answer.
        offsets: int64 [prompts + 1], where each prompt begins.
    """

    inputs: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> Lengths:
        """One more than the predictions of each prompt with its answers: as of a document."""
        return Lengths.of(np.diff(self.offsets) + 1)

    def rows(self, segments: Segments, batch_size: int, sequence_length: int) -> tuple[np.ndarray, tuple]:
        """The predictions of some prompts with their answers in rows, `[B, T]`; a row without any is padding.

        Args:
            segments: of them `documents` are prompts.

        Returns:
            The place of each prediction among all, -1 on padding; and inputs, targets, segment ids and positions.
        """
        lengths = segments.lengths
        where = flat_ranges(self.offsets[segments.documents], lengths)
        in_row = np.bincount(segments.rows)
        numbers = np.repeat(flat_ranges(np.ones_like(in_row), in_row), lengths)  # of the prompt in its row
        real = np.arange(sequence_length) < np.bincount(segments.rows, lengths, batch_size)[:, None]
        segment_ids = (numbers + BRANCH * self.branches[where]).astype(np.int32)
        columns = (where, self.inputs[where], self.targets[where], segment_ids, self.positions[where])
        arrays = [np.full(real.shape, -1 if column is where else 0, column.dtype) for column in columns]
        for array, column in zip(arrays, columns, strict=True):
            array[real] = column
        return arrays[0], tuple(arrays[1:])


def branches(of_prompts: Iterable[tuple[list[int], Mapping[int, list[int]]]]) -> Branches:
    """Prompts, each with its answers by branch."""
    parts, offsets = [], [0]
    for prompt, answers in of_prompts:
        before = len(prompt) - 1
        parts.append((prompt[:-1], prompt[1:], np.arange(before), np.zeros(before)))
        for branch, answer in answers.items():
            places = before + np.arange(len(answer))
            parts.append(([prompt[-1], *answer[:-1]], answer, places, np.full(len(answer), branch)))
        offsets.append(offsets[-1] + before + sum(map(len, answers.values())))
    columns = (np.concatenate([np.asarray(each, np.int32) for each in column]) for column in zip(*parts, strict=True))
    return Branches(*columns, np.array(offsets))


@dataclass(frozen=True)
class Pairs(Branches):
    """Tokenized preferences or judged answers; it implements `tpullm.data.batch.Documents`.

    Args:
        ids: uint64 [pairs], the first 8 bytes of the hash of each prompt.
        references: float32 [pairs, branches], the log-probability of each answer under the model that tuning starts
            from, in nats; filled before training.
        settings: of the objective.
        sequences: the most pairs of a row.
    """

    ids: np.ndarray
    references: np.ndarray
    settings: PreferenceConfig
    sequences: int

    def build(self, segments: Segments, batch_size: int, sequence_length: int) -> PairBatch:
        """The batch of some pairs; a row without any is padding."""
        where, columns = self.rows(segments, batch_size, sequence_length)
        branches = np.where(where < 0, 0, self.branches[where])
        begins = (branches > 0) & (np.diff(columns[2], axis=1, prepend=0) != 0)
        references = np.zeros(where.shape, np.float32)
        pairs = np.searchsorted(self.offsets, where[begins], side="right") - 1
        references[begins] = self.references[pairs, branches[begins] - 1]
        return PairBatch(*columns, (branches > 0).astype(np.float32), references, self.settings, self.sequences)

    def identities(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number and the id of each pair."""
        return documents, self.ids[documents]


def tokenized(found: Sequence[tuple[int, tuple]], settings: PreferenceConfig, length: int, name: str) -> Pairs:
    """The pairs that fit a row; the log counts the others.

    Args:
        found: the hash of the prompt of each, and the ids of the prompt, the preferred answer and the other one.
        name: the stage, for errors.

    Raises:
        UserError: no pair is left.
    """
    lengths = [len(prompt) - 1 + len(chosen) + len(rejected) for _, (prompt, chosen, rejected) in found]
    kept = fitting(found, lengths, length, name, "pair", ", both answers together")
    of_prompts = [(prompt, {GOOD: chosen, BAD: rejected}) for _, (prompt, chosen, rejected) in kept]
    return _pairs_of_answers([number for number, _ in kept], of_prompts, settings, length)


def judged(found: Sequence[tuple], settings: PreferenceConfig, length: int, name: str) -> Pairs:
    """The judged answers that fit a row, each beside an answer to another prompt, which may be cut off.

    Args:
        found: of each the hash of the prompt, the ids of both, and whether the answer is good.
        name: the stage, for errors.

    Raises:
        UserError: no answer is left.
    """
    # The answer with its prompt, and a token at least of the mismatched one.
    lengths = [len(prompt) + len(answer) for _, prompt, answer, _ in found]
    kept = fitting(found, lengths, length, name, "judged answer", ", with its prompt")
    ids, of_prompts = [number for number, *_ in kept], []
    for (_, prompt, answer, good), other in zip(kept, mismatched_examples(ids), strict=True):
        room = length - (len(prompt) - 1 + len(answer))
        of_prompts.append((prompt, {GOOD if good else BAD: answer, MISMATCHED: kept[other][2][:room]}))
    return _pairs_of_answers(ids, of_prompts, settings, length)


def mismatched_examples(prompts: Sequence[int]) -> np.ndarray:
    """For each example the number of another one, every number once.

    Args:
        prompts: hashes. The other example has another prompt, unless more than half of the examples have the same.
    """
    order = np.argsort(np.array(prompts, np.uint64), kind="stable")
    _, counts = np.unique(np.array(prompts, np.uint64), return_counts=True)
    found = np.empty_like(order)
    found[order] = np.roll(order, -counts.max())
    return found


def _pairs_of_answers(ids: Sequence[int], prompts: Sequence[tuple], settings: PreferenceConfig, length: int) -> Pairs:
    laid = branches(prompts)
    references = np.zeros((len(ids), MISMATCHED if settings.kind == "kto" else BAD), np.float32)
    most = int(length // laid.lengths.predictions.min())
    return Pairs(**vars(laid), ids=np.array(ids, np.uint64), references=references, settings=settings, sequences=most)


def rows_needed(prompts: int, answers: int, longest_prompt: int, longest_answer: int, sequence_length: int) -> int:
    """How many rows always suffice for the answers to `prompts` prompts, whatever their lengths."""
    in_row = (sequence_length - (longest_prompt - 1)) // longest_answer
    return prompts * -(-answers // in_row)


def answers_in_rows(
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    advantages_GN: np.ndarray,
    settings: PolicyConfig,
    sequence_length: int,
    possible_rows: Sequence[int],
) -> tuple[AnswerBatch, np.ndarray]:
    """The batch of some answers, and the place of each of their tokens.

    Args:
        prompts: the ids of G prompts.
        answers: of each, the ids of N answers; none is empty.
        advantages_GN: of each answer.
        possible_rows: ascending; the batch has the smallest number of rows that holds them.

    Returns:
        The batch, and int64 `[tokens, 2]`: row and column of each predicted token of the answers, prompt by prompt and
        answer by answer.
    """
    pieces, room = [], 0  # a prompt with some of its answers, in their order; and the room that is left in the last one
    for group, prompt in enumerate(prompts):
        for number, answer in enumerate(answers[group]):
            if not number or len(answer) > room:
                pieces.append((group, []))
                room = sequence_length - (len(prompt) - 1)
            pieces[-1][1].append(number)
            room -= len(answer)
    laid = branches(
        (prompts[group], {branch: answers[group][number] for branch, number in enumerate(part, start=1)})
        for group, part in pieces
    )
    packed = packing.pack(laid.lengths, sequence_length, seed=0, moving=False)
    rows = next(rows for rows in possible_rows if rows >= packed.rows)
    segments = packed.segments(np.arange(packed.rows), np.zeros(packed.rows, np.int64))
    where, columns = laid.rows(segments, rows, sequence_length)
    # Of each token the number of its answer among all, from 1; 0 of prompts and, at the end, of padding.
    parts = [(1 + group * len(answers[group]) + n, len(answers[group][n])) for group, part in pieces for n in part]
    own = np.zeros(len(laid.branches) + 1, np.int64)
    own[:-1][laid.branches > 0] = np.repeat(*np.transpose(parts))
    own_BT = own[where]
    is_answer = own_BT > 0
    numbers = np.cumsum(is_answer & (np.diff(own_BT, axis=1, prepend=0) != 0), axis=1) * is_answer
    batch = AnswerBatch(
        *columns,
        weights=is_answer.astype(np.float32),
        answers=numbers.astype(np.int32),
        advantages=np.append(0.0, advantages_GN)[own_BT].astype(np.float32),
        old=np.zeros((rows, sequence_length), np.float32),
        settings=settings,
        sequences=1 << (int(numbers.max()) - 1).bit_length(),  # a power of two, so that few programs are compiled
        first=True,
    )
    return batch, np.argwhere(is_answer)[np.argsort(own_BT[is_answer], kind="stable")]
