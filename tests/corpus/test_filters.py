"""What is dropped, and the reason that is counted."""

import dataclasses
import importlib.util
import time

import pytest

from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document import NOT_UTF8, Raw
from tpullm.corpus.filters import quality, verdicts, words
from tpullm.corpus.filters.verdicts import Verdict
from tpullm.recipe.schema import ClassifierConfig, CorpusConfig, Source
from tpullm.system.errors import UserError

PROSE = "今日はいい天気ですね。私はリンゴを食べるのが好きです。毎日学校で本を読みます。昨日は雨でした。"
CONFIG = CorpusConfig(minimum_characters=20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n\t", "empty"),
        ("本\0本", "broken encoding"),
        ("本\ud800", "broken encoding"),
        ("caf\ufffd", "broken encoding"),
        ("今日は".encode().decode("latin-1"), "broken encoding"),
        ("今日は", ""),
        ("a\tb\n", ""),
    ],
)
def test_unreadable(text, reason):
    assert verdicts.unreadable(text) == reason


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("短い", "ja", "too short"),
        (PROSE, "ja", ""),
        (PROSE, "en", "wrong language"),
        (PROSE, "", ""),
        (PROSE * 5, "ja", "too repetitive"),
        ("the same words " * 60, "en", "too repetitive"),
        ("def f(x):\n    return x + 1  # one\n", "code", ""),
        ("0x00, 0x01, 0x02, 0x03,\n" * 5, "code", "generated code or data"),
        ("var x = 'aaaa';" * 100, "code", "generated code or data"),
    ],
)
def test_what_its_source_does_not_want(text, name, reason):
    raw = Raw(text, language="code" if name == "code" else "")
    assert judged(raw, language=name).reason == reason


@pytest.mark.parametrize(("characters", "reason"), [(19, "too short"), (20, "")])
def test_the_least_length_is_kept_and_white_space_around_does_not_count(characters, reason):
    assert judged(Raw(f"  {PROSE[:characters]}\n"), language="").reason == reason


@pytest.mark.parametrize(("good", "reason"), [(998, "broken encoding"), (999, "")])
def test_one_broken_character_of_a_thousand_is_borne(good, reason):
    assert verdicts.unreadable("本" * good + "\ufffd") == reason


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a" * 100, True),
        ("a" * 101, False),  # the mean line
        (("a" * 99 + "\n") * 2, True),
        (("a" * 100 + "\n"), False),  # its end counts
        ("a\n" * 99 + "b" * 1000, True),
        ("a\n" * 99 + "b" * 1001, False),  # the longest line
        ("a+++", True),
        ("a++++", False),  # a quarter of it letters
    ],
)
def test_code_has_short_lines_and_letters(text, written):
    assert verdicts._is_written_code(text) == written


SOURCE = Source("s", "text", licence="CC0-1.0", language="ja")
LONG = """朝の六時に目が覚めたので、窓を開けて外を見た。夜のうちに降った雨が庭の石を黒く光らせている。
台所では母がもう味噌汁を作っていて、その匂いが二階まで上がってきた。急いで顔を洗い、階段を下りる。
駅までは歩いて十五分ほどかかるが、今日は川沿いの道を選んだ。桜はとうに散り、若い葉が風に揺れていた。
橋のたもとで友人に会い、昨日の試験について少し話した。彼は歴史の問題が難しかったと言って笑う。
電車の中は静かで、誰もが自分の小さな画面に見入っている。私は鞄から本を出し、しおりの頁を開いた。
物語の主人公は、遠い島へ渡る船を待ちながら、古い手紙を読み返すところだった。続きは帰りに読もう。
"""
MENU = "ホーム | 会社概要 | お問い合わせ\n"


def judged(raw, held_out=False, config=CONFIG, **source):
    return verdicts.judge(raw, dataclasses.replace(SOURCE, **source), config, held_out)


@pytest.mark.parametrize(
    ("raw", "source", "reason"),
    [
        (NOT_UTF8, {}, "not UTF-8"),
        (Raw(" \n"), {"filter": False}, "empty"),
        (Raw("caf\ufffd"), {"filter": False}, "broken encoding"),
        (Raw("\ud800" + PROSE), {"filter": False}, "broken encoding"),
        (Raw("★☆★\n"), {"filter": False, "clean": ["lines"]}, "empty"),
        (Raw(PROSE, reserved="noai"), {"filter": False}, "reserved (noai)"),
        (Raw("短い"), {}, "too short"),
        (Raw(PROSE + MENU * 9), {"clean": ["lines"]}, ""),
        (Raw("短い。\n" + MENU), {"clean": ["lines"]}, "too short"),  # after it was cleaned
        (Raw(PROSE), {"language": "en"}, "wrong language"),
        (Raw(PROSE * 5), {}, "too repetitive"),
        (Raw(PROSE * 5), {"rules": []}, ""),
        (Raw(PROSE * 5), {"filter": False}, ""),
        (Raw(PROSE), {"rules": ["repetition", "gopher"]}, "too few words"),
        (Raw(LONG), {"rules": ["repetition", "gopher", "fineweb", "c4", "kana"]}, ""),
        (Raw(LONG), {"rules": ["repetition", "gopher", "fineweb", "c4", "kana"], "language": ""}, ""),
        (Raw(LONG.replace("。", "")), {"rules": ["gopher", "fineweb"]}, "too few sentence ends"),
        (Raw("value = one\n" * 9, "code"), {"rules": ["gopher"]}, ""),
    ],
)
def test_a_document_is_judged(raw, source, reason):
    verdict = judged(raw, **source)
    assert verdict.reason == reason
    assert bool(verdict.text) == (not reason) == bool(verdict.language)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(Raw("短い"), ""), (Raw(PROSE * 5), ""), (Raw(" "), "empty"), (Raw("短い", reserved="noai"), "reserved (noai)")],
)
def test_what_is_held_out_passes_all_rules_of_quality_but_not_its_owner(raw, reason):
    assert judged(raw, held_out=True, rules=["gopher"]).reason == reason


