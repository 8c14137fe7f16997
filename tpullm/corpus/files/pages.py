"""An HTML page or Markdown → a document: its encoding, the wish of its owner, and its main text.

trafilatura finds the main text, in a child with limits. It knows articles of newspapers and blogs, so a page is made
ready for it:

- Manuals (DocBook, Sphinx, AsciiDoc and the like). trafilatura takes a `sidebar` for navigation and a paragraph in
  `<div>` for layout; in the manuals of Debian, a `sidebar` is a part of the text, and paragraphs are
  `<div class="para">`. On pages of programs that write manuals, navigation goes by the names that these programs give
  it, and nothing else is left that could be taken for navigation. Of 102 pages of seven manuals in Japanese,
  trafilatura alone keeps 48 to 96 % of the characters and hardly a heading; prepared so, it keeps 98 to 100 %.
- White space. Line ends are spaces in text, and the layout in code. trafilatura keeps the line ends of the source in
  paragraphs, and joins the lines of code in a list.

The owner of a page may reserve its use, in the page and in the headers of the server. `noai` and `noimageai` are
directives for robots, in `<meta name="robots">` and in the HTTP header `X-Robots-Tag`. `tdm-reservation` is the W3C's
TDM Reservation Protocol (final report, May 2024): 1 reserves the rights of text and data mining. Where a page and its
header differ, the page's own tag counts.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpullm.corpus.document import NOT_UTF8, TOO_LARGE, UNREADABLE, Raw
from tpullm.corpus.files import encodings, opened

MOST_PAGE_BYTES = 1 << 26  # Common Crawl cuts pages at 5 MiB; compressed ones can be a thousand times as large
EXTRACT = f"{__name__}:extract"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML cannot hold

NOAI, NOIMAGEAI, TDM = "noai", "noimageai", "tdm-reservation"
# Crawlers are addressed by their names too (`GPTBot`, `CCBot`): who refuses one of them refuses the use, not the name.
ROBOTS = re.compile(r"robots|.*bot|.*crawler|.*spider|.*-extended")

# The names of programs that write manuals, in `<meta name="generator">`. Sphinx does not name itself.
GENERATORS = re.compile("(?i)docbook|publican|sphinx|docutils|asciidoc|mkdocs|texinfo|makeinfo|pandoc|doxygen")
SPHINX = ".//script[contains(@src, 'documentation_options.js')] | .//div[contains(@class, 'documentwrapper')]"
NAVIGATION = re.compile(
    r"(^|\s)(navheader|navfooter|docnav|toc|headerlink|sphinxsidebar|related|rst-footer-buttons"
    r"|wy-nav-side|wy-nav-top|wy-breadcrumbs|md-sidebar|md-header|md-footer|md-nav|headerlink|nav-path|page-nav)(\s|$)"
)
# Sphinx: links to the chapters, or in a manual of one page the chapters themselves.
TREE = re.compile(r"(^|\s)toctree-wrapper(\s|$)")
NOTE = re.compile(r"(^|\s)(note|tip|warning|caution|important|admonition\S*|footnote\S*)(\s|$)")
BLOCKS = {
    "h1", "h2", "h3", "h4", "h5", "h6", "p", "div", "ul", "ol", "dl", "table", "pre", "blockquote", "section",
    "article", "form", "figure", "main", "details", "hr",
}  # fmt: skip

# Characters that stand for the white space of code until the text is there: three that are not in the page. trafilatura
# has its own use for ␤, and drops what is not printed.
_MARKS = "␊␠␉␍␛␞␟␝␜␀"
_KEPT = "\n \t"
_TEXT_BLOCKS = {"p", "li", "dt", "dd", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6"}
_CODE = ("code", "tt", "kbd", "samp", "var")
# Where the lines of a source may be joined without a space: kana, Han characters, full-width marks.
_WIDE = "\u3000-\u303f\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
_BETWEEN_WIDE = re.compile(rf"(?<=[{_WIDE}])[ \t\r]*\n\s*(?=[{_WIDE}])")
_LINE_END = re.compile(r"(?<![ \t\r])[ \t\r]*\n\s*")
_INDENT = re.compile(r"(?m)^ +|  +")

# YAML between two rulers at the top: names with values, next parts of values, items of lists, comments, empty lines. It
# begins with a name, but for comments. Text between two rulers is text.
_NAMED = r"""["']?[\w.-]+["']?[^\S\n]*:(?:[^\S\n].*|$)"""
FRONT_MATTER = re.compile(
    rf"(?m)---\n(?:(?:#.*|[^\S\n]*)\n)*+{_NAMED}\n(?:(?>{_NAMED}|(?:[^\S\n]|- |-$|#|[\]}}]).*|)\n)*+"
    r"(?:---|\.\.\.)[^\S\n]*(?:\n|\Z)"
)
COMMENT = re.compile("<!--.*?-->", re.DOTALL)


def read(data: bytes, charset: str = "", headers: Sequence[tuple[str, str]] = ()) -> Raw:
    """The document of one page.

    Args:
        data: its HTML.
        charset: its encoding as the server says.
        headers: of the answer of the server: names and values.
    """
    if len(data) > MOST_PAGE_BYTES:
        return too_large()
    page = encodings.decode_html(data, charset)
    if page is None:
        return NOT_UTF8
    try:
        text, reserved = opened.in_child(EXTRACT, page, [list(header) for header in headers])
    except opened.Unreadable as error:
        return Raw(dropped=UNREADABLE, problem=f"cannot be read ({error})")
    return Raw(encodings.unix_lines(text), reserved=reserved)


def too_large() -> Raw:
    """A page of more than `MOST_PAGE_BYTES`."""
    return Raw(dropped=TOO_LARGE, problem=f"is a page of more than {MOST_PAGE_BYTES >> 20} MiB")


def extract(page: str, headers: Sequence[Sequence[str]]) -> list[str]:
    """In the child: the main text of a page, and why its owner does not want it to be trained on ("" if nothing says).

    The main text is without menus (trafilatura, Barbaresi 2021), or all text if that is empty.
    """
    from lxml import etree, html
    from trafilatura import extract as main_text
    from trafilatura import html2txt

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs an error for each page without a main text
    # trafilatura would parse the page itself, but stops at elements nested 256 deep and loses the rest of the page.
    # Pages that never close their elements are nested deeper.
    settings = {"collect_ids": False, "remove_comments": True, "remove_pis": True, "default_doctype": False}
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True, **settings)
    try:
        tree = html.document_fromstring(_CONTROL.sub("", page).encode("utf-8", "replace"), parser=parser)
    except etree.ParserError:  # nothing is in it
        tree = html.document_fromstring("<html></html>")
    reserved = _training_reservation(tree.iter("meta"), headers)
    for anchor in list(tree.iter("a")):  # `<a id="x"/>` never ends in HTML, and makes a link of the text after it
        if not anchor.get("href"):
            anchor.drop_tag()
    _prepare_manual(tree)
    unused = [mark for mark in _MARKS if mark not in page]
    marks = dict(zip(_KEPT, unused, strict=False)) if len(unused) >= len(_KEPT) else {}
    _prepare_white_space(tree, marks)
    text = main_text(tree, include_comments=False) or html2txt(tree) or ""
    for kept, mark in marks.items():
        text = text.replace(mark, kept)
    return [text, reserved]


