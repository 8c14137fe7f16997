"""Conversations whose speakers are labelled by their roles: records of many programs → turns of one form.

What stands in a text as `{"from": "gpt", "value": ...}` is here `{"role": "assistant", "content": ...}`. `collect`
keeps such conversations for the tuning, so they are made whole: they begin with the system or the user, the speakers
alternate, and they end with an answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpullm.corpus.files.encodings import has_surrogate

Talk = list[dict[str, str]]
# What a turn is called (OpenAI, ShareGPT, others), and the role that it has.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "agent", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "name"), ("content", "value", "text")
TEXT_TYPES = (None, "text", "input_text", "output_text")  # of a part of a content
# The keys of a record that hold its turns: OpenAI and TRL, ShareGPT, others; and of records of one question.
_TURNS = ("messages", "conversations", "utterances")
_ASKED = (("instruction", "output"), ("prompt", "completion"), ("question", "answer"))
KEYS = {*_TURNS, "input", *(key for keys in _ASKED for key in keys)}


def has_keys(names: Iterable[str]) -> bool:
    """Whether a record with these keys may be a conversation."""
    there = set(names)
    return any(key in there for key in _TURNS) or any(there.issuperset(keys) for keys in _ASKED)


def labelled(record: Mapping[str, Any]) -> Talk:
    """The conversation of one record; empty if it holds none whose roles are known."""
    said = next((record[key] for key in _TURNS if isinstance(record.get(key), list)), None)
    if said is not None:
        turns = [_role_and_text(one) if isinstance(one, dict) else ("", "") for one in said]
        return [] if any(not role for role, _ in turns) else whole(turns)
    for asks, answers in _ASKED:
        if isinstance(record.get(asks), str) and isinstance(record.get(answers), str):
            more = record.get("input") if asks == "instruction" and isinstance(record.get("input"), str) else ""
            return whole([("user", f"{record[asks]}\n\n{more}".strip()), ("assistant", record[answers])])
    return []


def _role_and_text(turn: Mapping[str, Any]) -> tuple[str, str]:
    """The role of a turn and what is said; two empty ones if either is unknown, as of a call of a function."""
    role, content = (next((turn[key] for key in keys if turn.get(key)), "") for keys in (ROLE_KEYS, CONTENT_KEYS))
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") in TEXT_TYPES else part for part in parts]
    role = ROLES.get(role, "") if isinstance(role, str) else ""
    return (role, "".join(texts)) if all(isinstance(text, str) for text in texts) else ("", "")


def whole(turns: Iterable[tuple[str, str]]) -> Talk:
    """The conversation of (role, text): turns of one speaker are joined, and what begins before a question is left out.

    Empty if nobody answers a question in it, or a tool speaks.
    """
    found: Talk = []
    for role, text in turns:
        text = text.strip()
        if not text:
            continue
        if role not in ("system", "user", "assistant") or has_surrogate(text):
            return []
        if found and found[-1]["role"] == role:
            found[-1]["content"] += f"\n\n{text}"
        elif role == "user" or (role == "system" and not found) or (found and found[-1]["role"] == "user"):
            found.append({"role": role, "content": text})
    while found and found[-1]["role"] != "assistant":
        found.pop()
    return found


def as_text(talk: Sequence[Mapping[str, str]], title: str = "") -> str:
    """A conversation as a document."""
    return "\n\n".join([*filter(None, [title.strip()]), *(turn["content"] for turn in talk)]) + "\n"
