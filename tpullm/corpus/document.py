"""A document of step 1, as a reader found it."""

from dataclasses import dataclass
from importlib import resources

import yaml


@dataclass(frozen=True, slots=True)
class Raw:
    """A document as a reader found it.

    Args:
        text: its text; "" if it could not be read.
        language: its language, if the reader knows better than the source.
        dropped: why it could not be read; "" if it could.
        encoding: its encoding, if that is not UTF-8 and had to be detected.
        problem: what is wrong with it, for its user: it goes on after the file and the record. "" if nothing is.
        record: which record of its file it is, such as `line 12`; "" if the file is one document.
        url: where it was published; "" if the data does not say.
        date: when, as the data says it.
        licence: its own licence, if the data names one. It goes before that of the source.
        reserved: why its owner does not want it to be trained on (`noai`, `tdm-reservation`); "" if nothing says so.
        noted: what the reader chose by itself, for its user; "" if nothing.
        talks: the conversations in it whose speakers have roles: turns of `role` and `content`.
    """

    text: str = ""
    language: str = ""
    dropped: str = ""
    encoding: str = ""
    problem: str = ""
    record: str = ""
    url: str = ""
    date: str = ""
    licence: str = ""
    reserved: str = ""
    noted: str = ""
    talks: tuple[list[dict[str, str]], ...] = ()


NOT_UTF8 = Raw(dropped="not UTF-8")
# Reasons of which `max_bad` of a source bounds the number: text that is there is lost.
UNREADABLE, BROKEN_RECORD, TOO_LARGE = "could not be read", "broken record", "too large"
NOT_READ = "not read"  # a file of a desktop or in a zip: it is named, and the others are read
LEAKED = "questions of a task"
BAD = frozenset((UNREADABLE, BROKEN_RECORD, TOO_LARGE))
# What the reasons mean for which documents are dropped.
REASONS: dict[str, str] = yaml.safe_load(resources.files(__package__).joinpath("reasons.yaml").read_text("utf-8"))
