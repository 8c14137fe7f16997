"""A model as clients see it: its name, and what its tokenizer makes of their prompts."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from tpullm.serving.refusal import Refusal
from tpullm.serving.token_masks import Grammars
from tpullm.system.errors import UserError
from tpullm.tokenizer.chat_template import Messages, Tools

if TYPE_CHECKING:
    from tpullm.engine.session import Session


class ServedModel:
    """A model under a name. Its methods are called by one thread at a time: a chat template has one child.

    Args:
        longest: tokens of the longest text.
    """

    def __init__(self, name: str, session: "Session", longest: int):
        self.name, self.tokenizer, self.talks = name, session.tokenizer, session.talks
        self.context_length = longest
        self.vocabulary_size = session.architecture.config.vocabulary_size

    @cached_property
    def grammars(self) -> Grammars:
        """What masks tokens so that the text has a form."""
        return Grammars(self.tokenizer, self.vocabulary_size)

    @cached_property
    def _most_bytes(self) -> int:
        """No text with more bytes fits the context; so it is refused before it is split, which takes time."""
        return int(np.max(self.tokenizer.bytes_per_token())) * self.context_length

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text to continue.

        Raises:
            Refusal: it is too long, or empty for a model that has no token to begin with.
        """
        self.check_length(text)
        ids = [*self.tokenizer.begin, *self.tokenizer.encode(text)]
        if not ids:
            raise Refusal("prompt: is empty, and this model has no token that begins a text", param="prompt")
        return self.fitting(ids)

    def chat_ids(self, messages: Messages, tools: Tools) -> list[int]:
        """The ids of a conversation, up to where the model answers.

        Raises:
            Refusal: it is too long, or the chat template refuses it.
        """
        for message in messages:
            self.check_length(message.get("content") or "")
        try:
            return self.fitting(self.tokenizer.chat_template(messages, add_generation_prompt=True, tools=tools)[0])
        except UserError as error:
            raise Refusal(str(error), param="messages") from None

    def fitting(self, ids: list[int]) -> list[int]:
        """The ids, if they leave room for an answer; else `Refusal`."""
        if len(ids) >= self.context_length:
            raise self._too_long(f"{len(ids):,} tokens")
        return ids

    def check_length(self, text: str) -> None:
        """Refuse a text that can't fit the context, without splitting it."""
        if len(text.encode()) > self._most_bytes:
            raise self._too_long(f"{len(text):,} characters")

    def _too_long(self, count: str) -> Refusal:
        context = f"the model's context holds {self.context_length:,} with the answer"
        return Refusal(f"the prompt has {count}, and {context}; shorten it", code="context_length_exceeded")


def served_names(paths: Sequence[str]) -> list[str]:
    """What models are called: the last folder of each path, or the whole path where another ends in the same."""
    last = [PurePosixPath(path.rstrip("/")).name or path for path in paths]
    return [name if last.count(name) == 1 else path for name, path in zip(last, paths, strict=True)]
