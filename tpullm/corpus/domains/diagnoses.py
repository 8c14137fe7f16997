"""Diagnoses: the codes of ICD-10-CM (the data of `simple-icd-10-cm`), and questions about them.

A document is a category (J45, asthma): its chapter and block, what is included, and its codes with their meanings.
Questions ask what a code means, for the code of a diagnosis, and for the category and the chapter of either. A code is
held out with all questions about it: tuning never asks about it. Its document says what it means. Its chapter and its
category follow from its first characters, which a model can generalise from other codes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tpullm.corpus.document import Raw
from tpullm.corpus.domains.packages import Package
from tpullm.corpus.question import Question, form, some

PACKAGE = Package(
    "simple-icd-10-cm",
    "ICD-10-CM",
    "simple_icd_10_cm/data/*tabular*.xml",
    "public domain in the USA (ICD-10-CM, by the National Center for Health Statistics); after ICD-10 of the WHO",
)
MOST = 2000  # questions of a kind
LONGEST_MEANING = 80  # characters of a meaning in a question
LONGEST_CODE = 5  # characters of a code whose meaning is asked for: the longer ones say on which side, how often, ...
RANGE = re.compile(r"\s*\([A-Z0-9.-]+\)$")  # "(A00-B99)" behind a title


@dataclass(frozen=True)
class Code:
    """A code: its meaning, other names of it, the categories above it (the outermost first), its block and chapter."""

    code: str
    meaning: str
    includes: tuple[str, ...]
    above: tuple[str, ...]
    block: str
    chapter: str

    @property
    def category(self) -> str:
        """The category of three characters that it is, or is in."""
        return self.above[0] if self.above else self.code


def read(path: Path) -> list[Code]:
    """All codes of the tabular list, in its order."""
    codes: list[Code] = []
    for chapter in ElementTree.parse(path).getroot().iter("chapter"):
        for block in chapter.iter("section"):
            titles = [RANGE.sub("", _text(of.find("desc"))) for of in (block, chapter)]
            for diagnosis in block.findall("diag"):
                codes += _codes(diagnosis, (), *titles)
    return codes


def _codes(diagnosis: ElementTree.Element, above: tuple[str, ...], block: str, chapter: str) -> Iterator[Code]:
    """The codes of an element and of those in it, the outer ones first."""
    code, meaning = (_text(diagnosis.find(name)) for name in ("name", "desc"))
    notes = [note for name in ("includes", "inclusionTerm") for note in diagnosis.findall(f"{name}/note")]
    yield Code(code, meaning, tuple(map(_text, notes)), above, block, chapter)
    for inner in diagnosis.findall("diag"):
        yield from _codes(inner, (*above, code), block, chapter)


def _text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def documents(path: Path) -> Iterator[Raw]:
    """A document for each category."""
    own: dict[str, list[Code]] = {}
    for code in read(path):
        own.setdefault(code.category, []).append(code)
    for [first, *rest] in own.values():
        lines = [
            f"{first.code} {first.meaning}",
            f"The category {first.code} is in the chapter “{first.chapter}”, in the block “{first.block}”.",
            *_included(first),
        ]
        for code in rest:
            lines += [f"{code.code} means “{code.meaning}”.", *_included(code)]
        yield Raw("\n".join(lines) + "\n", "en")


def _included(code: Code) -> Iterator[str]:
    if code.includes:
        yield f"{code.code} includes: {'; '.join(code.includes)}."


def questions_about(codes: Sequence[Code]) -> list[Question]:
    """The questions about these codes, in a fixed order. Codes of the same meaning are left out."""
    often = Counter(code.meaning.lower() for code in codes)
    asked = [code for code in codes if often[code.meaning.lower()] == 1 and len(code.meaning) <= LONGEST_MEANING]
    categories = {code.code: code.meaning for code in codes if not code.above}
    found = []
    for questions in (
        _meanings(asked), _codes_of(asked), _categories(asked, categories), _chapters(asked), _chapters_of(asked)
    ):  # fmt: skip
        found += some(questions, MOST)
    return found


def _meanings(codes: Iterable[Code]) -> Iterator[Question]:
    forms = (
        "What does the ICD-10-CM code {} mean?",
        "Which diagnosis has the ICD-10-CM code {}?",
        "What is coded as {} in ICD-10-CM?",
    )
    for code in codes:
        if len(code.code) <= LONGEST_CODE:
            yield Question(form(forms, code.code).format(code.code), (code.meaning,), "meaning", code.code)


def _codes_of(codes: Iterable[Code]) -> Iterator[Question]:
    forms = (
        "What is the ICD-10-CM code of “{}”?",
        "How is “{}” coded in ICD-10-CM?",
        "Which ICD-10-CM code does “{}” have?",
        "「{}」のICD-10-CMコードは何ですか。",
    )
    for code in codes:
        if len(code.code) <= LONGEST_CODE:
            yield Question(form(forms, code.code).format(code.meaning), (code.code,), "code", code.code)


def _categories(codes: Iterable[Code], categories: dict[str, str]) -> Iterator[Question]:
    forms = (
        "What is the category of the ICD-10-CM code {}?",
        "In which category of ICD-10-CM is the code {}?",
        "The ICD-10-CM code {} belongs to which category?",
    )
    for code in codes:
        if code.above:
            yield Question(
                form(forms, code.code).format(code.code), (categories[code.category],), "category", code.code
            )


def _chapters(codes: Iterable[Code]) -> Iterator[Question]:
    forms = (
        "In which chapter of ICD-10-CM is the code {}?",
        "Which chapter of ICD-10-CM has the code {}?",
        "What is the chapter of the ICD-10-CM code {}?",
    )
    for code in codes:
        yield Question(form(forms, code.code).format(code.code), (code.chapter,), "chapter of a code", code.code)


def _chapters_of(codes: Iterable[Code]) -> Iterator[Question]:
    forms = (
        "In which chapter of ICD-10-CM is “{}”?",
        "Which chapter of ICD-10-CM has “{}”?",
        "Where is “{}” in ICD-10-CM: in which chapter?",
    )
    for code in codes:
        yield Question(
            form(forms, code.code).format(code.meaning), (code.chapter,), "chapter of a diagnosis", code.code
        )
