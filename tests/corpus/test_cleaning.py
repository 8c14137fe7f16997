"""What is removed from a text (menus, rows of symbols, ruby, width), and that prose stays."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.filters import cleaning

NOISE = [
    "Home | About | Contact", "« Previous 1 2 3 Next »", "1 2 3 4 5", "ホーム > 本 > 夏目漱石", "Home » Books » Novels",
    "前のページ　次のページ", "トップ ／ 会社概要 ／ お問い合わせ", "続きを読む", "★☆★☆★☆★", "――――――――", "-----",
    "| | |", "Home",
]  # fmt: skip
PROSE = [
    "Home is where the heart is.", "1984", "1 2", "第一章", "次の日、雨が降った。", "「……」と彼は言った。", "三", "",
    "PAGE:", "more", "Next, we go on.", "ROMEO:", "  indented", "a > b > c", "トップの成績を取った", "To, to, to--",
]  # fmt: skip


def test_noise_goes_and_prose_stays():
    for line in (*NOISE, *PROSE):
        text, gone = f"吾輩は猫である。\n{line}\n\n名前はまだ無い。\n", "吾輩は猫である。\n\n名前はまだ無い。\n"
        assert cleaning.without_noise(text) == (gone if line in NOISE else text)


def test_literature_loses_rows_of_symbols_and_has_no_personal_data(real_text):
    for path in [*(real_text / "soseki").iterdir(), real_text / "tinyshakespeare.txt"]:
        text = path.read_text(encoding="utf-8")
        left, replaced = cleaning.cleaned(text, ["lines", "personal_data"])
        kept = set(left.split("\n"))
        assert replaced == 0 and not any(cleaning.WORD.search(line) for line in text.split("\n") if line not in kept)


def test_a_long_run_of_a_symbol_is_shortened_wherever_it_is(monkeypatch):
    monkeypatch.setattr(cleaning, "WINDOW", 11)
    letters = "".join(chr(0x4E00 + number) for number in range(60))
    for before, after in ((letters[:place], letters[place:]) for place in (0, 1, 10, 11, 20)):
        assert cleaning.without_noise(f"{before}{'!' * 10}{after}") == f"{before}!!!{after}"
        assert cleaning.without_noise(f"{before}{'!' * 9}a{'ー' * 11}{after}") == f"{before}{'!' * 9}aーーー{after}"


RUBY = {
    "吾輩《わがはい》は猫である。": "吾輩は猫である。",
    "どこで｜生れたか《うまれたか》知らぬ": "どこで生れたか知らぬ",
    "ここから［＃ここから２字下げ］本文": "ここから本文",
    "《吾輩》は題名、《ねこ》は行の初め": "《吾輩》は題名、は行の初め",
    "《ねこ》、表｜列｜値": "《ねこ》、表｜列｜値",  # nothing before it that it could be the reading of
}


@given(st.text("猫《》｜ねこ［＃］\n"))
def test_readings_and_notes_go_and_nothing_else(text):
    assert {text: cleaning.without_ruby(text) for text in RUBY} == RUBY
    rest = iter(text)
    assert all(character in rest for character in cleaning.without_ruby(text))


def test_steps_are_taken_in_their_order():
    text = "ｔａｒｏ＠ｇｍａｉｌ．ｃｏｍ　ﾈｺ"
    assert cleaning.cleaned(text, ["width"]) == ("taro@gmail.com ネコ", 0)
    assert cleaning.cleaned(text, ["width", "personal_data"]) == ("email@example.com ネコ", 1)


UNITS = "a- a@ a@a. @ (at) a(at)a(dot) 1. 1.1.1.1. 2001: 0 (0 03-1234- (2 200- 電話 0１ % － ｜ 《 ｜あ 《あ".split()
UNITS += "｜あ《あ ［＃ ［＃あ ! ー |".split()
UNITS += "〇三―一 00444 +4444444444 09-99999999_ 0049-40-6696945_ 1381 4539- AA11A 4539148803436466_".split()
UNITS += ["ghp_1", "eyJa.", "sk-1A", "00" + "4" * 5000 + " 4 "]
UNITS += ["PRIVATE KEY-----", "PRIVATE KEY-----a-", "a★", "a at b dot ", "AA11 AAAA 1111 ", "01 02 03 04 05 x "]
UNITS += ["+1 ", "TEL ", "1234567890 ", "Home ", "1 ", " ", "a@" + "b." * 8, "a@" + "b" * 63 + "."]


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_text_takes_linear_time(unit):
    text = unit * (100_000 // len(unit))
    begin = time.thread_time()
    cleaning.cleaned(text, ["lines", "ruby", "width", "personal_data"])
    assert time.thread_time() - begin < 2  # 0.1 s at most; where each place is tried to the end it takes minutes
