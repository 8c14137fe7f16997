"""Japanese laws and judgments as they are published → a document for each article, or for the judgment.

A law is 法令標準XML, as e-Gov has it in its files and in the answers of its API, or the JSON of that API (version 2),
which has the same elements. Each document names its law, the number and the dates of the law, the chapter and the
article, so an answer can name them. What is beside the articles (a preamble, a table, paragraphs of a supplementary
provision) is a document too, and the supplementary provisions (附則) are told from the main ones. Readings (`Rt`) and
figures are left out; a row of a table is a line. Whatever is neither XML nor JSON is a judgment: plain text.
"""

import datetime
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tpullm.corpus.document import NOT_UTF8, TOO_LARGE, Raw
from tpullm.corpus.files import encodings, opened
from tpullm.system.errors import UserError

LAW = f"{__name__}:law_in_file"
MOST_BYTES = 1 << 26  # of a file; 特許法 has 1 MB as JSON
ERAS = {"Meiji": 1868, "Taisho": 1912, "Showa": 1926, "Heisei": 1989, "Reiwa": 2019}  # the first year of each
_ERAS_IN_JAPANESE = dict(zip(("明治", "大正", "昭和", "平成", "令和"), ERAS.values(), strict=True))
_SPACE = b"\xef\xbb\xbf \t\r\n"
_HEADED = ("Part", "Chapter", "Section", "Subsection", "Division")  # 編, 章, 節, 款, 目: each has a title
_INLINE = {"Sentence", "Column", "Ruby", "Line", "Sup", "Sub", "ArithFormula", "QuoteStruct"}
_LEFT_OUT = {"Rt", "Fig", "TOC", "SupplProvisionLabel"}
_MARK = re.compile(r"ParagraphNum|(?:Item|Subitem\d+|Class)Title")  # 一, イ, ２ before a sentence
# 令和２年（ワ）第１２３４号, and the day on which the judgment was given, within the beginning of a judgment.
_BEGINNING = 2000
_IN_ERA = rf"({'|'.join(_ERAS_IN_JAPANESE)})(元|\d{{1,2}})年"
_CASE = re.compile(rf"{_IN_ERA}\(([ァ-ヶ一-龠]{{1,6}})\)第?(\d{{1,6}})号")
_GIVEN = re.compile(rf"{_IN_ERA}(\d{{1,2}})月(\d{{1,2}})日(?:判決)?(?:言渡|宣告|判決)")


class Article(NamedTuple):
    """An article, or what is beside the articles.

    Args:
        where: the titles above it: `第一章　総則`, or `附則（平成一七年…）`.
        title: `第一条`; the title of a table; "" of paragraphs without an article.
        caption: what it is about, without brackets; "" if the law does not say.
        text: its lines.
        is_main: whether it is an article of the main provisions that is in force.
    """

    where: str
    title: str
    caption: str
    text: str
    is_main: bool


class Law(NamedTuple):
    """A law: title, number (平成五年法律第八十八号), dates as YYYY-MM-DD ("" if unknown), and its articles."""

    title: str
    number: str
    promulgated: str
    enforced: str
    articles: list[Article]


def documents(path: Path) -> Iterator[Raw]:
    """The documents of one file: those of a law, or a judgment.

    Raises:
        Unreadable: it is XML or JSON, and no law; or it is hostile.
    """
    law = read(path)
    if law is None:
        yield _judgment(path)
        return
    dates = [(law.promulgated, "公布"), (law.enforced, "施行")]
    known = [law.number, *(f"{_in_japanese(date)}{what}" for date, what in dates if date)]
    head = f"{law.title}（{'、'.join(filter(None, known))}）" if any(known) else law.title
    for article in law.articles:
        title = article.title + (f"（{article.caption}）" if article.caption else "")
        text = "\n".join(filter(None, (head, article.where, title, article.text)))
        yield Raw(f"{text}\n", "ja", record=f"{article.where} {article.title}".strip(), date=law.promulgated)


def read(path: Path) -> Law | None:
    """The law in a file; None for plain text. Raises `Unreadable` as of `documents`."""
    with opened.open_bytes(path) as stream:
        if _first_character(stream.read(64)) not in ("<", "{"):
            return None
    *known, articles = opened.in_child(LAW, str(path))
    return Law(*known, [Article(*article) for article in articles])


def _first_character(data: bytes) -> str:
    """The first of XML or JSON, in UTF-8 or, with a byte order mark, in UTF-16."""
    charset = encodings.BYTE_ORDER_MARKS.get(data[:2], "utf-8")
    return data[:64].decode(charset, "replace").lstrip("\ufeff \t\r\n")[:1]


def _judgment(path: Path) -> Raw:
    with opened.open_bytes(path) as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        return Raw(dropped=TOO_LARGE, problem=f"is larger than {MOST_BYTES >> 20} MiB")
    found = encodings.decode_text(data)
    if found is None:
        return NOT_UTF8
    begin = re.sub(r"\s+", "", unicodedata.normalize("NFKC", found.text[:_BEGINNING]))
    case, given = _CASE.search(begin), _GIVEN.search(begin)
    date = _iso_date(_ERAS_IN_JAPANESE[given[1]], given[2].replace("元", "1"), given[3], given[4]) if given else ""
    return Raw(found.text, encoding=found.encoding, record=case[0] if case else "", date=date)


def _iso_date(first_year: int, *numbers: Any) -> str:
    """A date of an era as YYYY-MM-DD; "" if it is none."""
    try:
        year, month, day = map(int, numbers)
        return datetime.date(first_year + year - 1, month, day).isoformat()
    except (TypeError, ValueError, OverflowError):
        return ""


