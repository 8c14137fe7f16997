"""A file of a desktop, read in a child with limits, a batch at a time.

A reader is a generator of `Raw`. It lives in the child between two calls, so a mailbox of gigabytes is read once and a
call stays short. A call has the limits of the child; all calls for one file together have `FILE_SECONDS`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files import kinds, opened
from tpullm.corpus.files.desktop import chats, json_files, mail, notebooks, office, pdf, tables
from tpullm.system.errors import UserError

Reader = Callable[[Path, "Wanted"], Iterator[Raw | None]]
BATCH_SECONDS, FILE_SECONDS = 5, 300  # of the processor
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 22, 1_000


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the source says of a file.

    Args:
        text_key: the column or the field with the text.
        assistant: who is the assistant in a chat between people; "" if nobody is.
    """

    text_key: str = "text"
    assistant: str = ""


READERS: dict[str, Reader] = {
    "docx": lambda path, wanted: office.docx(path),
    "odt": lambda path, wanted: office.open_document(path),
    "pptx": lambda path, wanted: office.pptx(path),
    "epub": lambda path, wanted: office.epub(path),
    "pdf": lambda path, wanted: pdf.document(path),
    "rtf": lambda path, wanted: office.rtf(path),
    "csv": lambda path, wanted: tables.separated(path, wanted.text_key),
    "sheet": lambda path, wanted: tables.workbook(path, wanted.text_key),
    "eml": lambda path, wanted: mail.message(path),
    "mbox": lambda path, wanted: mail.mailbox(path),
    "ipynb": lambda path, wanted: notebooks.notebook(path),
    "subtitles": lambda path, wanted: notebooks.subtitles(path),
    "json": lambda path, wanted: json_files.documents(path, wanted.text_key, wanted.assistant),
    "line": lambda path, wanted: chats.line(path, wanted.assistant),
    "whatsapp": lambda path, wanted: chats.whatsapp(path, wanted.assistant),
}
_reading: dict[str, Iterator[Raw | None]] = {}  # in the child: one at a time


def read(path: Path, kind: str, wanted: Wanted) -> Iterator[Raw]:
    """The documents of a file.

    Args:
        path: where it is.
        kind: a key of `READERS`.
        wanted: what the source says of it.

    Raises:
        Unreadable: it can't be read, or not to its end; the message says what to do.
    """
    seconds, step, ended = 0.0, 0, False
    while not ended:
        try:
            batch, ended, used = opened.in_child(f"{__name__}:more", str(path), kind, *vars(wanted).values(), step)
        except opened.Unreadable as error:
            advice = "" if ";" in str(error) else f"; {kinds.SAVE_AS}"
            raise opened.Unreadable(f"{error}{advice}") from None
        yield from (_from_json(fields) for fields in batch)
        seconds, step = seconds + used, step + 1
        if seconds > FILE_SECONDS and not ended:
            raise opened.Unreadable(
                f"takes more than {FILE_SECONDS} s of the processor, so the rest is left out; split it"
            )


def _from_json(fields: list) -> Raw:
    *texts, talks = fields
    return Raw(*texts, tuple(talks))


def more(path: str, kind: str, text_key: str, assistant: str, step: int) -> list:
    """In the child: the next documents as the fields of `Raw`, whether these are the last, and the seconds it took."""
    begin = time.process_time()
    if step == 0:
        _reading.clear()
        _reading[path] = READERS[kind](Path(path), Wanted(text_key, assistant))
    found: list[list] = []
    size = 0
    try:
        with opened.reading():
            for raw in _reading[path]:
                if raw is not None:
                    found.append(list(dataclasses.astuple(raw)))
                    size += len(raw.text)
                spent = time.process_time() - begin
                if spent > BATCH_SECONDS or size > BATCH_CHARACTERS or len(found) >= BATCH_DOCUMENTS:
                    return [found, False, spent]
    except opened.Unreadable as error:
        if not found:
            raise UserError(str(error)) from None
        _reading[path] = _failing(error)  # what came before it is not lost
        return [found, False, time.process_time() - begin]
    return [found, True, time.process_time() - begin]


def _failing(error: opened.Unreadable) -> Iterator[Raw | None]:
    raise error
    yield
