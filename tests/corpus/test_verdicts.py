"""What is dropped, and the reason that is counted: unreadable text, rights, and what a source does not want."""

import dataclasses

import pytest

from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document import NOT_UTF8, Raw
from tpullm.corpus.filters import verdicts
from tpullm.corpus.filters.verdicts import Verdict
from tpullm.recipe.schema import ClassifierConfig, CorpusConfig, Source
from tpullm.system.errors import UserError

PROSE = "今日はいい天気ですね。私はリンゴを食べるのが好きです。毎日学校で本を読みます。昨日は雨でした。"
CONFIG = CorpusConfig(minimum_characters=20, licences=["CC0-1.0", "CC-BY-4.0"])


def test_unreadable():
    broken = ["本\0本", "本\ud800", "caf\ufffd", "今日は".encode().decode("latin-1"), "本" * 998 + "\ufffd"]
    assert {verdicts.unreadable(text) for text in broken} == {"broken encoding"}
    shell = 'mv "travail/\ufffdl\ufffdments graphiques" "travail/Éléments graphiques"\n'
    readable = ["a\tb\n", "本" * 999 + "\ufffd", shell + "次の行です。\n" * 9]  # one of a thousand, of ten lines
    assert [verdicts.unreadable(text) for text in (" \n\t", *readable)] == ["empty", "", "", ""]
    assert verdicts.unreadable(shell + "次の行です。\n\n" * 8) == "broken encoding"


CODE = {
    "a" * 100: "a" * 101,  # the mean line
    "a" * 99 + "\n": "a" * 100 + "\n",  # its end counts
    "a\n" * 99 + "b" * 1000: "a\n" * 99 + "b" * 1001,  # the longest line
    "a+++": "a++++",  # a quarter of it letters
}


def test_code_has_short_lines_and_letters():
    config = CorpusConfig(minimum_characters=1)
    assert {judged(Raw(text, "code"), config=config).reason for text in CODE} == {""}
    assert {judged(Raw(text, "code"), config=config).reason for text in CODE.values()} == {"generated code or data"}


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
        (Raw("★☆★\n"), {"filter": False, "clean": ["lines"]}, "empty"),
        (Raw(PROSE, reserved="noai"), {"filter": False}, "reserved (noai)"),
        (Raw(PROSE, reserved="no!"), {}, "reserved"),
        (Raw(PROSE, licence="CC-BY-NC-4.0"), {}, "licence not allowed"),
        (Raw(PROSE, licence="CC-BY-4.0"), {"licence": "unknown"}, ""),
        (Raw(f"  {PROSE[:19]}\n"), {"language": ""}, "too short"),  # white space around does not count
        (Raw(f"  {PROSE[:20]}\n"), {"language": ""}, ""),
        (Raw(PROSE + MENU * 9), {"clean": ["lines"]}, ""),
        (Raw("短い。\n" + MENU), {"clean": ["lines"]}, "too short"),  # after it was cleaned
        (Raw(PROSE), {"language": "en"}, "wrong language"),
        (Raw(PROSE * 5), {}, "too repetitive"),
        (Raw(PROSE * 5), {"filter": False}, ""),
        (Raw(PROSE), {"rules": ["repetition", "gopher"]}, "too few words"),
        (Raw(LONG), {"rules": ["repetition", "gopher", "fineweb", "c4", "kana"]}, ""),
        (Raw(LONG), {"rules": ["repetition", "gopher", "fineweb", "c4", "kana"], "language": ""}, ""),
        (Raw(LONG.replace("。", "")), {"rules": ["gopher", "fineweb"]}, "too few sentence ends"),
        (Raw("the same words " * 60), {"language": "en"}, "too repetitive"),
        (Raw("value = one\n" * 9, "code"), {"rules": ["gopher"]}, ""),
        (Raw("0x00, 0x01, 0x02, 0x03,\n" * 5), {"language": "code"}, "generated code or data"),
    ],
)
def test_a_document_is_judged(raw, source, reason):
    verdict = judged(raw, **source)
    assert verdict.reason == reason
    assert bool(verdict.text) == (not reason) == bool(verdict.language)


