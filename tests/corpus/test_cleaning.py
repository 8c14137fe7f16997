"""What is removed from a text: menus and rows of symbols, ruby, full-width letters; and that prose stays."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.filters import cleaning


@pytest.mark.parametrize(
    "line",
    [
        "Home | About | Contact", "« Previous 1 2 3 Next »", "1 2 3 4 5", "ホーム > 本 > 夏目漱石",
        "前のページ　次のページ",
        "トップ ／ 会社概要 ／ お問い合わせ", "続きを読む", "★☆★☆★☆★", "――――――――", "-----", "| | |",
        "Home » Books » Novels",
    ],
)  # fmt: skip
def test_noise_goes(line):
    text = f"吾輩は猫である。\n{line}\n\n名前はまだ無い。\n"
    assert cleaning.without_noise(text) == "吾輩は猫である。\n\n名前はまだ無い。\n"


@pytest.mark.parametrize(
    "line",
    [
        "Home is where the heart is.", "1984", "1 2", "第一章", "次の日、雨が降った。", "「……」と彼は言った。",
        "To, to, to--", "PAGE:", "more", "Next, we go on.",
        "ROMEO:", "  indented", "a > b > c", "Home", "トップの成績を取った", "三", "",
    ],
)  # fmt: skip
def test_prose_stays(line):
    text = f"吾輩は猫である。\n{line}\n名前はまだ無い。"
    assert (cleaning.without_noise(text) == text) == (line != "Home")


def test_literature_loses_nothing_but_rows_of_symbols(real_text):
    for path in [*(real_text / "soseki").iterdir(), real_text / "tinyshakespeare.txt"]:
        text = path.read_text(encoding="utf-8")
        left = set(cleaning.without_noise(text).split("\n"))
        lost = {line for line in text.split("\n") if line not in left}
        assert not any(map(cleaning.WORD.search, lost))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("本" + "!" * 10, "本!!!"),
        ("!" * 9 + "a" + "?" * 10, "!" * 9 + "a???"),
        ("あーーーーーーーーーーー", "あーーー"),
    ],
)
def test_long_runs_of_a_symbol_are_shortened(text, expected):
    assert cleaning.without_noise(text) == expected


@pytest.mark.parametrize("place", [0, 1, 9, 10, 11, 20, 35])
def test_a_run_is_found_wherever_it_is(monkeypatch, place):
    monkeypatch.setattr(cleaning, "WINDOW", 11)
    letters = "".join(chr(0x4E00 + number) for number in range(60))
    before, after = letters[:place], letters[place:]
    assert cleaning.without_noise(f"{before}{10 * chr(33)}{after}") == f"{before}!!!{after}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("吾輩《わがはい》は猫である。", "吾輩は猫である。"),
        ("どこで｜生れたか《うまれたか》知らぬ", "どこで生れたか知らぬ"),
        ("ここから［＃ここから２字下げ］本文", "ここから本文"),
        ("《吾輩》は題名、《ねこ》は行の初め", "《吾輩》は題名、は行の初め"),
        ("《ねこ》", "《ねこ》"),  # nothing before it that it could be the reading of
        ("A | B | C", "A | B | C"),
        ("表｜列｜値", "表｜列｜値"),
    ],
)
def test_readings_and_notes_go(text, expected):
    assert cleaning.without_ruby(text) == expected


@pytest.mark.parametrize(
    "unit", ["｜", "《", "｜あ", "《あ", "｜あ《あ", "［＃", "［＃あ", "!", "ー", "Home ", "1 ", "|", " "]
)
def test_hostile_text_takes_linear_time(unit):
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    cleaning.cleaned(text, ["lines", "ruby", "width", "personal_data"])
    assert time.process_time() - begin < 6


def test_steps_are_taken_in_their_order():
    text = "ｔａｒｏ＠ｇｍａｉｌ．ｃｏｍ　ﾈｺ"
    assert cleaning.cleaned(text, []) == (text, 0)
    assert cleaning.cleaned(text, ["width"]) == ("taro@gmail.com ネコ", 0)
    assert cleaning.cleaned(text, ["width", "personal_data"]) == ("email@example.com ネコ", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", ""),
        ("東京都千代田区千代田一番地、大阪府大阪市北区中之島。", "too little hiragana"),
        ("アイスクリームとコーヒーとケーキとパンのセット", "mostly katakana"),
        ("これはとてもとても短いがひらがなはとてもおおい this is a half", ""),
        ("ひらがなはおおいがはんぶんよりもすくない and this one is so very long", "too little Japanese"),
    ],
)
def test_a_script_is_judged_by_its_shares(text, reason):
    assert cleaning.odd_script(text) == reason


@given(st.text("猫《》｜ねこ［＃］\n"))
def test_only_readings_marks_and_notes_go(text):
    left = cleaning.without_ruby(text)
    rest = iter(text)
    assert all(character in rest for character in left)
