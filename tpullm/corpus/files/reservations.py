"""What the owner of a page says about its use, in the page and in the headers of its server.

Two things are heard. `noai` and `noimageai` are directives for robots, in `<meta name="robots">` and in the HTTP header
`X-Robots-Tag`. `tdm-reservation` is the W3C's TDM Reservation Protocol (final report, May 2024): 1 reserves the rights
of text and data mining. Where a page and its header differ, the page's own tag counts.
"""

import html
import re
from collections.abc import Iterable, Sequence

NOAI, NOIMAGEAI, TDM = "noai", "noimageai", "tdm-reservation"
# `[^<>]` ends a search at the next tag: with `[^>]`, 1 MB of `<meta ` would be read to its end from each of them.
META = re.compile(r"<meta[\s/]([^<>]*)>", re.IGNORECASE)
ATTRIBUTE = re.compile(r"""(?<![\w:-])([\w:-]+)\s{0,9}=\s{0,9}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
COMMENT = re.compile("<!--|-->")
# Crawlers are addressed by their names too (`GPTBot`, `CCBot`): who refuses one of them refuses the use, not the name.
ROBOTS = re.compile(r"robots|.*bot|.*crawler|.*spider|.*-extended")


def reserved(page: str, headers: Sequence[tuple[str, str]] = ()) -> str:
    """Why a page may not be trained on: `noai`, `noimageai` or `tdm-reservation`; "" if nothing says so.

    Time and memory are linear in the length of the page, whatever it holds.

    Args:
        page: its HTML.
        headers: of the answer of its server: names and values.
    """
    lowered = page.lower()
    tags = _meta_tags(page) if "noai" in lowered or "noimageai" in lowered or TDM in lowered else []
    lines = [(name.strip().lower(), value) for name, value in headers]
    said = [value for name, value in lines if name == "x-robots-tag"]
    said += [value for name, value in tags if name == "x-robots-tag" or ROBOTS.fullmatch(name)]
    directives = {word for value in said for word in _directives(value)}
    for word in (NOAI, NOIMAGEAI):
        if word in directives:
            return word
    return TDM if _is_reserved(tags, lines) else ""


def _meta_tags(page: str) -> list[tuple[str, str]]:
    """The names and contents of the `<meta>` tags of a page, outside of comments."""
    found = []
    for tag in META.findall(_without_comments(page)):
        attributes: dict[str, str] = {}
        for name, *values in ATTRIBUTE.findall(tag):
            attributes.setdefault(name.lower(), html.unescape("".join(values)))
        name = attributes.get("name") or attributes.get("http-equiv") or attributes.get("property") or ""
        found.append((name.strip().lower(), attributes.get("content", "")))
    return found


def _without_comments(page: str) -> str:
    """A page without its comments; one that is not closed reaches to the end, as in browsers."""
    kept, start, inside = [], 0, False
    for mark in COMMENT.finditer(page):
        if inside != (mark[0] == "-->"):
            continue
        if not inside:
            kept.append(page[start : mark.start()])
        inside, start = not inside, mark.end()
    return "".join(kept) + ("" if inside else page[start:])


def _directives(value: str) -> Iterable[str]:
    """The words of a line of directives, such as `otherbot: noindex, noai`."""
    return (part.rpartition(":")[2].strip().lower() for part in value.split(","))


def _is_reserved(tags: Sequence[tuple[str, str]], headers: Sequence[tuple[str, str]]) -> bool:
    for place in (tags, headers):
        values = [value.strip() for name, value in place if name == TDM]
        if values:
            return "1" in values
    return False
