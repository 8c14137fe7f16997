"""A file of JSON → documents: exports of ChatGPT, Claude, Slack and Telegram, lists of texts or of conversations.

It is read row by row. What the rows have says what they are, and a file without any of it (settings, say) is refused.
"""

import datetime
import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tpullm.corpus.document import Raw
from tpullm.corpus.files import opened, records, talks
from tpullm.corpus.files.desktop import chats
from tpullm.corpus.files.json_text import JsonText
from tpullm.system.errors import UserError

NOTHING = "holds no text and no conversation that is known here; save its text as .txt, or as .jsonl with the key text"
_MENTION = re.compile(r"<(?:[@#!][A-Z0-9]*\|?|(?:https?|mailto):[^|>]*\|)([^>]*)>|<((?:https?:)[^>]*)>")
BROKEN = (TypeError, KeyError, AttributeError, ValueError, OverflowError, OSError)


def documents(path: Path, text_key: str, assistant: str) -> Iterator[Raw | None]:
    """The documents of a file.

    Args:
        path: where it is.
        text_key: the field of a row with its text.
        assistant: who is the assistant in a chat between people.

    Raises:
        Unreadable: it is broken, or holds no text.
    """
    with opened.open_bytes(path) as stream:
        rows = _rows(stream, path)
        try:
            where, first = next(rows, ("", None))
        except UserError:
            first = None
        if not isinstance(first, dict):
            raise opened.Unreadable(NOTHING)
        everything = _again((where, first), rows)
        if first.get("type") == "message" and ("text" in first or "from" in first):
            yield from chats.documents(_messages(row for _, row in everything), assistant)
            return
        any_text = False
        for where, row in everything:
            raw = _document(row, where, text_key) if isinstance(row, dict) else None
            any_text = any_text or raw is not None
            yield raw
        if not any_text:
            raise opened.Unreadable(NOTHING)


def _rows(stream: Any, path: Path) -> Iterator[tuple[str, Any]]:
    text = JsonText(stream, "", opened.MOST_RECORD_BYTES)
    if not text.is_lines():
        yield from text.rows()
        return
    with opened.open_bytes(path) as again:
        for number, (_, line) in enumerate(opened.lines(again), 1):
            if line and line.strip():
                yield f"line {number}", json.loads(line)


def _again(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    try:
        yield from rest
    except (UserError, ValueError) as error:
        raise opened.Unreadable(f"{str(error).lstrip(': ')}; what comes before it is read") from None


def _document(row: dict[str, Any], where: str, text_key: str) -> Raw | None:
    """The document of a row; None if it holds no text."""
    try:
        if isinstance(row.get("mapping"), dict):
            talk = talks.whole(_of_chatgpt(row))
        elif isinstance(row.get("chat_messages"), list):
            talk = talks.whole(_of_claude(row["chat_messages"]))
        else:
            talk = talks.labelled(row)
            if not talk and isinstance(row.get(text_key), str):
                return records.record_document(row, text_key, where)
        title, made = row.get("title") or row.get("name") or "", row.get("create_time") or row.get("created_at") or ""
    except BROKEN:
        return None
    if not talk:
        return None
    date = _day(made)
    return Raw(talks.as_text(talk, title if isinstance(title, str) else ""), record=where, date=date, talks=(talk,))


def _of_chatgpt(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The turns of a conversation of ChatGPT, from the last one that was shown up to the first, in their order."""
    mapping, node, branch = row["mapping"], row.get("current_node"), []
    if node not in mapping:
        node = next(reversed(mapping), None)
    while node in mapping and len(branch) <= len(mapping):  # parents may form a circle
        branch.append(mapping[node].get("message"))
        node = mapping[node].get("parent")
    for message in filter(None, reversed(branch)):
        role, content = message["author"]["role"], message.get("content") or {}
        is_hidden = (message.get("metadata") or {}).get("is_visually_hidden_from_conversation")
        is_said = (
            content.get("content_type") in ("text", "multimodal_text") and message.get("recipient", "all") == "all"
        )
        if role in ("user", "assistant") and is_said and not is_hidden:
            yield role, "\n".join(part for part in content.get("parts") or () if isinstance(part, str))


def _of_claude(turns: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for turn in turns:
        parts = [part.get("text") for part in turn.get("content") or () if isinstance(part, dict)]
        text = turn.get("text") or "\n".join(part for part in parts if isinstance(part, str))
        yield talks.ROLES.get(turn.get("sender"), ""), text


def _messages(rows: Iterable[Any]) -> Iterator[chats.Said]:
    """What people say in Slack and Telegram."""
    for row in rows:
        try:
            if row.get("type") != "message" or row.get("subtype"):  # a subtype is that somebody joined, and the like
                continue
            profile = row.get("user_profile") or {}
            names = (profile.get("display_name"), profile.get("real_name"), row.get("from"), row.get("user"))
            speaker = next((name for name in names if isinstance(name, str) and name), "")
            text = row.get("text") or ""
            if isinstance(text, list):  # Telegram: pieces, some with a format
                text = "".join(part if isinstance(part, str) else part.get("text", "") for part in text)
            day = _day(row.get("ts") or row.get("date") or "")
        except BROKEN:
            continue
        text = html.unescape(_MENTION.sub(lambda found: found[1] or found[2] or "", text)).strip()
        if speaker and text:
            yield day, speaker, text


def _day(value: Any) -> str:
    """The day of a time, in seconds or as ISO 8601."""
    try:
        return datetime.datetime.fromtimestamp(float(value), datetime.UTC).date().isoformat()
    except BROKEN:
        return value[:10] if isinstance(value, str) else ""
