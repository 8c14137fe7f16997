"""Three domains of real text that comes with packages on PyPI: medicine, programming and licences.

Each has documents, from which a model learns the field, and questions that are made of the same data by rule, so every
question has one right answer. Questions are held out by the hash of what they ask about: tuning never asks about it,
so the model has the answer from the documents, or from what is alike in other questions. The packages are the extra
`domains`. They are looked for when a domain is used, and never imported: their data are read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from tpullm.corpus.domains import docstrings, licences, medicine, programming
from tpullm.corpus.domains.packages import Package
from tpullm.corpus.question import Question, number_by_hash
from tpullm.run.stages import WORDING
from tpullm.system.errors import UserError

# The sets of questions, by name.
DOMAINS: dict[str, Callable[[], list[Question]]] = {
    "docstrings": docstrings.questions,
    "licences": licences.questions,
    "medicine": medicine.questions,
    "medicine-ja": medicine.japanese_questions,
    "programming": programming.questions,
}
# By which the form of an answer is judged, whatever it says: by the set of questions.
RULES: dict[str, Mapping[str, Callable[[str], bool]]] = {"docstrings": docstrings.RULES}
SOURCES = {"licences": licences, "medicine": medicine}  # the documents of `programming` are a `python` source


def packages(kind: str, part: str = "") -> tuple[Package, ...]:
    """The packages whose text a source of this kind and path reads."""
    parts = SOURCES[kind].PACKAGES
    if part not in parts:
        known = " or ".join(filter(None, (", ".join(filter(None, parts)), "nothing (all)")))
        raise UserError(f"corpus.sources: path {part!r} of a {kind} source is not {known}")
    return parts[part]


def files(kind: str, part: str = "") -> list[Path]:
    """The files that a source of this kind and path reads; `UserError` if a package is not installed."""
    return [path for package in packages(kind, part) for path in package.files()]


def identity(kind: str, part: str) -> dict[str, str]:
    """What the documents of a source of this kind and path depend on: versions of packages, and of their wording."""
    return {package.name: f"{package.version()}, wording {WORDING}" for package in packages(kind, part)}


def questions(domain: str) -> list[Question]:
    """Every question of a domain, in the order of hashes: the first ones are of all kinds.

    `UserError` if a package is not installed.
    """
    return sorted(DOMAINS[domain](), key=lambda question: number_by_hash(f"order {question.question}"))
