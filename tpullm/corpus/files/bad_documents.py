"""Documents that cannot be read: how many a source puts up with, and what is said when there are more."""

import re
from collections.abc import Sequence
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.files.source_files import printable
from tpullm.errors import UserError
from tpullm.log import one_line
from tpullm.recipe.schema import Source

NAMED = 3  # in the error


def described(path: Path, raw: Raw) -> str:
    """A document that cannot be read, in one line: its file, its record, and what is wrong with it."""
    record = f" {raw.record}" if raw.record else ""
    return one_line(f"{printable(str(path))}:{record} {raw.problem or raw.dropped}", 500)


def most(max_bad: float, documents: int) -> float:
    """How many of `documents` may be bad: a share of them below 1, else a number."""
    return max_bad if max_bad >= 1 else max(max_bad, 0) * documents


def check(source: Source, bad: int, documents: int, first: Sequence[str]) -> None:
    """`UserError` if more documents of a source cannot be read than it puts up with.

    Args:
        source: the source.
        bad: how many cannot be read: those with a reason of `document.BAD`.
        documents: how many there are, with these.
        first: the first of the bad ones, as `described` has them.
    """
    if bad <= most(source.max_bad, documents):
        return
    named = first[:NAMED] if bad <= NAMED else _unlike(first)[:NAMED]
    more = f"; and {bad - len(named):,} more" if bad > len(named) else ""
    which = "it" if bad == 1 else "them"
    raise UserError(
        f"corpus.sources: {source.name}: {bad:,} of {documents:,} documents cannot be read: {'; '.join(named)}{more}; "
        f"correct or remove {which}, or put {which} aside with max_bad: {bad} for this source (it is "
        f"{source.max_bad:g})"
    )


def _unlike(described: Sequence[str]) -> list[str]:
    """The first of those that differ in more than numbers: by a wrong `text_key`, all lines of a file are alike."""
    return list({re.sub(r"\d+", "", one): one for one in reversed(described)}.values())[::-1]
