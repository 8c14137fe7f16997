"""Licences are read with what is known of them, and each question about them has one right answer."""

import pytest

from tests.corpus.test_domains import answers, by_entity, check
from tpullm.corpus.domains import licences
from tpullm.corpus.domains.licences import Licence

FILE = """---
name: Tea
    Public Licence
category: Copyleft Limited
spdx_license_key: {identifier}
{more}
---

Whoever drinks the tea
must wash the cup.
---
The kettle is not part of it.
"""


def read(tmp_path, identifier="Tea-1.0", more="", text=FILE):
    path = tmp_path / "tea.LICENSE"
    path.write_text(text.format(identifier=identifier, more=more), encoding="utf-8")
    return licences.read(path)


def test_a_licence_is_what_is_known_of_it_and_its_text(tmp_path):
    text = "Whoever drinks the tea\nmust wash the cup.\n---\nThe kettle is not part of it."
    assert read(tmp_path) == Licence("Tea Public Licence", "Copyleft Limited", "Tea-1.0", "en", text)
    assert read(tmp_path, more="language: de").language == "de"
    assert read(tmp_path, "LicenseRef-scancode-tea").identifier == ""
    for more in ("is_deprecated: yes", "is_unknown: yes", "is_generic: yes"):  # not one text
        assert read(tmp_path, more=more) is None
    assert read(tmp_path, text="---\nkey: a\nname: A\ncategory: Permissive\n---") is None
    assert list(licences.documents(tmp_path / "tea.LICENSE", "")) == []


def test_a_document_says_what_is_asked_and_one_of_facts_has_the_beginning_of_its_text(tmp_path):
    read(tmp_path)
    [raw] = licences.documents(tmp_path / "tea.LICENSE", "")
    category = "The category of the licence “Tea Public Licence” is Copyleft Limited."
    identifier = "The SPDX identifier of “Tea Public Licence” is Tea-1.0."
    assert raw.language == "en"
    assert raw.text.startswith(f"Tea Public Licence\n\n{category} {identifier}\n\nWhoever drinks")
    text = "".join(f"{number}. Drink the tea.\n" for number in range(100, 200))
    read(tmp_path, text=f"---\nname: Tea\ncategory: Permissive\n---\n{text}")
    [whole], [facts] = (list(licences.documents(tmp_path / "tea.LICENSE", part)) for part in ("", "facts"))
    assert whole.text.startswith(facts.text) and whole.text.count("Drink") == 100
    assert facts.text.count("Drink") == licences.BEGINNING // len("100. Drink the tea.\n")


SHARED = "You must keep this notice with every copy of the work that you give to others."
CUP = "Whoever drinks of it must wash the blue cup before noon."
BEANS = "Each guest shall grind ten beans by hand on the first day of a month."
SAME_LENGTHS = "Much bread could break six lamps in town at the third cry to a child."
LIABLE = "The authors of the milk may not be held liable for any damages from drinking it."
GERMAN = "Jeder muss das Glas nach dem Trinken mit warmem Wasser sorgsam von Hand spülen."
LICENCES = [
    Licence("Tea Licence", "Permissive", "Tea", "en", f"{SHARED}\n\n{CUP} Patents are free."),
    Licence("Coffee Licence", "Copyleft", "Coffee", "en", f"{SHARED}\n\n{BEANS}"),
    Licence("Milk Licence", "Copyleft", "", "en", f"{SHARED}\n\n{LIABLE}"),
    Licence("Juice Licence", "Permissive", "Juice", "en", f"{CUP} A patent is needed. {SAME_LENGTHS}"),
    Licence("Wasser-Lizenz", "Permissive", "Wasser", "de", GERMAN),
    Licence("Twin", "Permissive", "Twin-1", "en", "One of two."),
    Licence("twin", "Copyleft", "Twin-2", "en", "Two of two."),
]


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(licences, "CLAUSES_FROM", 1.0)
    return licences.questions_about(LICENCES)


def test_identifier_name_and_category_are_asked_of_licences_that_one_name_tells_apart(asked):
    check(asked)
    known = {f"{name} Licence": name for name in ("Tea", "Coffee", "Juice")}
    assert answers(asked, "identifier") == known and answers(asked, "name") == {name: name for name in known}
    categories = dict.fromkeys(["Tea Licence", "Juice Licence"], "Permissive")
    assert answers(asked, "category") == categories | dict.fromkeys(["Coffee Licence", "Milk Licence"], "Copyleft")
    assert "“Coffee Licence”" in by_entity(asked, "category")["Coffee Licence"].question


def test_a_demand_is_of_one_licence_alone(asked):
    """Two licences want a cup washed, three a notice kept. Another has words as long as the right one's."""
    [question] = by_entity(asked, "demand").values()
    said, *listed, asked = question.question.split("\n")
    assert f"“{BEANS}”" in said and asked == "Answer with the letter."
    names = dict(line.split(". ") for line in listed)
    assert list(names) == ["A", "B", "C", "D"]
    assert sorted(names.values()) == ["Coffee Licence", "Juice Licence", "Milk Licence", "Tea Licence"]
    assert names[question.answers[0]] == "Coffee Licence"


def test_a_word_is_in_as_many_licences_that_are_asked_about_as_not(asked):
    """One licence has “patent”; in one it is “Patents”, which is neither yes nor no."""
    words = by_entity(asked, "word")
    assert all("“patent”" in question.question or "「patent」" in question.question for question in words.values())
    answers = {name: question.answers[0] in ("Yes", "はい") for name, question in words.items()}
    assert answers in ({"Juice Licence": True, "Coffee Licence": False}, {"Juice Licence": True, "Milk Licence": False})


def test_a_clause_is_about_the_one_topic_whose_words_it_has(asked):
    assert answers(asked, "clause") == {
        "sentence you must keep this notice with": "notices",
        "sentence the authors of the milk may": "liability",
    }


CLAUSES = {
    "You get a royalty-free right to pour the tea into any cup that you like.": None,
    "The loser of a dispute pays nobody but his own side, attorneys' fees of the other included.": "price",
    "The winner may recover attorneys' fees and other costs from the other side at once.": None,
    "The teas that you mix are governed by the terms of this licence as well.": None,
    "The tea licence is governed by the laws of Japan and by no others.": "applicable law",
    "NOTICE TO DRINKERS: the tea is hot, so wait for a minute before you drink.": None,
    "You may hand out the tea if you do so free of charge for all guests.": "price",
    "You may pour a royalty-free tea into a cup only for a fee of one coin.": "price",
}


def test_a_word_that_only_looks_like_a_topic_is_none(monkeypatch):
    monkeypatch.setattr(licences, "CLAUSES_FROM", 1.0)
    found = licences.questions_about([Licence("Tea", "Permissive", "", "en", "\n\n".join(CLAUSES))])
    topics = {one.question.partition("“")[2].partition("”")[0]: one.answers[0] for one in found if one.kind == "clause"}
    assert topics == {sentence: topic for sentence, topic in CLAUSES.items() if topic}
