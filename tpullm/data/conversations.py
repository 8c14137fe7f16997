"""Conversations for supervised tuning: tokenized by the chat template, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpullm.data.batch import flat_ranges
from tpullm.data.conversation_files import identity
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.chat_template import EarlierAnswersChangeError, Messages


@dataclass(frozen=True)
class Conversations:
    """Tokenized conversations; it implements `tpullm.data.batch.Documents`.

    Args:
        tokens: int32 [all tokens], the conversations concatenated.
        token_weights: float32 [all tokens], 1 on what the assistant says.
        offsets: int64 [conversations + 1], where each conversation begins.
        ids: uint64 [conversations], the first 8 bytes of the hash of each conversation.
    """

    tokens: np.ndarray
    token_weights: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, int64."""
        return np.diff(self.offsets)

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of `[start, start + count)` of each conversation, concatenated."""
        where = flat_ranges(self.offsets[documents] + starts, counts)
        return self.tokens[where], self.token_weights[where]


def tokenize(conversations: Sequence[Messages], tokenizer: Tokenizer, sequence_length: int, name: str) -> Conversations:
    """Apply the chat template, and drop conversations of more than `sequence_length` predictions; the log counts them.

    Raises:
        UserError: no conversation is left.
    """
    made = [example for messages in conversations for example in _shown(messages, tokenizer, name)]
    if len(made) > len(conversations):
        say(f"{name}: the chat template shows earlier answers otherwise, so each answer is learned in a row of its own")
    kept = [conversation for conversation in made if len(conversation[1]) <= sequence_length + 1]
    if skipped := len(made) - len(kept):
        say(f"{name}: {skipped:,} of {len(made):,} conversations are longer than {sequence_length} tokens and left out")
    if not kept:
        longest = max((len(ids) for _, ids, _ in made), default=0)
        raise UserError(
            f"{name}: no conversation of at most {sequence_length} tokens (the longest has {longest});"
            f" give more conversations or raise {name}.train.sequence_length"
        )
    return Conversations(
        tokens=np.concatenate([np.array(ids, np.int32) for _, ids, _ in kept]),
        token_weights=np.concatenate([np.array(weights, np.float32) for _, _, weights in kept]),
        offsets=np.cumsum([0, *(len(ids) for _, ids, _ in kept)]),
        ids=np.array([number for number, _, _ in kept], np.uint64),
    )


def _shown(messages: Messages, tokenizer: Tokenizer, name: str) -> list[tuple[int, list[int], list[float]]]:
    """Identity, ids and weights of a conversation.

    If the template shows earlier answers otherwise than the last one, each answer ends a conversation of its own.
    """
    try:
        try:
            return [(identity(messages), *tokenizer.chat_template(messages))]
        except EarlierAnswersChangeError:
            ends = [n for n, message in enumerate(messages, start=1) if message["role"] == "assistant"]
            parts = [messages[:end] for end in ends]
            return [(identity(part), *tokenizer.last_answer(part)) for part in parts]
    except UserError as error:
        begins = messages[0]["content"][:20]
        raise UserError(f"{name}: the conversation that begins with {begins!r}: {error}") from None
