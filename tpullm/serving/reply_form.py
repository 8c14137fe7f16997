"""What completions and chat have in common: what engines are asked, and the envelope of the answer."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tpullm.engine.request import Request, Token
from tpullm.serving.answer_text import Part
from tpullm.serving.request_fields import SEEDS, Asked
from tpullm.serving.served_model import ServedModel
from tpullm.serving.token_masks import Mask

LEAST_LOG_PROBABILITY = -9999.0  # nats, for tokens that cannot be: JSON has no infinity


class Text(Protocol):
    """Makes the parts of an answer out of its tokens."""

    def add(self, token: Token) -> Part:
        """The part that comes with a token."""


@dataclass(frozen=True)
class Work:
    """What engines do for a request.

    Args:
        model: that answers.
        asked: how.
        prompts: the ids of each prompt.
        tokens: the most tokens of an answer.
        top: how many likely tokens are told with each one.
        masks: makes `Request.allowed`, which each answer has for itself; None allows all.
        told: whether the tokens of the prompt are told as well.
        client: who asks.
    """

    model: ServedModel
    asked: Asked
    prompts: Sequence[list[int]]
    tokens: int
    top: int = 0
    masks: Sequence[Mask] = ()
    client: str = ""
    told: bool = False

    def requests(self) -> list[Request]:
        """One for each answer: all answers to the first prompt come first."""
        prompts = [ids for ids in self.prompts for _ in range(self.asked.choices)]
        return [
            Request(
                ids=tuple(ids),
                tokens=self.tokens,
                sampling=self.asked.sampling,
                seed=(self.asked.seed + number) % SEEDS,
                stop_ids=tuple(self.model.tokenizer.stop_ids),
                top=self.top,
                bias=self.asked.bias,
                presence_penalty=self.asked.presence_penalty,
                frequency_penalty=self.asked.frequency_penalty,
                told=len(ids) - self._untold(ids),
                allowed=self.masks[number] if self.masks else None,
                client=self.client,
            )
            for number, ids in enumerate(prompts)
        ]

    def tokens_told(self) -> int:
        """The number of tokens of the prompts that engines tell, for all answers."""
        return self.asked.choices * sum(len(ids) - self._untold(ids) for ids in self.prompts)

    def untold(self, index: int) -> list[int]:
        """The first token of the text of an answer if it follows nothing, so that no engine tells it."""
        ids = self.prompts[index // self.asked.choices]
        return [] if self._begins(ids) else ids[: self._untold(ids)]

    def _untold(self, ids: list[int]) -> int:
        """The number of tokens of a prompt that engines don't tell."""
        if not self.told:
            return len(ids)
        return len(self.model.tokenizer.begin) if self._begins(ids) else 1

    def _begins(self, ids: list[int]) -> bool:
        begin = self.model.tokenizer.begin
        return bool(begin) and ids[: len(begin)] == begin


class Reply(Protocol):
    """The form of an answer. `kind` and `chunk_kind` are its `object`, whole and as a part of a stream."""

    work: Work
    prefix: str
    kind: str
    chunk_kind: str

    def text(self, index: int) -> Text:
        """Makes the text of one answer."""

    def begin(self, index: int) -> dict[str, Any] | None:
        """The choice that a stream begins with; None if there is nothing to say."""

    def delta(self, index: int, part: Part) -> dict[str, Any]:
        """A choice of a stream."""

    def choice(self, index: int, whole: Part) -> dict[str, Any]:
        """A choice of a whole answer."""


@dataclass
class Envelope:
    """What stands around the choices.

    Attributes:
        written: the number of tokens that engines have told.
    """

    reply: Reply
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    written: int = 0

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream. With `include_usage` each has the field; the last, without choices, the numbers."""
        usage = {"usage": None if choices else self.usage()} if self.reply.work.asked.usage else {}
        return {**self._head(self.reply.chunk_kind), "choices": choices, **usage}

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole answer."""
        return {**self._head(self.reply.kind), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """The numbers of tokens; each prompt counts once."""
        prompt = sum(map(len, self.reply.work.prompts))
        new = self.written - self.reply.work.tokens_told()
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.reply.work.model.name
        return {"id": f"{self.reply.prefix}-{self.name}", "object": kind, "created": self.created, "model": model}


def log_probability(value: float) -> float:
    """As JSON can hold it."""
    return max(float(value), LEAST_LOG_PROBABILITY)