def _in_japanese(date: str) -> str:
    year, month, day = map(int, date.split("-"))
    return f"{year}年{month}月{day}日"


def law_in_file(path: str) -> list[Any]:
    """In the child: the law in a file of XML or JSON, as the fields of `Law`."""
    from lxml import etree

    with opened.open_bytes(Path(path)) as stream:
        data = stream.read(MOST_BYTES + 1).lstrip(_SPACE)
    if len(data) > MOST_BYTES:
        raise UserError(f"is larger than {MOST_BYTES >> 20} MiB")
    if _first_character(data) == "{":
        answer = json.loads(data)
        root, revision = answer.get("law_full_text", answer), answer.get("revision_info") or {}
        root, enforced = _element_of_json(root), revision.get("amendment_enforcement_date")
    else:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
        root = etree.fromstring(data, parser)
        if root.getroottree().docinfo.internalDTD is not None:
            raise UserError("declares a document type, which no law does; do not use it")
        enforced = root.findtext(".//amendment_enforcement_date")
    law = next(root.iter("Law"), None)
    body = None if law is None else law.find("LawBody")
    if body is None:
        raise UserError("holds no law: no Law with a LawBody is in it; download it from e-Gov as XML or JSON")
    first = ERAS.get(law.get("Era", ""), 0)
    promulgated = _iso_date(first, *(law.get(part) for part in ("Year", "PromulgateMonth", "PromulgateDay")))
    enforced = enforced if re.fullmatch(r"\d{4}-\d\d-\d\d", enforced or "") else ""
    named = [_text_below(body, "LawTitle"), _text_below(law, "LawNum")]
    return [*named, promulgated if first else "", enforced, list(_articles_of_law(body))]


def _element_of_json(node: dict) -> ElementTree.Element:
    """An element as the API writes it in JSON: tag, attributes, and texts and elements in it."""
    element = ElementTree.Element(node["tag"], node.get("attr") or {})
    for is_text, children in itertools.groupby(node["children"], lambda child: isinstance(child, str)):
        if not is_text:
            element.extend(map(_element_of_json, children))
        elif len(element):
            element[-1].tail = "".join(children)
        else:
            element.text = "".join(children)
    return element


def _articles_of_law(body: Any) -> Iterator[Article]:
    for part in body:
        if part.tag == "MainProvision":
            yield from _articles(part, [], True)
        elif part.tag == "SupplProvision":
            of = part.get("AmendLawNum", "")
            yield from _articles(part, [f"附則（{of}）" if of else "附則"], False)
        elif part.tag not in ("LawTitle", "TOC"):
            yield from _beside(part, [])


def _articles(element: Any, above: list[str], is_main: bool) -> Iterator[Article]:
    """The articles in a provision or a chapter, in their order; paragraphs without an article are one together."""
    loose = []
    for child in element:
        if child.tag == "Article":
            title, caption = _text_below(child, "ArticleTitle"), _text_below(child, "ArticleCaption")
            parts = [part for part in child if part.tag not in ("ArticleTitle", "ArticleCaption")]
            lines = [line for part in parts for line in _lines(part)]
            in_force = is_main and ":" not in child.get("Num", ":") and lines != ["削除"]
            yield Article("　".join(above), title, caption.strip("（）"), "\n".join(lines), in_force)
        elif child.tag in _HEADED:
            name = _text_below(child, f"{child.tag}Title")
            yield from _articles(child, [*above, name] if name else above, is_main)
        elif child.tag == "Paragraph":
            loose += _lines(child)
        elif not child.tag.endswith(("Title", "Label")):
            yield from _beside(child, above)
    if loose:
        yield Article("　".join(above), "", "", "\n".join(loose), False)


def _beside(element: Any, above: list[str]) -> Iterator[Article]:
    """What is no article: a preamble, a table or a form at the end; without its text, nothing."""
    title, lines = _text_below(element, f"{element.tag}Title"), list(_lines(element))
    if lines:
        yield Article("　".join(above), title, "", "\n".join(lines[bool(title) :]), False)


def _lines(element: Any) -> Iterator[str]:
    """The lines of a part of a law: a number or a mark stands before the sentence after it, a row is one line."""
    if element.tag in _LEFT_OUT:
        return
    if element.tag == "TableRow":
        if row := "　".join(" ".join(_lines(cell)) for cell in element).strip():
            yield row
    elif all(child.tag in _INLINE or child.tag in _LEFT_OUT for child in element):
        if text := _text(element):
            yield text
    else:
        mark = ""
        for child in element:
            for line in _lines(child):
                if _MARK.fullmatch(child.tag):
                    mark = f"{line}　"
                else:
                    yield mark + line
                    mark = ""


def _text_below(element: Any, tag: str) -> str:
    """The text of the first child of a tag; "" if there is none."""
    found = element.find(tag)
    return "" if found is None else _text(found)


def _text(element: Any) -> str:
    """The text of an element on one line; columns stand apart."""
    columns = [[element.text or ""]]
    for child in element:
        if child.tag == "Column":
            columns.append([])
        columns[-1] += ["" if child.tag in _LEFT_OUT else _text(child), child.tail or ""]
    return "　".join(filter(None, (_on_one_line("".join(parts)) for parts in columns)))


def _on_one_line(text: str) -> str:
    """Without line ends and the indents around them. One search for both is quadratic in spaces with no line end."""
    return "".join(line.lstrip().rstrip(" \t\r") for line in text.split("\n")).strip()
