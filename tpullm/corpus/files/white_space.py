"""White space of a page: line ends are spaces in its text, and the layout in its code.

trafilatura keeps the line ends of the source in paragraphs, and joins the lines of code in a list.
"""

import re
from typing import Any

# Characters that stand for the white space of code until the text is there: three that are not in the page. trafilatura
# has its own use for ␤, and drops what is not printed.
_MARKS = "␊␠␉␍␛␞␟␝␜␀"
_KEPT = "\n \t"
_BLOCKS = {"p", "li", "dt", "dd", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6"}
_CODE = ("code", "tt", "kbd", "samp", "var")
# Where the lines of a source may be joined without a space: kana, Han characters, full-width marks.
_WIDE = "\u3000-\u303f\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
_BETWEEN_WIDE = re.compile(rf"(?<=[{_WIDE}])[ \t\r]*\n\s*(?=[{_WIDE}])")
_LINE_END = re.compile(r"[ \t\r]*\n\s*")
_INDENT = re.compile(r"(?m)^ +|  +")


class WhiteSpace:
    """The white space of one page, changed before its text is taken out, and restored in the text."""

    def __init__(self, page: str):
        marks = [mark for mark in _MARKS if mark not in page]
        self._marks = dict(zip(_KEPT, marks, strict=False)) if len(marks) >= len(_KEPT) else {}

    def prepare(self, tree: Any) -> None:
        """Change the tree of the page."""
        for code in list(tree.iter(*_CODE)):  # what lies in code moves to the end of its paragraph otherwise
            for child in list(code.iterdescendants("em", "i", "b", "strong", "span", *_CODE)):
                child.drop_tag()
        for block in list(tree.iter("pre")):
            self._keep(block)
        for element in tree.iter("*"):
            if element.tag != "pre":
                element.text = _joined(element.text)
            element.tail = _joined(element.tail)
            if element.tag in _BLOCKS:
                _strip(element)

    def _keep(self, block: Any) -> None:
        """Mark the white space of a block of code."""
        for line_break in list(block.iter("br")):
            line_break.tail = "\n" + (line_break.tail or "")
        text = block.text_content().strip("\n")
        for child in list(block):
            block.remove(child)
        if self._marks:
            text = _INDENT.sub(lambda match: match[0].replace(" ", self._marks[" "]), text.expandtabs())
            in_list = next(block.iterancestors("li", "dd"), None) is not None
            text = f"\n{text}\n".replace("\n", self._marks["\n"]) if in_list else text.replace("\n", self._marks["\n"])
        block.text = text

    def restored(self, text: str) -> str:
        """The text with the white space of its code."""
        for kept, mark in self._marks.items():
            text = text.replace(mark, kept)
        return text


def _strip(block: Any) -> None:
    """Take the white space from the beginning and the end of a block."""
    block.text = block.text and block.text.lstrip()
    if len(block):
        block[-1].tail = block[-1].tail and block[-1].tail.rstrip()
    else:
        block.text = block.text and block.text.rstrip()


def _joined(text: str | None) -> str | None:
    if not text or "\n" not in text:
        return text
    return _LINE_END.sub(" ", _BETWEEN_WIDE.sub("", text))
