"""Examples as tokens, by the chat template: conversations for supervised tuning, and answers to a prompt.

The tokens of a prompt and its answer are those of the whole conversation, tokenized at once. So they are what the model
sees in tuning on conversations, and what it is asked with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tpullm.data.batch import Lengths, flat_ranges
from tpullm.data.examples import Conversation, Judged, Preference, identity
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.chat_template import EarlierAnswersChangeError, Message, Messages

E = TypeVar("E")


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
    def lengths(self) -> Lengths:
        """Tokens of each conversation."""
        return Lengths.of(np.diff(self.offsets))

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of `[start, start + count)` of each conversation, concatenated."""
        where = flat_ranges(self.offsets[documents] + starts, counts)
        return self.tokens[where], self.token_weights[where]

    def identities(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number and the id of each conversation."""
        return documents, self.ids[documents]


def tokenize(talks: Sequence[Conversation], tokenizer: Tokenizer, sequence_length: int, name: str) -> Conversations:
    """Apply the chat template, and cut conversations of more than `sequence_length` predictions into their exchanges.

    An exchange that is longer still is dropped; the log counts them.

    Raises:
        UserError: no conversation is left.
    """
    made, apart, long = [], False, 0
    for talk in talks:
        messages, tools = talk.messages, talk.tools
        try:
            try:
                whole = (talk.group, *tokenizer.chat_template(messages, tools=tools))
                parts = _exchanges(messages) if len(whole[1]) - 1 > sequence_length else []
                parts = parts if len(parts) > 1 else []
                long += bool(parts)
                cut = [(identity(part, tools), *tokenizer.chat_template(part, tools=tools)) for part in parts]
                made += cut or [whole]
            except EarlierAnswersChangeError:  # then each answer ends a conversation of its own
                ends = [n for n, message in enumerate(messages, start=1) if message["role"] == "assistant"]
                parts = [messages[:end] for end in ends]
                made += [(identity(part, tools), *tokenizer.last_answer(part, tools)) for part in parts]
                apart = apart or len(parts) > 1
        except UserError as error:
            begins = messages[0]["content"][:20]
            raise UserError(f"{name}: the conversation that begins with {begins!r}: {error}") from None
    if long:
        say(f"{name}: {long:,} conversations are longer than {sequence_length} tokens and cut into their exchanges")
    if apart:
        say(f"{name}: the chat template shows earlier answers otherwise, so each answer is learned in a row of its own")
    kept = fitting(made, [len(ids) - 1 for _, ids, _ in made], sequence_length, name, "conversation")
    return Conversations(
        tokens=np.concatenate([np.array(ids, np.int32) for _, ids, _ in kept]),
        token_weights=np.concatenate([np.array(weights, np.float32) for _, _, weights in kept]),
        offsets=np.cumsum([0, *(len(ids) for _, ids, _ in kept)]),
        ids=np.array([number for number, _, _ in kept], np.uint64),
    )


def _exchanges(messages: Messages) -> list[Messages]:
    """A conversation cut before each question that follows an answer, each time with what the system says."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    found, before = [[*system]], ""
    for message in messages[len(system) :]:
        if message["role"] == "user" and before == "assistant":
            found.append([*system])
        found[-1].append(message)
        before = message["role"]
    return [part for part in found if any(message["role"] == "assistant" for message in part)]


def fitting(found: Sequence[E], lengths: Sequence[int], most: int, name: str, what: str, which: str = "") -> list[E]:
    """The examples of at most `most` tokens, which are `lengths` long; the log counts the others.

    Args:
        name: the stage, for errors.
        what: an example, in words.
        which: tokens are counted, in words.

    Raises:
        UserError: none is left.
    """
    kept = [each for each, length in zip(found, lengths, strict=True) if length <= most]
    if skipped := len(found) - len(kept):
        say(f"{name}: {skipped:,} of {len(found):,} {what}s are longer than {most} tokens and left out")
    if not kept:
        raise UserError(
            f"{name}: no {what} of at most {most} tokens{which} (the longest has {max(lengths, default=0)});"
            f" give more {what}s or raise {name}.train.sequence_length"
        )
    return kept


def preference_ids(preference: Preference, tokenizer: Tokenizer, name: str) -> tuple[list[int], ...]:
    """The ids of a preference: of the prompt, the preferred answer and the other one, with their end tokens.

    Args:
        name: the stage or the file, for errors.

    Raises:
        UserError: the template hides where an answer begins or ends, or shows both answers alike.
    """
    asked = preference.prompt
    prompt, chosen = answer_ids(preference, preference.chosen, tokenizer, name)
    before_other, rejected = answer_ids(preference, preference.rejected, tokenizer, name)
    if prompt != before_other:
        raise _error(name, asked, "the chat template shows the prompt otherwise before its other answer")
    if chosen == rejected:
        raise _error(name, asked, "the chat template shows both answers alike, so none is preferred; remove the pair")
    return prompt, chosen, rejected


def answer_ids(example: Preference | Judged, said: Message, tokenizer: Tokenizer, name: str) -> tuple[list[int], ...]:
    """The ids of a prompt and of an answer to it with its end token; it raises what `preference_ids` raises."""
    prompt = example.prompt
    try:
        ids, weights = tokenizer.last_answer([*prompt, said], example.tools)
    except UserError as error:
        raise _error(name, prompt, str(error)) from None
    if 1.0 not in weights:
        raise _error(name, prompt, "the chat template shows nothing of the answer; give another chat_template")
    start, end = weights.index(1.0), len(weights) - weights[::-1].index(1.0)
    if tokenizer.bytes_of(ids[end - 1]):
        hides = f"hides where an answer ends (in {tokenizer.piece(ids[end - 1])!r}, which is no special token)"
        raise _error(name, prompt, f"the chat template {hides}; give another chat_template")
    return ids[:start], ids[start:end]


def _error(name: str, prompt: Messages, what: str) -> UserError:
    return UserError(f"{name}: the prompt that begins with {prompt[0]['content'][:20]!r}: {what}")