def test_what_is_held_out_passes_all_rules_of_quality_but_not_its_owner():
    raws = [Raw("短い"), Raw(PROSE * 5), Raw(" "), Raw("短い", reserved="noai")]
    reasons = [judged(raw, held_out=True, rules=["gopher"]).reason for raw in raws]
    assert reasons == ["", "", "empty", "reserved (noai)"]


def test_a_text_is_kept_as_it_was_cleaned():
    raw = Raw(f"{MENU}{PROSE}連絡はｔａｒｏ＠ｇｍａｉｌ．ｃｏｍまで。")
    assert judged(raw) == Verdict("", raw.text, "ja", 0)
    cleaned = Verdict("", f"{PROSE}連絡はemail@example.comまで。", "ja", 1)
    assert judged(raw, clean=["lines", "personal_data"]) == cleaned
    assert judged(raw, held_out=True, clean=["lines"]).text == f"{PROSE}連絡はｔａｒｏ＠ｇｍａｉｌ．ｃｏｍまで。"
    # C4 leaves a text without its boilerplate.
    lines = [f"Line {number} says what nobody else has said on day {number * 7}.\n" for number in range(9)]
    raw = Raw("".join(lines) + "Please enable JavaScript to go on.\n")
    assert judged(raw, language="en", rules=["c4"]).text == "".join(lines).strip()
    long = dataclasses.replace(CONFIG, minimum_characters=len("".join(lines)) + 1)
    assert judged(raw, language="en", rules=["c4"], config=long).reason == "too short"


def test_the_language_is_what_is_known_of_it():
    assert judged(Raw(PROSE)).language == judged(Raw(PROSE), language="").language == "ja"
    assert judged(Raw("value = one\n" * 9, "code")).language == "code"
    assert judged(Raw("x = 3; y = 4\n" * 9), language="", rules=[]).language == "und"


def test_what_was_read_and_learned_is_told(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(f"example.org\nexample.com/a\nexample.com/b/*\n{text_hash('a')}\n")
    assert verdicts.prepare(CONFIG) == []
    config = dataclasses.replace(CONFIG, opted_out=[str(path)])
    assert verdicts.prepare(config) == ["opted out: 1 domains, 2 addresses, 1 hashes of texts"]
    with pytest.raises(UserError, match="corpus.classifier"):
        verdicts.prepare(dataclasses.replace(CONFIG, classifier=ClassifierConfig("a", "b")))


MIXED = Source("s", "text", licence="CC-BY-4.0")


def test_a_text_is_opted_out_by_its_hash_as_it_was_read_and_as_it_would_be_trained_on(tmp_path):
    listed = tmp_path / "out.txt"
    listed.write_text(text_hash("as read") + "\n" + text_hash("cleaned").upper() + "\nexample.org\n")
    config = CorpusConfig(opted_out=[str(listed)])
    found = [verdicts.left_out(Raw(read), text, MIXED, config) for read, text in (("as read", "x"), ("x", "cleaned"))]
    assert found == ["opted out by hash"] * 2
    assert verdicts.left_out(Raw("x"), "x", MIXED, config) == ""
    assert verdicts.left_out(Raw("x", url="http://example.org"), "x", MIXED, config) == "opted out by domain"


ALLOWED = [
    ("CC-BY-4.0", "CC-BY-4.0"),
    ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
    ("http://creativecommons.org/licenses/by-sa/3.0/deed.ja", "CC-BY-SA-3.0"),
    ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
    ("Creative Commons BY NC 4.0", "https://creativecommons.org/licenses/by-nc/4.0/"),
    ("MIT OR GPL-3.0-only", "MIT"),
    ("MIT AND BSD-3-Clause OR GPL-3.0-only", "MIT", "BSD-3-Clause"),
    ("public  domain", "Public domain"),
]
OTHERS = [
    ("https://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-4.0"),
    ("CC-BY-4.0", "CC-BY-3.0"),
    ("MIT AND GPL-3.0-only", "MIT"),
    ("MIT AND (BSD-3-Clause OR GPL-3.0-only)", "MIT", "BSD-3-Clause"),  # not taken apart: rather left out
    ("", "MIT"),
    ("or", "MIT"),
]


def test_a_licence_is_allowed_if_the_recipe_names_it():
    assert [case for case in (*ALLOWED, *OTHERS) if verdicts.is_allowed(case[0], case[1:])] == ALLOWED
