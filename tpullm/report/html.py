"""Functions that write HTML. They escape every child that is not `Markup`, since any text can be on the page.

One HTML document that loads nothing else: the head that all pages have, and the body.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

from tpullm.report.language import Language

BLANK = "【?】"
_VOID = {"meta", "br"}
_JAPANESE = re.compile("[\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]")


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. Children that are not `Markup` are escaped, and so is every attribute.

    `class_` is `class`; other underscores become hyphens. An attribute or a child that is None is left out.
    """
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    opening = "".join(f' {key}="{escape(str(value))}"' for key, value in pairs)
    if name in _VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(children: Iterable[Any], separator: str = "") -> Markup:
    """The children one after the other."""
    return Markup(separator.join(_markup(child) for child in children if child is not None))


def _markup(child: Any) -> str:
    return child if isinstance(child, Markup) else escape(str(child))


def phrase(text: str) -> Markup:
    """A text that someone wrote. Japanese is marked as such, so that its characters get their Japanese shapes."""
    return tag("span", text, class_="phrase", lang="ja" if _JAPANESE.search(text) else None)


def blank_question(text: str) -> Markup:
    """A text whose blank 【?】 stands out."""
    before, _, after = text.partition(BLANK)
    return tag("p", phrase(before), tag("mark", BLANK), phrase(after), class_="question")


def mixed(text: str) -> Markup:
    """A sentence of the page: a quotation in 「」 is marked as Japanese, and a `name` becomes code."""
    return join(_marked(part) for part in re.split(r"(「[^」]*」|`[^`]*`)", text))


def _marked(part: str) -> Markup | str:
    if part.startswith("`"):
        return tag("code", part[1:-1])
    return phrase(part) if part.startswith("「") else part


def paragraph(*children: Any, **attributes: Any) -> Markup:
    """A paragraph."""
    return tag("p", *(mixed(child) if type(child) is str else child for child in children), **attributes)


def shows(text: Language, *sentences: str) -> Markup:
    """The paragraph that says what a picture shows."""
    return paragraph(tag("b", text("What it shows. ")), text.join(*sentences), class_="shows")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> Markup:
    """A table. It scrolls sideways if it does not fit. The columns after the first `left` ones hold numbers."""

    def line(cell: str, values: Sequence[Any]) -> Markup:
        cells = (tag(cell, value, class_="number" if i >= left else None) for i, value in enumerate(values))
        return tag("tr", *cells)

    body = tag("tbody", *(line("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", line("th", header)), body), class_="scroll")


def figure(content: Markup, caption: str | None = None) -> Markup:
    """A picture with its caption."""
    return tag("figure", content, tag("figcaption", mixed(caption)) if caption else None)


def section(identifier: str, title: str, *children: Any, number: int | None = None) -> Markup:
    """A section of the page. Each of the five steps has a number."""
    label = tag("span", number, class_="numeral") if number else None
    return tag("section", tag("h2", label, title), *children, id=identifier)


def document(text: Language, title: str, *body: Markup) -> str:
    """A whole page; the same parts give the same text."""
    style = colours() + _file("style.css")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang=text.name) + "\n"


def colours() -> str:
    """The rules of CSS that name the colours of all pages, light and dark."""
    return _file("colours.css")


def _file(name: str) -> str:
    return resources.files("tpullm.report").joinpath(name).read_text(encoding="utf-8")
