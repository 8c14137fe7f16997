"""Questions about laws are made of their structure: each has one right answer, an article of the main provisions."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.made_up_law import DEFINED, LAW, WASH, as_json
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


CAPTIONS = {
    "第一条": "目的", "第二条": "定義", "第三条": "急須の洗浄", "第三条の二": "茶さじの管理", "第十条": "罰則",
    "第百二十五条": "両罰",
}  # fmt: skip
# Two articles want the pot washed. A proviso, an item and a supplementary provision are not asked for.
SENTENCES = {
    "第一条": "この法律は、茶を飲む者の健康を守ることを目的とする。",
    "第二条": "この法律において、次の用語の意義は、それぞれに定めるところによる。",
    "第三条の二": "茶さじを持つ者は、これを他人に貸してはならない。",
    "第十条": "第三条の規定に違反した者は、三日の間、茶を飲んではならない。",
}
WHOLE = {
    "第一条": "この法律は、茶を飲む者の健康を守ることを目的とする。ただし、水を飲む者については、この限りでない。",
    "第二条": f"{DEFINED}\n一　茶　葉を湯で淹れた飲み物をいう。\nイ　緑茶\n２　茶の値段は、次の表による。\n緑茶　十円",
    "第三条": WASH,
    "第三条の二": SENTENCES["第三条の二"],
    "第十条": SENTENCES["第十条"],
    "第百二十五条": WASH,
}


def listed(asked):
    """The articles that a question gives: title → caption, sentence or passage."""
    number = "第[一-十百]+条(?:の二)?"
    lines = re.findall(rf"^(?:({number})（(.+)）|(.+)（({number})）)$", asked.question, re.MULTILINE)
    return {title or other: caption or text for title, caption, text, other in lines}


def test_a_question_gives_four_articles_and_one_of_them_is_the_answer(tea):
    made = law.questions_about([tea])
    for one in made:
        said, (article,) = listed(one), {one.entity.removeprefix("茶の法")}
        assert len(said) == 4 and article in said and list(said) == sorted(said, key=list(CAPTIONS).index)
        if one.kind == "passage":
            assert all(said[title] in WHOLE[title] and len(said[title]) in law.PASSAGE for title in said)
            assert sum(said[article] in passage for passage in said.values()) == 1
        else:
            assert said.items() <= (SENTENCES if one.kind == "reading" else CAPTIONS).items()
        caption = CAPTIONS[article]
        sought = {"caption": article, "sentence": SENTENCES.get(article), "passage": said[article]}
        assert sought.get(one.kind, f"「{caption}」") in one.question and "茶の法" in one.question
        heading = {"caption": f"{article}（{caption}）", "passage": f"{said[article]}（{article}）"}
        assert one.answers[0] == heading.get(one.kind, f"{caption}（{article}）"), "as it is given"
        assert one.answers[1] == (caption if one.kind == "caption" else article), "this alone is right too"
        alike = {title: len({*str(sought.get(one.kind, caption))} & {*title, *text}) for title, text in said.items()}
        best = next(title for title in said if f"{title}（" in one.guess or f"（{title}）" in one.guess)
        assert alike[best] >= max(alike.values()) - 2, "brackets and quotes"
    of_kind = {kind: set(by_entity(made, kind)) for kind in law.FORMS}
    titles = dict(article=CAPTIONS, caption=CAPTIONS, sentence=SENTENCES, reading=SENTENCES, passage=WHOLE)
    assert of_kind == {kind: {f"茶の法{title}" for title in own} for kind, own in titles.items()}
    passages = [one.question for one in made if one.kind == "passage"]
    assert len(set(passages)) == len(passages) > 100


def test_an_article_is_named_in_kanji_or_digits(tea):
    one = by_entity(law.questions_about([tea]), "article")["茶の法第三条の二"]
    for said in ("第三条の二", " 第三条の二。", "茶の法第三条の二", "第3条の2"):
        assert right(one, said)
    for said in ("第三条", "第四条", "第三条の三", "第三条の二と第十条", ""):
        assert not right(one, said)


def test_the_guess_has_the_most_characters_in_common_with_what_is_sought(tea):
    made = by_entity(law.questions_about([tea]), "reading")
    assert made["茶の法第三条の二"].guess == "茶さじの管理（第三条の二）", "茶さじ"
    assert {one.guess in one.answers for one in law.questions_about([tea]) if one.kind == "article"} == {True}


def test_a_law_of_less_than_four_articles_is_not_asked_about(tea):
    assert law.questions_about([tea._replace(articles=tea.articles[:3])]) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("２　茶を飲む者は、（湯を沸かす。以下同じ。）まず手を洗わなければならない。茶は熱い。", 1),
        ("茶を飲む者（湯を沸かす者を除く。以下「飲む者」という。）及び関連する資料をあらかじめ公示する者。", 1),
        ("茶を飲む者（湯を沸かす者を除く。\n以下「飲む者」という。）及び関連する資料をあらかじめ公示する者。", 0),
        ("ただし、茶を飲む者については、この限りでないものとする。", 0),
    ],
)
def test_a_sentence_is_whole(text, found):
    sentences = law._sentences(laws.Article("", "第一条", "", text, True))
    assert len(sentences) == found and all(one.count("（") == one.count("）") for one in sentences)


def test_of_each_kind_there_are_at_most_so_many(tea, monkeypatch):
    monkeypatch.setattr(law, "DRAWS", 1)
    every = law.questions_about([tea])
    monkeypatch.setattr(law, "MOST", 3)
    some = law.questions_about([tea])
    assert Counter(one.kind for one in some) == dict.fromkeys(law.FORMS, 3)
    assert set(some) < set(every)


def test_of_one_law_articles_are_held_out_and_of_several_whole_laws(tea):
    assert {one.entity for one in law.questions_about([tea]) if one.kind == "caption"} > {
        "茶の法第一条",
        "茶の法第十条",
    }
    several = [tea._replace(title=f"茶{number}の法") for number in "一二三四五"]
    # Their sentences are the same, so none of these is asked for.
    asked = law.questions_about(several)
    assert {one.kind for one in asked} == {"article", "caption", "passage"}
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
    known = {one.answers[0] for one in asked if "「特許公報」" in one.question and one.kind == "article"}
    assert known == {"特許公報（第百九十三条）"}
