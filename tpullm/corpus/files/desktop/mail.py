"""Mail → documents: the subject and the text of each message, without what it quotes, and without what is attached."""

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files import encodings, opened, pages

MOST_MESSAGE_BYTES = 1 << 24  # what follows is attached
_SIGNATURE = re.compile(r"\n-- ?\n.*\Z", re.DOTALL)
_QUOTED = re.compile(r"(?m)^>.*\n?")
_BEGIN = re.compile(rb"From \S+ .*\d{4}\s*$")


def message(path: Path) -> Iterator[Raw | None]:
    """The document of a file that is one message (RFC 5322)."""
    with opened.open_bytes(path) as stream:
        yield from _document(stream.read(MOST_MESSAGE_BYTES), "")


def mailbox(path: Path) -> Iterator[Raw | None]:
    """The documents of a mailbox (RFC 4155): a line that begins with `From ` begins each message."""
    with opened.open_bytes(path) as stream:
        lines: list[bytes] = []
        number = size = 0
        for line in iter(lambda: stream.readline(opened.BUFFER_BYTES), b""):
            if line.startswith(b"From ") and _BEGIN.match(line):
                yield from _document(b"".join(lines), f"message {number}")
                lines, size, number = [], 0, number + 1
            elif size < MOST_MESSAGE_BYTES:
                lines.append(line)
                size += len(line)
            if number == 0:
                raise opened.Unreadable("is no mailbox: it does not begin with `From `; export it again as .mbox")
        yield from _document(b"".join(lines), f"message {number}")


def _document(data: bytes, record: str) -> Iterator[Raw | None]:
    """The document of a message; None if it holds no text."""
    if not data.strip():
        return
    found = email.message_from_bytes(data, policy=email.policy.default)
    try:
        body = found.get_body(("plain", "html"))
        date = found["date"].datetime.date().isoformat() if found["date"] and found["date"].datetime else ""
        subject = str(found["subject"] or "")
    except Exception:  # the parser of headers fails in many ways on what is broken
        date = subject = ""
        body = next((part for part in found.walk() if part.get_content_maintype() == "text"), None)
    text = "" if body is None else _text(body)
    text = _SIGNATURE.sub("\n", _QUOTED.sub("", encodings.unix_lines(text))).strip()
    yield Raw("\n\n".join(filter(None, (subject.strip(), text))) + "\n", record=record, date=date) if text else None


def _text(body: EmailMessage) -> str:
    data = body.get_payload(decode=True) or b""
    charset = str(body.get_content_charset() or "")
    if body.get_content_subtype() == "html":
        page = encodings.decode_html(data, charset)
        return pages.extract(page, (), whole=True)[0] if page else ""
    text = encodings.decode(data, charset) if charset else None
    found = encodings.decode_text(data) if text is None else None
    return text if text is not None else found.text if found else data.decode("ascii", "ignore")
