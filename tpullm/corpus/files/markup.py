"""HTML and Markdown → plain text."""

import logging
import re
from typing import Any

from tpullm.corpus.files import manuals
from tpullm.corpus.files.white_space import WhiteSpace

RULER = "---\n"
FRONT_MATTER_CHARACTERS = 1 << 16  # that are looked at
# A line of front matter: a name with a value, the next part of a value, an item of a list, a comment, nothing.
_NAMED = re.compile(r"""["']?[\w.-]+["']?\s*:(\s|$)""")
_CONTINUED = re.compile(r"\s|- |-$|#|[\]}]|$")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML cannot hold
COMMENT_BEGINS, COMMENT_ENDS = "<!--", "-->"


def html_to_text(page: str) -> str:
    """The main text of an HTML page without menus (trafilatura, Barbaresi 2021), or all its text if that is empty."""
    from trafilatura import extract, html2txt

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs an error for each page without a main text
    tree = _parsed(page)
    if tree is None:
        return ""
    for anchor in list(tree.iter("a")):  # `<a id="x"/>` never ends in HTML, and makes a link of the text after it
        if not anchor.get("href"):
            anchor.drop_tag()
    manuals.prepare(tree)
    white_space = WhiteSpace(page)
    white_space.prepare(tree)
    return white_space.restored(extract(tree, include_comments=False) or html2txt(tree) or "")


def _parsed(page: str) -> Any:
    """The tree of a page; None if there is nothing in it.

    trafilatura would parse it itself, but stops at elements nested 256 deep and loses the rest of the page. Pages that
    never close their elements are nested deeper.
    """
    from lxml import etree, html

    parser = html.HTMLParser(
        collect_ids=False,
        encoding="utf-8",
        remove_comments=True,
        remove_pis=True,
        huge_tree=True,
        default_doctype=False,
    )
    try:
        return html.document_fromstring(_CONTROL.sub("", page).encode("utf-8", "replace"), parser=parser)
    except etree.ParserError:  # an empty page
        return None


def markdown_to_text(source: str) -> str:
    """Markdown without front matter and comments. The rest stays, since people write text so."""
    return _without_comments(source[_front_matter(source) :])


def _front_matter(source: str) -> int:
    """The length of the front matter: YAML between two rulers at the top. Text between two rulers is text."""
    if not source.startswith(RULER):
        return 0
    place, named = len(RULER), False
    for line in source[place:FRONT_MATTER_CHARACTERS].splitlines(keepends=True):
        place += len(line)
        if line.rstrip() in ("---", "..."):
            return place if named else 0
        is_named = _NAMED.match(line) is not None
        if not is_named and not (_CONTINUED.match(line) and (named or not line.strip() or line.startswith("#"))):
            return 0
        named |= is_named
    return 0


def _without_comments(source: str) -> str:
    """Found from end to end: a pattern that looks for each end anew takes the square of the length."""
    parts, place = [], 0
    while (begin := source.find(COMMENT_BEGINS, place)) >= 0:
        end = source.find(COMMENT_ENDS, begin + len(COMMENT_BEGINS))
        if end < 0:
            break
        parts.append(source[place:begin])
        place = end + len(COMMENT_ENDS)
    return "".join([*parts, source[place:]])
