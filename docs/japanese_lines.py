"""A hook of the site (`hooks` in mkdocs.yml): a line of Japanese goes on in the next one without a space.

A browser shows the end of a line as a space. Japanese has none, and a word over two lines would not be found.
"""

import re
from typing import Any

_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LETTER = "[々〆ぁ-ヿ一-鿿、。（）「」：]"
_BLOCK = r"(?=\*\*|[^\s|#>*+-])(?!\d+\. )"  # no line of a table, a heading or a list begins here
_END = re.compile(rf"(?:(?<={_LETTER})\n *{_BLOCK}|(?<=\S)\n *(?={_LETTER}))")


def joined(markdown: str) -> str:
    """A Japanese page without the ends of lines inside of its paragraphs."""
    parts = _FENCE.split(markdown)
    return "".join(part if number % 2 else _END.sub("", part) for number, part in enumerate(parts))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What MkDocs calls for each page."""
    return joined(markdown) if page.file.src_uri.startswith("ja/") else markdown
