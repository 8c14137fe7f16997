"""Prompts for a stage that learns from rewards: their tokens, and which of them a step answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.data.conversations import fitting
from tpullm.data.examples import Prompt
from tpullm.data.mixture import Order
from tpullm.data.stream import LeavesOut, Placed, seed_for
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompts:
    """Prompts as tokens, which end where an answer begins.

    Args:
        examples: what they are made of, for the rewards.
        ids: the tokens of each.
    """

    examples: Sequence[Prompt]
    ids: Sequence[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(map(len, self.ids))


def tokenized(found: Sequence[Prompt], tokenizer: Tokenizer, most: int, name: str) -> Prompts:
    """The prompts of at most `most` tokens; the log counts the others.

    Args:
        name: the stage, for errors.

    Raises:
        UserError: the chat template can't show one, or none is left.
    """
    ids = []
    for example in found:
        try:
            ids.append(tokenizer.chat_template(example.messages, add_generation_prompt=True, tools=example.tools)[0])
        except UserError as error:
            begins = str(example.messages[0]["content"])[:20]
            raise UserError(f"{name}: the prompt that begins with {begins!r}: {error}") from None
    shortest = min(map(len, ids), default=0)
    if shortest > most or not ids:
        raise UserError(
            f"{name}: no prompt of at most {most} tokens (the shortest has {shortest}), since a row also has an "
            f"answer; give others, raise {name}.train.sequence_length, or lower {name}.policy.tokens"
        )
    kept = fitting(range(len(ids)), list(map(len, ids)), most, name, "prompt")
    return Prompts([found[number] for number in kept], [ids[number] for number in kept])


class PromptStream(LeavesOut):
    """Which prompts are answered in a step: all of them in each epoch, in a new order. The step is the whole state."""

    def __init__(self, prompts: Prompts, each: int, seed: int, updates: int = 1):
        """Take `each` prompts a step; the steps of `updates` in a row take the same ones."""
        self._prompts, self._each, self._updates = prompts, each, updates
        self._order = Order([len(prompts)], [1.0], [seed_for(seed, "prompts", "shuffle")])

    def at(self, step: int) -> np.ndarray:
        """The numbers of the prompts of a step (from 0), int64 `[each]`."""
        number = int(self._numbers(np.array(step))) // self._updates
        return self._order.at(number * self._each + np.arange(self._each))[2]

    def batches(self, start: int, stop: int, workers: int = 0) -> Iterator[np.ndarray]:
        """Those of the steps from `start` to `stop - 1`."""
        return map(self.at, range(start, stop))

    def documents_at(self, step: int) -> list[Placed]:
        """As of `Stream`: the prompts, each in a row of its own."""
        examples, ids = self._prompts.examples, self._prompts.ids
        return [
            Placed("prompts", number, f"{examples[number].group:016x}", 0, len(ids[number]), row)
            for row, number in enumerate(self.at(step).tolist())
        ]
