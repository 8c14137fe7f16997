"""What is dropped, and the reason that is counted."""

import pytest

from tpullm.corpus import filters
from tpullm.recipe.schema import CorpusConfig

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
    assert filters.unreadable(text) == reason


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
def test_unwanted(text, name, reason):
    assert filters.unwanted(text, name, CONFIG) == reason


@pytest.mark.parametrize(("characters", "reason"), [(19, "too short"), (20, "")])
def test_the_least_length_is_kept_and_white_space_around_does_not_count(characters, reason):
    assert filters.unwanted(f"  {PROSE[:characters]}\n", "", CONFIG) == reason


@pytest.mark.parametrize(("good", "reason"), [(998, "broken encoding"), (999, "")])
def test_one_broken_character_of_a_thousand_is_borne(good, reason):
    assert filters.unreadable("本" * good + "\ufffd") == reason


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
    assert filters._is_written_code(text) == written
