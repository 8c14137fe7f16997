"""An HTML page or Markdown → a document: its encoding, the wish of its owner, and its main text.

resiliparse (Bevendorff et al. 2018) finds the main text, in a child with limits. Its rules for pages of the web take
boxes and tables of a manual for navigation. On a page of a program that writes manuals all is text but what these
programs call navigation (`NAVIGATION`). `benchmarks/manuals.py` compares that with trafilatura.

The owner of a page may reserve its use, in the page and in the headers of the server. `noai` and `noimageai` are
directives for robots, in `<meta name="robots">` and in the HTTP header `X-Robots-Tag`. `tdm-reservation` is the W3C's
TDM Reservation Protocol (final report, May 2024): 1 reserves the rights of text and data mining. Where a page and its
header differ, the page's own tag counts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tpullm.corpus.document import NOT_UTF8, TOO_LARGE, UNREADABLE, Raw
from tpullm.corpus.files import encodings, opened

MOST_PAGE_BYTES = 1 << 26  # Common Crawl cuts pages at 5 MiB; compressed ones can be a thousand times as large
EXTRACT = f"{__name__}:extract"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what XML cannot hold

NOAI, NOIMAGEAI, TDM = "noai", "noimageai", "tdm-reservation"
# Crawlers are addressed by their names too (`GPTBot`, `CCBot`): who refuses one of them refuses the use, not the name.
ROBOTS = re.compile(r"robots|.*bot|.*crawler|.*spider|.*-extended")

# The names of programs that write manuals, in `<meta name="generator">`. Not all name themselves.
GENERATORS = re.compile("(?i)docbook|publican|sphinx|docutils|asciidoc|mkdocs|texinfo|makeinfo|pandoc|doxygen")
MANUAL = ".documentwrapper, .sphinxsidebar, .navheader, .docnav, .nav_table, .nav-panel"
NAVIGATION = [
    "nav", "footer", "[role=navigation]", ".footer", "#footer", ".toc", "#toc", "nav.contents", ".headerlink",
    ".navheader", ".navfooter", ".docnav", "#banner",  # DocBook, Publican, PHP's manual
    ".sphinxsidebar", ".related", ".language-selection", ".rst-footer-buttons",
    ".wy-nav-side", ".wy-nav-top", ".wy-breadcrumbs",
    # Sphinx: links to the chapters, or in a manual of one page the chapters themselves.
    ".toctree-wrapper:not(:has(h1, h2))",
    ".md-sidebar", ".md-header", ".md-footer", ".md-nav",  # MkDocs
    ".nav_table", ".nav-panel", ".menu", "#tocframe",  # Texinfo
    ".nav-path", ".page-nav",  # Doxygen
]  # fmt: skip

MENU_LINKS = 0.5  # of the characters of a list, from which on it is a menu

# Where the lines of a source may be joined without a space: kana, Han characters, full-width marks.
_WIDE = "\u3000-\u303f\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60"
_BETWEEN_WIDE = re.compile(rf"(?<=[{_WIDE}])[ \t\r]*\n\s*(?=[{_WIDE}])")
_META = re.compile("(?i)<meta")
_CODE = re.compile(r"(?is)(<pre\b.*?(?:</pre\b|\Z))")

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


def extract(page: str, headers: Sequence[Sequence[str]], whole: bool = False) -> list[str]:
    """In the child: the main text of a page, and why its owner does not want it to be trained on ("" if nothing says).

    The main text is without menus and comments, or all text if that is empty.

    Args:
        page: its HTML.
        headers: of the answer of the server.
        whole: take all text: of a chapter of a book, or a mail.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    parts = _CODE.split(_CONTROL.sub("", page))
    parts[::2] = [_BETWEEN_WIDE.sub("", part) for part in parts[::2]]
    tree = HTMLTree.parse_from_bytes("".join(parts).encode("utf-8", "replace"), "utf-8")
    tags = [node for node in tree.head if node.tag == "meta"]
    if len(tags) < len(_META.findall(page)):  # in the body too, which takes half of the time of a page to search
        tags = [node for node in tree.document if node.tag == "meta"]
    metas = [{name: tag.getattr(name) or "" for name in ("name", "http-equiv", "property", "content")} for tag in tags]
    written_by = " ".join(meta["content"] for meta in metas if meta["name"].lower() == "generator")
    is_manual = whole or GENERATORS.search(written_by) or tree.document.query_selector(MANUAL)
    settings = {"preserve_formatting": True, "alt_texts": False, "comments": False, "skip_elements": NAVIGATION}
    if not is_manual:
        _sink_lists(tree)
    text = "" if is_manual else extract_plain_text(tree, main_content=True, **settings)
    return [text or extract_plain_text(tree, **settings), _training_reservation(metas, headers)]


def _sink_lists(tree: Any) -> None:
    """Put lists that are no menus deeper into the page: resiliparse takes each near its root for a menu."""
    for found in list(_lists_near_root(tree.body, 3)):
        if sum(len(node.text) for node in found if node.tag == "a") < MENU_LINKS * len(found.text):
            for _ in range(3):
                box = tree.create_element("div")
                found.parent.replace_child(box, found)
                box.append_child(found)


def _lists_near_root(box: Any, levels: int) -> Iterator[Any]:
    """The lists in `box`, and in the boxes in it. A query takes time that grows with the square of what it finds."""
    child = box.first_child
    while child is not None:
        if child.tag == "ul":
            yield child
        elif levels > 1:
            yield from _lists_near_root(child, levels - 1)
        child = child.next


def _training_reservation(metas: Iterable[Mapping[str, str]], headers: Sequence[Sequence[str]]) -> str:
    """Why a page may not be trained on: `noai`, `noimageai` or `tdm-reservation`; "" if nothing says so.

    Args:
        metas: the attributes of the `<meta>` elements of the page.
        headers: of the answer of its server: names and values.
    """
    named = ((meta["name"] or meta["http-equiv"] or meta["property"], meta["content"]) for meta in metas)
    own = [(name.strip().lower(), content) for name, content in named]
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


def markdown_to_text(source: str) -> str:
    """Markdown without front matter and comments. The rest stays, since people write text so."""
    matter = FRONT_MATTER.match(source, 0, 1 << 16)
    text = source[matter.end() :] if matter else source
    end = text.rfind("-->") + len("-->")  # behind it each beginning would look for its end in vain
    return COMMENT.sub("", text[:end]) + text[end:]
