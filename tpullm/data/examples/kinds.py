"""The four kinds of examples: conversations, preferences, judged answers, prompts.

Each has a `group`, a number by hash. Examples of one group are never on both sides of what is held out.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tpullm.tokenizer.chat_template import Message, Messages, Tools


@dataclass(frozen=True)
class Conversation:
    """A conversation with at least one turn of the assistant, to learn its answers from.

    Args:
        messages: the turns.
        tools: the functions that the assistant may call, as JSON schemas; None if there are none.
    """

    messages: Messages
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the whole conversation, so its copies stay together."""
        return identity(self.messages, self.tools)


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers, of which one was preferred.

    Args:
        prompt: the turns before the answers. The last one is not the assistant's.
        chosen, rejected: the answers, one turn of the assistant each. They differ.
        tools: as in `Conversation`.
    """

    prompt: Messages
    chosen: Message
    rejected: Message
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the prompt, so all pairs of one prompt stay together."""
        return identity(self.prompt)


@dataclass(frozen=True)
class Judged:
    """A prompt and an answer that somebody found good or bad.

    Args:
        prompt, tools: as in `Preference`.
        answer: one turn of the assistant.
        good: the judgement.
    """

    prompt: Messages
    answer: Message
    good: bool
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the prompt."""
        return identity(self.prompt)


@dataclass(frozen=True)
class Prompt:
    """A prompt alone, which the model answers and a reward judges.

    Args:
        messages: the turns; the last one is not the assistant's.
        fields: what else the example says, for the reward. All of it is JSON.
        tools: as in `Conversation`.
    """

    messages: Messages
    fields: dict[str, Any] = field(default_factory=dict)
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the prompt."""
        return identity(self.messages)


Example = Conversation | Preference | Judged | Prompt
E = TypeVar("E", Conversation, Preference, Judged, Prompt)


def identity(messages: Messages, tools: Tools = None) -> int:
    """The first 8 bytes of the SHA-256 of a conversation, as an integer."""
    said: list = []
    for message in messages:
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        said.append([message["role"], message["content"], *([more] if more else [])])
    text = json.dumps([*said, *([tools] if tools else [])], ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split(examples: Sequence[E], held_out_fraction: float) -> tuple[list[E], list[E]]:
    """Training and held-out examples, by the hash of each group alone: neither place nor number matters."""
    parts: tuple[list[E], list[E]] = ([], [])
    for example in examples:
        parts[example.group / 2**64 < held_out_fraction].append(example)
    return parts