def _training_reservation(tags: Iterable[Any], headers: Sequence[Sequence[str]]) -> str:
    """Why a page may not be trained on: `noai`, `noimageai` or `tdm-reservation`; "" if nothing says so.

    Args:
        tags: the `<meta>` elements of the page.
        headers: of the answer of its server: names and values.
    """
    named = ((tag.get("name") or tag.get("http-equiv") or tag.get("property") or "", tag) for tag in tags)
    own = [(name.strip().lower(), tag.get("content", "")) for name, tag in named]
    server = [(name.strip().lower(), value) for name, value in headers]
    robots = [value for name, value in server if name == "x-robots-tag"]
    robots += [value for name, value in own if name == "x-robots-tag" or ROBOTS.fullmatch(name)]
    # The words of a line of directives, such as `otherbot: noindex, noai`.
    directives = {part.rpartition(":")[2].strip().lower() for value in robots for part in value.split(",")}
    for word in (NOAI, NOIMAGEAI):
        if word in directives:
            return word
    for said in (own, server):
        values = [value.strip() for name, value in said if name == TDM]
        if values:
            return TDM if "1" in values else ""
    return ""


def _prepare_manual(page: Any) -> None:
    """Change the tree of a page, if it is one of a manual."""
    generator = " ".join(page.xpath("//meta[@name='generator']/@content"))
    if not (GENERATORS.search(generator) or page.xpath(SPHINX)):
        return
    for element in list(page.iter("*")):
        if TREE.search(element.get("class") or ""):
            is_navigation = element.find(".//h1") is None and element.find(".//h2") is None
        else:
            is_navigation = element.get("role") == "navigation" or NAVIGATION.search(element.get("class") or "")
        if is_navigation and element.getparent() is not None:
            element.drop_tree()
    for note in list(page.iter("div", "aside")):
        if NOTE.search(note.get("class") or "") or (note.get("role") or "").startswith("doc-"):
            # DocBook lays a note out as a table: picture, title, text. And trafilatura drops each `<aside>`.
            for part in list(note.iter("table", "tbody", "tr", "colgroup", "td", "th")):
                if part.tag in ("td", "th") and not any(child.tag in BLOCKS for child in part):
                    part.tag = "p"
                else:
                    part.drop_tag()
            note.drop_tag()
    for element in page.iter("*"):
        for name in ("class", "id", "role"):
            element.attrib.pop(name, None)
    for box in list(page.iter("div")):
        _wrap_loose_text(box)
    body = page.find("body")
    if body is None or page.find(".//article") is not None or page.find(".//main") is not None:
        return
    article = page.makeelement("article")  # in which trafilatura keeps headings and lists
    article.text, body.text = body.text, None
    for child in list(body):
        article.append(child)
    body.append(article)


