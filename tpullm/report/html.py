"""Pieces of HTML: `tag` for charts, `phrase` and `mixed` for texts. What is not `Markup` is escaped."""

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape

_JAPANESE = re.compile("[\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]")


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. `class_` is `class`; other underscores become hyphens. What is None is left out."""
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    opening = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """The children one after the other."""
    return Markup("").join(child for child in children if child is not None)


def phrase(text: Any) -> Markup:
    """A text that someone wrote. Japanese is marked as such, so that its characters get their Japanese shapes."""
    return tag("span", text, class_="phrase", lang="ja" if _JAPANESE.search(str(text)) else None)


def mixed(text: str) -> Markup:
    """A sentence of the page: a quotation in 「」 is marked as Japanese, and a `name` becomes code."""
    marks = {"`": lambda part: tag("code", part[1:-1]), "「": phrase}
    return join(marks.get(part[:1], escape)(part) for part in re.split(r"(「[^」]*」|`[^`]*`)", text))
