"""Answers that a model gave itself, packed into rows: a prompt stands in a row once, and its answers after it.

It is the layout of preferences (`answer_pairs.py`), with any number of answers. The tokens are those that were sampled:
no text is tokenized again.
"""

from collections.abc import Sequence

import numpy as np

from tpullm.data import packing
from tpullm.data.batch import BRANCH, AnswerBatch
from tpullm.recipe.schema import PolicyConfig


def rows_needed(prompts: int, answers: int, longest_prompt: int, longest_answer: int, sequence_length: int) -> int:
    """Rows that hold the answers to so many prompts however long they are."""
    in_row = (sequence_length - (longest_prompt - 1)) // longest_answer
    return prompts * -(-answers // in_row)


def laid_out(
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
    pieces = [
        (group, part)
        for group, ids in enumerate(prompts)
        for part in _parts(len(ids) - 1, [len(answer) for answer in answers[group]], sequence_length)
    ]
    sizes = [len(prompts[group]) - 1 + sum(len(answers[group][n]) for n in part) for group, part in pieces]
    packed = packing.pack(np.array(sizes) + 1, sequence_length, seed=0, moving=False)
    rows = next(rows for rows in possible_rows if rows >= packed.rows)
    segments = packed.segments(np.arange(packed.rows), np.zeros(packed.rows, np.int64))
    shape = (rows, sequence_length)
    inputs, targets, segment_ids, positions, numbers = (np.zeros(shape, np.int32) for _ in range(5))
    weights, advantages = (np.zeros(shape, np.float32) for _ in range(2))
    places: dict[tuple[int, int], tuple[int, int]] = {}
    used, said, prompted = (np.zeros(rows, np.int64) for _ in range(3))
    for document, row in zip(segments.documents.tolist(), segments.rows.tolist(), strict=True):
        group, part = pieces[document]
        prompt, prompted[row] = prompts[group], prompted[row] + 1
        before = len(prompt) - 1
        for branch, answer in enumerate([None, *part]):
            read, follow = prompt[:-1], prompt[1:]
            if answer is not None:
                follow = answers[group][answer]
                read = [prompt[-1], *follow[:-1]]
            where = row, slice(used[row], used[row] + len(read))
            inputs[where], targets[where] = read, follow
            segment_ids[where] = prompted[row] + BRANCH * branch
            positions[where] = np.arange(len(read)) + (before if branch else 0)
            if answer is not None:
                said[row] += 1
                numbers[where], weights[where], advantages[where] = said[row], 1.0, advantages_GN[group, answer]
                places[group, answer] = row, int(used[row])
            used[row] += len(read)
    # A power of two, so that few programs are compiled.
    sequences = 1 << (int(said.max()) - 1).bit_length()
    none = np.zeros(shape, np.float32)
    batch = AnswerBatch(
        *(inputs, targets, segment_ids, positions, weights, numbers, advantages, none, settings, sequences, True)
    )
    order = [(places[g, n], len(answer)) for g, of_prompt in enumerate(answers) for n, answer in enumerate(of_prompt)]
    of_tokens = [(row, start + n) for (row, start), length in order for n in range(length)]
    return batch, np.array(of_tokens, np.int64)


def _parts(before: int, lengths: Sequence[int], most: int) -> list[list[int]]:
    """The answers to a prompt in as few parts as hold them in their order, each with the prompt in at most `most`."""
    parts, room = [], 0
    for number, length in enumerate(lengths):
        if length > room:
            parts.append([])
            room = most - before
        parts[-1].append(number)
        room -= length
    return parts
