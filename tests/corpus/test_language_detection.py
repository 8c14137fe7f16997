"""Texts are told apart by script, and English from German by its words."""

import pytest

from tpullm.corpus import language_detection

TEXTS = {
    "ja": "今日はいい天気ですね。私はリンゴを食べるのが好きです。",
    "en": "It is a fine day, and I like to eat the apples that are in the garden of the school.",
    "de": "Das Wetter ist heute schön, und ich esse mit den Kindern die Äpfel von dem Baum, nicht die Birnen.",
    "zh": "今天天气很好，我喜欢吃苹果，每天都去学校读书。",
    "ko": "오늘은 날씨가 좋네요. 저는 사과를 좋아합니다.",
    "ru": "Сегодня хорошая погода, и я люблю есть яблоки.",
}


@pytest.mark.parametrize("written", TEXTS)
@pytest.mark.parametrize("named", TEXTS)
def test_a_text_is_in_its_own_language_only(written, named):
    assert language_detection.is_language(TEXTS[written], named) == (written == named)


def test_japanese_with_english_names_is_japanese():
    text = "お勧めのコメディ映画は何ですか？お勧めの映画は「Monty Python and the Holy Grail」です。"
    assert language_detection.is_language(text, "ja")


def test_guess():
    assert [language_detection.guess(TEXTS[name]) for name in ("ja", "en", "de")] == ["ja", "en", "und"]
    assert language_detection.guess("12345") == "und"


def test_shares_are_of_what_is_said_so_an_ideograph_counts_three_letters():
    shares = language_detection.script_shares("abcdefghi 123 本かЯ")
    assert shares["latin"] == 9 / 16 and shares["cyrillic"] == 1 / 16
    assert shares["han"] == shares["kana"] == 3 / 16 and sum(shares.values()) == 1
    assert set(language_detection.script_shares("123 !?").values()) == {0}


@pytest.mark.parametrize("script", language_detection.SCRIPTS)
def test_the_ends_of_each_block_belong_to_its_script(script):
    for first, last in language_detection.SCRIPTS[script]:
        for point, inside in ((first, 1), (last, 1)):
            assert language_detection.script_shares(chr(point))[script] == inside


def test_the_beginning_of_a_text_decides():
    beginning = "this is the text of it and " * 800  # more than 20,000 characters
    assert language_detection.is_language(beginning + TEXTS["ja"] * 2000, "en")
    assert language_detection.guess(beginning[:-30] + TEXTS["ja"] * 2000) == "en"


@pytest.mark.parametrize(
    ("text", "spaceless"), [("本" * 3 + "a" * 9, True), ("本" * 3 + "a" * 10, False), ("ภาษาไทย", True), ("가", False)]
)
def test_half_of_a_text_decides_whether_it_has_spaces(text, spaceless):
    assert language_detection.is_spaceless(text) == spaceless


@pytest.mark.parametrize(("kana", "language"), [(1, "ja"), (0, "zh")])
def test_a_twentieth_of_kana_is_japanese(kana, language):
    text = "本" * 19 + "か" * kana
    assert [name for name in ("ja", "zh") if language_detection.is_language(text, name)] == [language]
    assert language_detection.is_language("本" * 20 + "か", "zh")


@pytest.mark.parametrize(
    ("german", "english", "is_english"), [(4, 1, True), (5, 1, False), (2, 0, True), (3, 0, False), (0, 0, True)]
)
def test_a_text_is_another_languages_with_over_twice_its_common_words_and_two(german, english, is_english):
    text = " ".join(["Der"] * german + ["The"] * english + ["xyz"])
    assert language_detection.is_language(text, "en") == is_english


def test_a_latin_text_may_be_in_any_language_whose_words_are_not_known():
    assert language_detection.is_language(TEXTS["de"], "sv") and not language_detection.is_language(TEXTS["ru"], "sv")


@pytest.mark.parametrize(("others", "guess"), [(9, "en"), (10, "und")])
def test_a_tenth_of_common_words_is_english(others, guess):
    assert language_detection.guess(" ".join(["the", *["xyz"] * others])) == guess
