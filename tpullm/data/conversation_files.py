"""Reads the conversations that a recipe names, JSON Lines files and built-in questions, and holds some out by hash."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tpullm import storage
from tpullm.corpus import domains, question, tenki
from tpullm.corpus.encodings import has_surrogate
from tpullm.corpus.question import Question
from tpullm.errors import UserError
from tpullm.recipe.schema import TuningConfig
from tpullm.tokenizer.chat_template import Messages
from tpullm.tokenizer.trained import ROLES

BUILT_IN = ("tenki", *domains.DOMAINS)  # names of questions that need no file


def read(path: Path | str) -> list[Messages]:
    """The conversations of a JSON Lines file: `{"messages": [{"role", "content"}, ...]}` in each line.

    Raises:
        UserError: the file does not exist, is empty, or has a line that is no conversation; the error names the line.
    """
    path = storage.path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of conversations; correct finetune.NAME.conversations")
    conversations = []
    with storage.local_copy(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                conversations.append(_parse(line, f"{path}: line {number}"))
    if not conversations:
        raise UserError(f"{path}: no conversation in it; write one JSON object a line")
    return conversations


def read_all(config: TuningConfig, seed: int) -> tuple[list[Messages], list[Messages]]:
    """Training and held-out conversations of all that a recipe names: files, `tenki`, and the names of domains."""
    learned: list[Messages] = []
    held_out: list[Messages] = []
    for name in config.conversations:
        if name in BUILT_IN:
            asked = questions(name, config, seed)
            parts = [[line["messages"] for line in question.conversations(part)] for part in asked]
        else:
            parts = split(read(name), config.held_out_fraction)
        learned, held_out = learned + parts[0], held_out + parts[1]
    return learned, held_out


def questions(name: str, config: TuningConfig, seed: int) -> tuple[list[Question], list[Question]]:
    """The built-in questions of a name, to tune on and held out."""
    if name == "tenki":
        return tenki.split_questions(config.held_out_fraction, seed)
    return domains.split_questions(name, config.held_out_fraction)


def split(conversations: Iterable[Messages], held_out_fraction: float) -> tuple[list[Messages], list[Messages]]:
    """Training and held-out conversations, by the hash of each, so copies of one conversation stay together."""
    train: list[Messages] = []
    held_out: list[Messages] = []
    for messages in conversations:
        (held_out if identity(messages) / 2**64 < held_out_fraction else train).append(messages)
    return train, held_out


def identity(messages: Messages) -> int:
    """The first 8 bytes of the SHA-256 of a conversation, as an integer."""
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
    if has_surrogate(content):
        raise UserError(f"{where}: its content holds half of a surrogate pair (\\ud800 to \\udfff); remove it")