def _wrap_loose_text(box: Any) -> None:
    """Text that lies in a box by itself becomes a paragraph, before and after the blocks in the box."""
    children, paragraph = list(box), box.makeelement("p")
    paragraph.text, box.text = box.text, None
    places = [(0, paragraph)]
    for child in children:
        if child.tag in BLOCKS:
            paragraph = box.makeelement("p")
            paragraph.text, child.tail = child.tail, None
            places.append((box.index(child) + 1, paragraph))
        else:
            paragraph.append(child)
    for place, paragraph in reversed(places):
        if len(paragraph) or (paragraph.text or "").strip():
            box.insert(place, paragraph)


def _prepare_white_space(tree: Any, marks: Mapping[str, str]) -> None:
    """Put marks for the white space of code, and make line ends in text spaces."""
    for code in list(tree.iter(*_CODE)):  # what lies in code moves to the end of its paragraph otherwise
        for child in list(code.iterdescendants("em", "i", "b", "strong", "span", *_CODE)):
            child.drop_tag()
    for block in list(tree.iter("pre")):
        for line_break in list(block.iter("br")):
            line_break.tail = "\n" + (line_break.tail or "")
        text = block.text_content().strip("\n")
        for child in list(block):
            block.remove(child)
        if marks:
            text = _INDENT.sub(lambda match: match[0].replace(" ", marks[" "]), text.expandtabs())
            in_list = next(block.iterancestors("li", "dd"), None) is not None
            text = (f"\n{text}\n" if in_list else text).replace("\n", marks["\n"])
        block.text = text
    for element in tree.iter("*"):
        if element.tag != "pre":
            element.text = _joined(element.text)
        element.tail = _joined(element.tail)
        if element.tag in _TEXT_BLOCKS:  # no white space at its beginning and its end
            element.text = element.text and element.text.lstrip()
            if len(element):
                element[-1].tail = element[-1].tail and element[-1].tail.rstrip()
            else:
                element.text = element.text and element.text.rstrip()


def _joined(text: str | None) -> str | None:
    if not text or "\n" not in text:
        return text
    return _LINE_END.sub(" ", _BETWEEN_WIDE.sub("", text))


def markdown_to_text(source: str) -> str:
    """Markdown without front matter and comments. The rest stays, since people write text so."""
    matter = FRONT_MATTER.match(source, 0, 1 << 16)
    text = source[matter.end() :] if matter else source
    end = text.rfind("-->") + len("-->")  # behind it each beginning would look for its end in vain
    return COMMENT.sub("", text[:end]) + text[end:]
