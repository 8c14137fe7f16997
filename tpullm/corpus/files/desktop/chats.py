"""Exported chats between people → documents: LINE, WhatsApp, and what `json_files` finds of Slack and Telegram.

A document is `name: what is said`, a message a line, with an empty line between days. If the source names who is the
assistant, the days on which that person answers are conversations for the tuning too. Pictures, stickers, calls and
what a program wrote are left out.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files import encodings, opened, talks
from tpullm.corpus.files.kinds import WHATSAPP

Said = tuple[str, str, str]  # day, speaker, text
PIECE_CHARACTERS = 1 << 20
CHAT = "a chat of "  # what is noted of one begins so

_LINE_DAY = re.compile(r"(?:\w{3}, )?(\d{1,4}[/.]\d{1,2}[/.]\d{1,4})[ (（]?\S{0,12}")
_LINE_TIME = r"(?:午前|午後)?\d{1,2}:\d{2}(?:[ \u202f]?[AaPp][Mm])?"
_LINE_SAID = re.compile(rf"{_LINE_TIME}\t([^\t]*)\t(.*)", re.DOTALL)
_LINE_SAID_ON_PC = re.compile(rf"{_LINE_TIME} (\S+) (.+)", re.DOTALL)
_LINE_SYSTEM = re.compile(rf"{_LINE_TIME}[\t ]")
_LINE_MEDIA = re.compile(
    r"\[[^\[\]\n]{1,20}\]|☎.*|スタンプ|写真|動画|アルバム|ノート|ボイスメッセージ|Stickers?|Photos?|Videos?|Albums?|Notes?"
)
_WHATSAPP_SAID = re.compile(r"([^:\n]{1,80}): (.*)", re.DOTALL)
_WHATSAPP_MEDIA = re.compile(
    r"\u200e.*|<[^<>\n]{1,60}>|(?:You|This message).{0,12}deleted.{0,20}|Messages and calls are end-to-end.*", re.DOTALL
)


def _lines_of(path: Path) -> Iterator[str]:
    with opened.open_bytes(path) as stream:
        found = encodings.decode_text(stream.peek(1 << 12)[: 1 << 12].rpartition(b"\n")[0])
        if found is None:
            raise opened.Unreadable(encodings.NOT_DECODED)
        codec = "utf-16" if found.encoding == "UTF-16" else "utf-8-sig"
        text = io.TextIOWrapper(stream, codec, errors="replace", newline=None)
        yield from (line.rstrip("\n") for line in iter(lambda: text.readline(opened.BUFFER_BYTES), ""))


def line(path: Path, assistant: str) -> Iterator[Raw | None]:
    """The documents of a talk history of LINE, as its apps write it in Japanese and in English."""
    return documents(_line_messages(_lines_of(path)), assistant)


def _line_messages(lines: Iterable[str]) -> Iterator[Said]:
    day, speaker, parts = "", "", []
    for one in itertools.chain(lines, ["1/1/1"]):  # a day ends what was said
        said = _LINE_SAID.fullmatch(one) or (_LINE_SAID_ON_PC.fullmatch(one) if "\t" not in one else None)
        new_day = None if said else _LINE_DAY.fullmatch(one)
        if not (said or new_day or _LINE_SYSTEM.match(one)):
            parts += [one] if speaker else []  # the next line of a message
            continue
        text = "\n".join(parts).strip()
        if "\n" in text and text[0] == text[-1] == '"':
            text = text[1:-1]
        if speaker and text and not _LINE_MEDIA.fullmatch(text):
            yield day, speaker, text
        speaker, parts = (said[1].strip(), [said[2]]) if said else ("", [])
        day = new_day[1] if new_day else day


def whatsapp(path: Path, assistant: str) -> Iterator[Raw | None]:
    """The documents of an exported chat of WhatsApp."""
    return documents(_whatsapp_messages(_lines_of(path)), assistant)


def _whatsapp_messages(lines: Iterable[str]) -> Iterator[Said]:
    day, speaker, parts = "", "", []
    for one in itertools.chain(lines, ["1/1/01, 0:00 - "]):
        begins = WHATSAPP.fullmatch(one)
        if not begins:
            parts += [one] if speaker else []
            continue
        text = "\n".join(parts).strip(" \n")
        if speaker and text and not _WHATSAPP_MEDIA.fullmatch(text):
            yield day, speaker, text.replace("\u200e", "")
        said = _WHATSAPP_SAID.fullmatch(begins[3])
        day = begins[1] or begins[2]
        speaker, parts = (said[1].strip(), [said[2]]) if said else ("", [])


def documents(messages: Iterable[Said], assistant: str, record: str = "") -> Iterator[Raw | None]:
    """The documents of a chat: many days each.

    Args:
        messages: what was said, in its order.
        assistant: who is the assistant in the conversations; "" if nobody is, and then there are none.
        record: of the chat in its file.
    """
    speakers: Counter[str] = Counter()
    days: list[str] = []
    found: list[talks.Talk] = []
    size, part = 0, 0
    for day, said in itertools.groupby(messages, key=lambda one: one[0]):
        own = [(speaker, text) for _, speaker, text in said]
        speakers.update(speaker for speaker, _ in own)
        days.append("\n".join(f"{speaker}: {text}" for speaker, text in own))
        if assistant:
            talk = talks.whole(("assistant" if speaker == assistant else "user", text) for speaker, text in own)
            found += [talk] if talk else []
        size += len(days[-1])
        if size > PIECE_CHARACTERS:
            part += 1
            yield _document(days, found, speakers, f"{record} until {day}".strip())
            days, found, size = [], [], 0
        yield None
    if days:
        yield _document(days, found, speakers, record if not part else f"{record} part {part + 1}".strip())
    elif not part:
        yield Raw(record=record)  # nobody says anything: programs do, or somebody joins


def _document(days: list[str], found: list[talks.Talk], speakers: Counter[str], record: str) -> Raw:
    names = [name for name, _ in speakers.most_common(3)]
    noted = CHAT + ", ".join(names) + (f" and {len(speakers) - 3:,} more" if len(speakers) > 3 else "")
    return Raw("\n\n".join(days) + "\n", record=record, noted=noted, talks=tuple(found))
