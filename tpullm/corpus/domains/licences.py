"""Licences: the texts of software licences (the data of `scancode-toolkit-mini`), and questions about them.

A document is a licence: what is known of it in two sentences, then its text. A source with the path `facts` has the
beginnings of the texts only (2.3 of 17 million characters), so a small model can read them several times. Questions
ask for a licence's identifier at SPDX, its name and its category, for words in it, and which licence has a demand. A
licence is held out with all these questions: tuning never asks about it, and its document has the answers. The last
kind asks what a sentence is about. There, sentences that begin alike are held out together, and a model has to
generalise.

The package's own reader is not used: with its dependencies it fails to import (plugincode 32.0, pluggy 1.7).
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from tpullm.corpus import dedup
from tpullm.corpus.characters import cut
from tpullm.corpus.document import Raw
from tpullm.corpus.domains.packages import Package, wording
from tpullm.corpus.question import Question, ask, form_by_hash, number_by_hash, questions_of_lowest_hashes

PACKAGE = Package(
    "scancode-toolkit-mini",
    "licence texts",
    "licensedcode/data/licenses/*.LICENSE",
    "CC-BY-4.0 (the licence database of ScanCode, by AboutCode); each licence text belongs to its authors",
)
FACTS = "facts"
PACKAGES = {"": (PACKAGE,), FACTS: (PACKAGE,)}
BEGINNING = 1000  # characters of a text, with the path `facts`
# Entries that are not one text: withdrawn ones, and those that stand for any text.
NOT_A_TEXT = ("is_deprecated", "is_unknown", "is_generic")
MOST = 2000  # questions of a kind
WORDS_OF_A_SENTENCE = range(8, 41)
SENTENCE = re.compile(r"(?<=[.;])\s+|\n\s*\n")
DEMAND = re.compile(r"\b(must|shall|may not|required to|provided that)\b", re.IGNORECASE)
LETTERS = "ABCD"  # of the licences to choose from
CLAUSES_FROM = 0.3  # of the licences: their sentences are enough


class Licence(NamedTuple):
    """A licence: its name, category, identifier at SPDX ("" if it has none), language and text."""

    name: str
    category: str
    identifier: str
    language: str
    text: str


def documents(path: Path, part: str) -> Iterator[Raw]:
    """The document of the licence in one file, or its beginning (`FACTS`); none if that is not one text."""
    licence = read(path)
    if licence:
        known = f"The category of the licence “{licence.name}” is {licence.category}."
        if licence.identifier:
            known += f" The SPDX identifier of “{licence.name}” is {licence.identifier}."
        text = cut(licence.text, BEGINNING)[0].strip() if part == FACTS else licence.text
        yield Raw(f"{licence.name}\n\n{known}\n\n{text}\n", licence.language)


def read(path: Path) -> Licence | None:
    """The licence in a file: what is known of it as YAML between two lines of `---`, then its text."""
    _, head, text = re.split(r"^---(?:\n|\Z)", path.read_text(encoding="utf-8"), maxsplit=2, flags=re.MULTILINE)
    known = yaml.load(head, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if any(known.get(key) for key in NOT_A_TEXT) or not text.strip():
        return None
    identifier = str(known.get("spdx_license_key", ""))
    if identifier.startswith("LicenseRef-"):  # not of SPDX, but of ScanCode
        identifier = ""
    name = " ".join(str(known["name"]).split())
    return Licence(name, str(known["category"]), identifier, known.get("language", "en"), text.strip())


def questions() -> list[Question]:
    """Every question, in a fixed order."""
    return questions_about([licence for licence in map(read, PACKAGE.files()) if licence])


def questions_about(licences: Sequence[Licence]) -> list[Question]:
    """The questions about these licences. They ask about none whose name another one has, or that is not English."""
    named = Counter(licence.name.casefold() for licence in licences)
    asked = [licence for licence in licences if named[licence.name.casefold()] == 1 and licence.language == "en"]
    known = [licence for licence in asked if licence.identifier]
    facts = {
        "identifier": ((licence.name, licence.name, licence.identifier) for licence in known),
        "name": ((licence.name, licence.identifier, licence.name) for licence in known),
        "category": ((licence.name, licence.name, licence.category) for licence in asked),
    }
    found = ask(facts, wording("licences")["forms"], MOST)
    for others in (_word_questions(asked), _demand_questions(asked, licences), _clause_questions(asked)):
        found += questions_of_lowest_hashes(others, MOST)
    return found


def _word_questions(licences: Sequence[Licence]) -> Iterator[Question]:
    """Whether a word is in the text of a licence: as many questions with yes as with no. In “patents” it is neither."""
    texts = {licence.name: " ".join(licence.text.lower().split()) for licence in licences}
    words = wording("licences")["words"]
    for word in words:
        without = [name for name, text in texts.items() if word not in text]
        having = [name for name, text in texts.items() if word in text and re.search(rf"\b{word}\b", text)]
        for names, has_it in ((having, True), (without, False)):
            count = min(len(having), len(without), MOST // len(words) // 2)
            for name in sorted(names, key=lambda name: number_by_hash(f"{word} {name}"))[:count]:
                asked, yes, no = form_by_hash(wording("licences")["has_a_word"], f"{word} {name}")
                yield Question(asked.format(word=word, name=name), (yes if has_it else no,), "word", name)


def _licence_sentences(text: str) -> Iterator[str]:
    for sentence in SENTENCE.split(text):
        plain = " ".join(sentence.split())
        if len(plain.split()) in WORDS_OF_A_SENTENCE and plain.isascii() and '"' not in plain:
            yield plain


def _demand_questions(licences: Sequence[Licence], every: Sequence[Licence]) -> Iterator[Question]:
    """Which of four licences has a demand: its letter. One for each licence; no run of six words of the demand is in
    another licence. Most demands are not in the beginnings of the texts, so a model of `FACTS` can only guess.
    """
    runs = [np.unique(_word_run_hashes(licence.text)) for licence in every]
    values, counts = np.unique(np.concatenate(runs), return_counts=True)
    exclusive, common = values[counts == 1], set(wording("licences")["common_in_names"])
    for licence in licences:
        telling = set(re.findall(r"[a-z]{3,}", licence.name.lower())) - common
        for sentence in filter(DEMAND.search, _licence_sentences(licence.text)):
            names_it = telling.intersection(re.findall(r"[a-z]{3,}", sentence.lower()))
            own = _word_run_hashes(sentence)
            places = np.minimum(np.searchsorted(exclusive, own), len(exclusive) - 1)
            if not names_it and len(own) and (exclusive[places] == own).all():
                names = [licence.name, *_other_licence_names(licence, licences)]
                names.sort(key=lambda name: number_by_hash(f"{sentence} {name}"))
                listed = "\n".join(f"{letter}. {name}" for letter, name in zip(LETTERS, names, strict=False))
                asked = f"Which of these licences says “{sentence}”?\n{listed}\nAnswer with the letter."
                yield Question(asked, (LETTERS[names.index(licence.name)],), "demand", licence.name)
                break


def _word_run_hashes(text: str) -> np.ndarray:
    """The hashes of all runs of six words of a text: uint64 [runs]."""
    return dedup.hashes(dedup.units(text), 6)


def _other_licence_names(licence: Licence, licences: Sequence[Licence]) -> list[str]:
    """The names of three other licences, by hash."""
    chosen: set[str] = set()
    for number in itertools.count():
        if len(chosen) == min(3, len(licences) - 1):
            return sorted(chosen)
        name = licences[int(number_by_hash(f"other {number} {licence.name}") * len(licences))].name
        chosen |= {name} - {licence.name}


def _clause_questions(licences: Sequence[Licence]) -> Iterator[Question]:
    """What a sentence is about, if it has the words of one topic alone. Of sentences that begin alike one is asked."""
    patterns = {topic: re.compile(words, re.IGNORECASE) for topic, words in wording("licences")["topics"].items()}
    silent = re.compile("|".join(wording("licences")["not_a_topic"]), re.IGNORECASE)
    found: dict[str, dict[str, str]] = {topic: {} for topic in patterns}
    for licence in licences:
        if number_by_hash(f"clauses {licence.name}") >= CLAUSES_FROM:
            continue
        for sentence in _licence_sentences(licence.text):
            about = [topic for topic, pattern in patterns.items() if pattern.search(silent.sub("", sentence))]
            if len(about) == 1:
                beginning = " ".join(re.findall(r"\w+", sentence.lower())[:6])
                found[about[0]].setdefault(beginning, sentence)
    choices = ", ".join(patterns)
    for topic, sentences in found.items():
        asked = (
            Question(f"What is this about: “{sentence}”?\nChoose: {choices}", (topic,), "clause", f"sentence {start}")
            for start, sentence in sentences.items()
        )
        yield from questions_of_lowest_hashes(asked, MOST // len(patterns))
