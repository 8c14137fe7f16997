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
