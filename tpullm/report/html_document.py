"""One HTML document that loads nothing else: the head that all pages have, and the body."""

from importlib import resources

from tpullm.report.html import Markup, tag
from tpullm.report.language import Language


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
