"""What flows through step 1: raw documents as they are read, records of those that passed the filters."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Raw:
    """A document as a reader found it.

    Args:
        text: its text; nothing where it could not be read.
        language: its language where the reader knows it better than the source says.
        dropped: why it could not be read; nothing where it could.
        encoding: what it was written in, where that was not UTF-8 and had to be found out.
    """

    text: str = ""
    language: str = ""
    dropped: str = ""
    encoding: str = ""


NOT_UTF8 = Raw(dropped="not UTF-8")


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a document that passed the filters, while its text waits on the disk.

    Args:
        hash: SHA-256 of its UTF-8 text, hexadecimal.
        characters: length of its text.
        language: its language.
        held_out: whether it is named as held out by the source.
    """

    hash: str
    characters: int
    language: str
    held_out: bool
