"""A model as clients see it: its name, and what its tokenizer makes of their prompts."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tpullm.serving.call_forms import Calls
from tpullm.serving.refusal import Refusal
from tpullm.serving.token_masks import Grammars
from tpullm.system.errors import UserError
from tpullm.tokenizer.chat_template import Messages, Tools, without_old_turns

if TYPE_CHECKING:
    from tpullm.engine.session import Session


PIECE_CHARACTERS = 4_096  # of a text, split at once to find whether it is too long
CUT_TOKENS = 16
TOO_LONG = "context_length_exceeded"


class ServedModel:
    """A model under a name. Its methods are called by one thread at a time: a chat template has one child.

    Args:
        longest: tokens of the longest text.
        base: the name of the model before its tuning, if that is served too.
        questions: that it is known to answer.
        identity: of what is served: it differs from that of another model of this name.
        attention: the tokens of a text and their attention weights `[L, N, T, T]`; None: they can't be computed here.

    Attributes:
        takes_system: whether its chat template shows messages of the system.
    """

    def __init__(
        self,
        name: str,
        session: "Session",
        longest: int,
        base: str = "",
        questions: Sequence[str] = (),
        identity: str = "",
        attention: Callable[[str], tuple[list[str], Any]] | None = None,
    ):
        self.name, self.tokenizer, self.talks = name, session.tokenizer, session.talks
        self.context_length, self.base, self.questions = longest, base, questions
        self.identity, self.attention, self.config = identity, attention, session.architecture.config
        self.vocabulary_size = self.config.vocabulary_size
        self.takes_system = self.tokenizer.has_template and self._shows_system()

    def _shows_system(self) -> bool:
        messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}]
        try:
            shown = [self.tokenizer.chat_template(messages[n:], add_generation_prompt=True)[0] for n in (0, 1)]
        except UserError:
            return False
        return shown[0] != shown[1]

    @cached_property
    def grammars(self) -> Grammars:
        """What masks tokens so that the text has a form."""
        return Grammars(self.tokenizer, self.vocabulary_size)

    @cached_property
    def calls(self) -> Calls:
        """How it is shown tools, and how it calls them."""
        return Calls(self.tokenizer)

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
        self.check_length(*(message.get("content") or "" for message in messages), json.dumps(tools or ""))
        if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            messages, tools = self.calls.shown(messages, tools)
        try:
            return self.fitting(self.tokenizer.chat_template(messages, add_generation_prompt=True, tools=tools)[0])
        except UserError as error:
            told = str(error)
            if folder := getattr(self.tokenizer, "folder", None):  # of a published one; where it is concerns no client
                told = told.replace(str(folder), self.name)
            raise Refusal(told, param="messages") from None

    def fitted_chat_ids(self, messages: Messages, tools: Tools, tokens: int) -> tuple[list[int], int]:
        """As `chat_ids`, without the oldest turns if these leave no room for `tokens`; and how many are left out."""

        def tokens_of(kept: Messages) -> float:
            try:
                return len(self.chat_ids(kept, tools))
            except Refusal as refusal:
                if refusal.code != TOO_LONG:
                    raise
                return math.inf

        kept, left_out = without_old_turns(messages, tokens_of, self.context_length, tokens)
        return self.chat_ids(kept, tools), left_out

    def fitting(self, ids: list[int]) -> list[int]:
        """The ids, if they leave room for an answer; else `Refusal`."""
        if len(ids) >= self.context_length:
            raise self._too_long(f"{len(ids):,} tokens")
        return ids

    def check_length(self, *texts: str) -> None:
        """Refuse texts that can't fit the context together, and split little more of them than would fit.

        A piece of a text has at most `CUT_TOKENS` more tokens than it has within its text.
        """
        characters, found = sum(map(len, texts)), 0
        if sum(len(text.encode()) for text in texts) <= self.context_length:  # a token has at least a byte
            return
        for piece in chain.from_iterable(map(_pieces, texts)):
            found += max(0, len(self.tokenizer.encode(piece)) - CUT_TOKENS)
            if found > self.context_length:
                raise self._too_long(f"{characters:,} characters")

    def _too_long(self, count: str) -> Refusal:
        context = f"the model's context holds {self.context_length:,} with the answer"
        return Refusal(f"the prompt has {count}, and {context}; shorten it", code=TOO_LONG)


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS))


def served_names(paths: Sequence[str]) -> list[str]:
    """What models are called: the last folder of each path, or the whole path where another ends in the same."""
    last = [PurePosixPath(path.rstrip("/")).name or path for path in paths]
    return [name if last.count(name) == 1 else path for name, path in zip(last, paths, strict=True)]
