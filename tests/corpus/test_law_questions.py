"""Questions about laws are made of their structure: each has one right answer, an article of the main provisions."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.made_up_law import LAW, as_json
from tests.corpus.test_domains import by_entity
from tests.training.rewards.test_right_number import in_kanji
from tpullm.corpus import law_questions as law
from tpullm.corpus import question
from tpullm.corpus.files import laws
from tpullm.data import examples
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError


@pytest.fixture
def tea(tmp_path):
    (tmp_path / "tea.xml").write_text(LAW, encoding="utf-8")
    return laws.read(tmp_path / "tea.xml")


def right(asked, said):
    return question.is_right(asked, said, passes=None)


def test_captions_and_articles_are_asked_for_both_ways(tea):
    asked = law.questions_about([tea])
    captions = {
        "第一条": "目的", "第二条": "定義", "第三条": "急須の洗浄", "第三条の二": "茶さじの管理",
        "第十条": "罰則", "第百二十五条": "両罰",
    }  # fmt: skip
    of = {kind: by_entity(asked, kind) for kind in ("article", "caption")}
    assert {entity: one.answers for entity, one in of["caption"].items()} == {
        f"茶の法{title}": (caption,) for title, caption in captions.items()
    }
    for title, caption in captions.items():
        one = of["article"][f"茶の法{title}"]
        assert f"「{caption}」" in one.question and "茶の法" in one.question and title not in one.question
        assert right(one, title) and right(one, f" {title}。") and right(one, f"茶の法{title}")
        assert not right(one, "第四条") and not right(one, "第一条") or title == "第一条"
        assert title in of["caption"][f"茶の法{title}"].question
    assert right(of["article"]["茶の法第三条の二"], "第3条の2")
    assert right(of["article"]["茶の法第百二十五条"], "第125条")


def test_a_sentence_is_asked_for_if_one_article_says_it(tea):
    """Two articles want the pot washed. A proviso, an item and a supplementary provision are not asked for."""
    asked = by_entity(law.questions_about([tea]), "sentence")
    assert {entity: one.question.rpartition("\n")[2] for entity, one in asked.items()} == {
        "茶の法第一条": "この法律は、茶を飲む者の健康を守ることを目的とする。",
        "茶の法第二条": "この法律において、次の用語の意義は、それぞれに定めるところによる。",
        "茶の法第三条の二": "茶さじを持つ者は、これを他人に貸してはならない。",
        "茶の法第十条": "第三条の規定に違反した者は、三日の間、茶を飲んではならない。",
    }


def test_of_four_articles_with_their_captions_one_says_it(tea):
    asked = by_entity(law.questions_about([tea]), "choice")
    assert len(asked) == 4
    for one in asked.values():
        listed = [line for line in one.question.split("\n") if line.startswith("第") and line.endswith("）")]
        titles = [line.partition("（")[0] for line in listed]
        assert len(set(titles)) == 4 and one.answers[0] in titles


def test_of_each_kind_there_are_at_most_so_many(tea, monkeypatch):
    every = law.questions_about([tea])
    monkeypatch.setattr(law, "MOST", 3)
    some = law.questions_about([tea])
    assert Counter(one.kind for one in some) == dict.fromkeys(("article", "caption", "sentence", "choice"), 3)
    assert set(some) < set(every)


def test_of_one_law_articles_are_held_out_and_of_several_whole_laws(tea):
    assert {one.entity for one in law.questions_about([tea]) if one.kind == "caption"} > {
        "茶の法第一条",
        "茶の法第十条",
    }
    several = [tea._replace(title=f"茶{number}の法") for number in "一二三四五"]
    # Their sentences are the same, so none of these is asked for.
    asked = law.questions_about(several)
    assert Counter(one.kind for one in asked) == {"article": 30, "caption": 30}
    assert {one.entity for one in asked} == {one.title for one in several}
    learned, held_out = question.split(asked, 0.2)
    assert not {one.entity for one in learned} & {one.entity for one in held_out} and held_out and learned
    assert law.questions_about([tea, tea]) == [], "two of one title"


def test_a_recipe_asks_about_the_laws_of_its_sources(tmp_path):
    (tmp_path / "laws").mkdir()
    for name, text in (
        ("a.xml", LAW),
        ("b.json", as_json(LAW.replace("茶の法", "湯の法"))),
        ("c.txt", "主文"),
        ("d.xml", "<a/>"),
    ):
        (tmp_path / "laws" / name).write_text(text, encoding="utf-8")
    source = Source("law", "law", str(tmp_path / "laws"), licence="none")
    learned, held_out = examples.questions("law", 0.2, 0, [source])
    assert {one.entity for one in learned} | {one.entity for one in held_out} == {"茶の法", "湯の法"}
    assert held_out, "of two laws one is held out, whatever their hashes"
    talks, _ = examples.read(["law"], examples.Conversation, {}, 0.2, 0, [source])
    assert len(talks) == len(learned)
    for wrong, told in (
        ("https://example.org/a.xml", "is not here; download it"),
        (str(tmp_path / "laws" / "c.txt"), "has no law"),
    ):
        with pytest.raises(UserError, match=told):
            examples.questions("law", 0.2, 0, [Source("law", "law", wrong, licence="none")])


@given(st.integers(1, 9999))
def test_the_number_of_an_article_in_digits(number):
    assert law._in_digits(f"第{in_kanji(number)}条の{in_kanji(number % 9 + 1)}") == f"第{number}条の{number % 9 + 1}"


def test_real_laws_have_questions(real_text):
    paths = sorted((real_text / "law").glob("*")) if (real_text / "law").is_dir() else []
    if not paths:
        pytest.skip(f"no laws in {real_text}")
    asked = law.questions(paths)
    assert min(Counter(one.kind for one in asked).values()) > 200 and len({one.question for one in asked}) == len(asked)
    known = {one.answers[0] for one in asked if "特許公報" in one.question and one.kind == "article"}
    assert known == {"第百九十三条"}