def test_a_text_is_kept_as_it_was_cleaned():
    raw = Raw(f"{MENU}{PROSE}連絡はｔａｒｏ＠ｇｍａｉｌ．ｃｏｍまで。")
    assert judged(raw) == Verdict("", raw.text, "ja", 0)
    assert judged(raw, clean=["lines", "personal_data"]) == Verdict(
        "", f"{PROSE}連絡はemail@example.comまで。", "ja", 1
    )
    assert judged(raw, held_out=True, clean=["lines"]).text == f"{PROSE}連絡はｔａｒｏ＠ｇｍａｉｌ．ｃｏｍまで。"


def test_c4_leaves_a_text_without_its_boilerplate():
    lines = [f"Line {number} says what nobody else has said on day {number * 7}.\n" for number in range(9)]
    raw = Raw("".join(lines) + "Please enable JavaScript to go on.\n")
    assert judged(raw, language="en", rules=["c4"]).text == "".join(lines).strip()
    long = dataclasses.replace(CONFIG, minimum_characters=len("".join(lines)) + 1)
    assert judged(raw, language="en", rules=["c4"], config=long).reason == "too short"


@pytest.mark.parametrize(
    ("raw", "source", "language"),
    [
        (Raw(PROSE), {}, "ja"), (Raw(PROSE), {"language": ""}, "ja"), (Raw("value = one\n" * 9, "code"), {}, "code"),
        (Raw("Et rebiger ut " * 4), {"language": ""}, "und"),
    ],
)  # fmt: skip
def test_the_language_is_what_is_known_of_it(raw, source, language):
    assert judged(raw, **source).language == language


def test_the_hash_of_the_text_that_would_be_trained_on_can_be_listed(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(text_hash(PROSE))
    config = dataclasses.replace(CONFIG, opted_out=[str(path)])
    assert judged(Raw(MENU + PROSE), config=config).reason == ""
    assert judged(Raw(MENU + PROSE), config=config, clean=["lines"]).reason == "opted out by hash"


RULES = ["repetition", "gopher", "fineweb", "c4", "kana", "adult", "advertising"]
RULES = RULES if importlib.util.find_spec("hojichar") else RULES[:-2]
UNITS = [
    "a!",
    "a ",
    "a\n",
    "! ",
    "!",
    "の",
    "の。",
    "猫は",
    "a.",
    ". ",
    "「",
    "[1]",
    "{",
    "- a\n",
    "...\n",
    "\u0301",
    "\n",
    "ー",
]


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("unit", UNITS)
def test_no_rule_takes_more_than_linear_time(unit, language):
    text = PROSE + unit * (1_000_000 // len(unit)) + "a"
    begin = time.process_time()
    for rule in RULES:
        quality.judge(text, language, "", [rule], CONFIG)
    assert time.process_time() - begin < 30  # 1.3 s at most; a quadratic search takes an hour


def test_words_of_a_huge_text_are_bounded(monkeypatch):
    monkeypatch.setattr(quality, "BEGINNING", 1000)
    of = words.of
    monkeypatch.setattr(words, "of", lambda text: of(text) if len(text) <= 1000 else pytest.fail("all of it was split"))
    for rule in set(RULES) - {"repetition", "c4"}:
        quality.judge(LONG * 100, "ja", "", [rule], CONFIG)


def test_what_was_read_and_learned_is_told(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(f"example.org\nexample.com/a\nexample.com/b/*\n{text_hash('a')}\n")
    assert verdicts.prepare(CONFIG) == []
    config = dataclasses.replace(CONFIG, opted_out=[str(path)])
    assert verdicts.prepare(config) == ["opted out: 1 domains, 2 addresses, 1 hashes of texts"]
    with pytest.raises(UserError, match="corpus.classifier"):
        verdicts.prepare(dataclasses.replace(CONFIG, classifier=ClassifierConfig("a", "b")))
