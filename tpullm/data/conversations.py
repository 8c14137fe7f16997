"""Conversations for supervised tuning: read, checked, tokenized by the chat template, held in memory."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus import tenki
from tpullm.data.batch import flat_ranges
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.recipe.schema import FinetuneConfig
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.templates import ChangesError
from tpullm.tokenizer.trained import ROLES

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Conversations:
    """Tokenized conversations; it implements `tpullm.data.batch.Documents`.

    Args:
        tokens: int32 [all tokens], one conversation after the other.
        token_weights: float32 [all tokens], 1 on what the assistant says.
        offsets: int64 [conversations + 1], where each begins.
        ids: uint64 [conversations], the first 8 bytes of each one's hash.
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
        """Tokens and their weights, `[start, start + count)` of each conversation, one after the other, flat."""
        where = flat_ranges(self.offsets[documents] + starts, counts)
        return self.tokens[where], self.token_weights[where]


def read(path: Path | str) -> list[Messages]:
    """The conversations of a JSON Lines file: `{"messages": [{"role", "content"}, ...]}` in each line.

    Raises:
        UserError: there is no such file, nothing in it, or a line that is no such conversation (which one is told).
    """
    path = storage.path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of conversations; correct finetune.conversations")
    conversations = []
    with storage.local_copy(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                conversations.append(_parse(line, f"{path}: line {number}"))
    if not conversations:
        raise UserError(f"{path}: no conversation in it; write one JSON object a line")
    return conversations


def read_all(config: FinetuneConfig, seed: int) -> tuple[list[Messages], list[Messages]]:
    """The conversations that a recipe names, to learn from and held out; `tenki` is the built-in questions."""
    learned: list[Messages] = []
    held_out: list[Messages] = []
    for name in config.conversations:
        if name == "tenki":
            questions = tenki.split_questions(config.held_out_fraction, seed)
            parts = [[line["messages"] for line in tenki.conversations(part)] for part in questions]
        else:
            parts = split(read(name), config.held_out_fraction)
        learned, held_out = learned + parts[0], held_out + parts[1]
    return learned, held_out


def split(conversations: Iterable[Messages], held_out_fraction: float) -> tuple[list[Messages], list[Messages]]:
    """Training and held-out conversations, chosen by the hash of each: a repeated one is on the same side."""
    train: list[Messages] = []
    held_out: list[Messages] = []
    for messages in conversations:
        (held_out if identity(messages) / 2**64 < held_out_fraction else train).append(messages)
    return train, held_out


def tokenize(conversations: Sequence[Messages], tokenizer: Tokenizer, sequence_length: int, name: str) -> Conversations:
    """Apply the chat template; conversations of more than `sequence_length` predictions are left out, and that is said.

    Raises:
        UserError: none is left.
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
            " give more conversations or raise finetune.train.sequence_length"
        )
    return Conversations(
        tokens=np.concatenate([np.array(ids, np.int32) for _, ids, _ in kept]),
        token_weights=np.concatenate([np.array(weights, np.float32) for _, _, weights in kept]),
        offsets=np.cumsum([0, *(len(ids) for _, ids, _ in kept)]),
        ids=np.array([number for number, _, _ in kept], np.uint64),
    )


def _shown(messages: Messages, tokenizer: Tokenizer, name: str) -> list[tuple[int, list[int], list[float]]]:
    """Number, ids and weights of a conversation; of each of its beginnings where that changes what is shown."""
    try:
        try:
            return [(identity(messages), *tokenizer.chat_template(messages))]
        except ChangesError:
            ends = [n for n, message in enumerate(messages, start=1) if message["role"] == "assistant"]
            parts = [messages[:end] for end in ends]
            return [(identity(part), *tokenizer.last_answer(part)) for part in parts]
    except UserError as error:
        begins = messages[0]["content"][:20]
        raise UserError(f"{name}: the conversation that begins with {begins!r}: {error}") from None


def identity(messages: Messages) -> int:
    """The first 8 bytes of the SHA-256 of a conversation, as a number."""
    said = json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big")


def _parse(line: bytes, where: str) -> Messages:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8; convert the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg} at column {error.colno}); correct or remove it") from None
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where}: has no messages; write {{"messages": [{{"role": "user", "content": "..."}}, ...]}}')
    for number, message in enumerate(messages, start=1):
        _check_message(message, f"{where}, message {number}")
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where}: no turn of the assistant, so nothing to learn from; add one or remove the line")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, dict):
        raise UserError(f'{where}: is not an object; write {{"role": "user", "content": "..."}}')
    if message.get("role") not in ROLES:
        raise UserError(f"{where}: the role {message.get('role')!r} is unknown; use {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{where}: has no content; write what the {message['role']} says")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise UserError(f"{where}: its content holds half of a surrogate pair (\\ud800 to \\udfff); remove it")
