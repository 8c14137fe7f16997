import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.evaluation.question_files import character_f1, is_exact, normalized


@pytest.mark.parametrize(
    "said, means",
    [
        ("１２３", "123"),
        ("ｱﾒﾘｶ", "アメリカ"),
        ("Ａ．　本", "A. 本"),
        ("\n\n  答え です \nそして", "答え です"),
        ("㍻", "平成"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_what_is_written_differently_and_means_the_same(said, means):
    assert normalized(said) == means
    assert is_exact(said, ["other", means])


def test_another_answer_is_not_exact():
    assert not is_exact("12", ["123"]) and not is_exact("123\n4", ["4"])


def test_f1_of_characters():
    """東京都 and 東京: two characters in common of three and of two."""
    assert character_f1("東京都", ["東京"]) == pytest.approx(2 * 2 / (3 + 2))
    assert character_f1("東京都", ["大阪", "東京"]) == pytest.approx(0.8)  # the nearest answer
    assert character_f1("ああ", ["あ"]) == pytest.approx(2 / 3)  # a character counts as often as both have it
    assert character_f1("", ["あ"]) == 0 and character_f1("", [""]) == 1 and character_f1("い", ["あ"]) == 0


@given(st.text(max_size=20), st.text(max_size=20))
def test_f1_is_symmetric_and_1_for_the_same(one, other):
    assert character_f1(one, [other]) == pytest.approx(character_f1(other, [one]))
    assert character_f1(one, [one]) == 1 and 0 <= character_f1(one, [other]) <= 1


@given(st.text(max_size=20))
def test_normalizing_twice_is_normalizing_once(text):
    assert normalized(normalized(text)) == normalized(text)
