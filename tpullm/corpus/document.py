"""Documents in step 1: raw as a reader found them, and the records of those that passed the filters."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Raw:
    """A document as a reader found it.

    Args:
        text: its text; "" if it could not be read.
        language: its language, if the reader knows better than the source.
        dropped: why it could not be read; "" if it could.
        encoding: its encoding, if that is not UTF-8 and had to be detected.
    """

    text: str = ""
    language: str = ""
    dropped: str = ""
    encoding: str = ""


NOT_UTF8 = Raw(dropped="not UTF-8")


@dataclass(frozen=True, slots=True)
class Record:
    """The facts of a document that passed the filters, whose text is in a spool file.

    Args:
        hash: SHA-256 of its UTF-8 text, hexadecimal.
        characters: length of its text.
        language: its language.
        held_out: whether the source names it as held out.
    """

    hash: str
    characters: int
    language: str
    held_out: bool
