"""The page about the user's own text."""

import pytest

from tests.report.test_page import RESULTS, Outline, full
from tpullm.report.page import page


def shown(**changes):
    yours = {**RESULTS["yours"], **changes}
    return Outline(page(full(results=RESULTS | {"yours": yours}))).text


@pytest.mark.parametrize(
    ("packed", "said"),
    [(2.5, "The model needs 20.0% less than the compressor"), (1.6, "The model needs 25.0% more than the compressor")],
)
def test_the_model_is_held_against_a_compressor(packed, said):
    text = shown(compressor={"name": "xz -9e", "bits_per_byte": packed})
    assert said in text and "the model 2.000" in text and f"xz -9e {packed:.3f}" in text


def test_a_text_that_was_read_often_is_known_by_heart():
    assert "was read 40 times, so the model knows much of it by heart" in shown()
    assert "by heart" not in shown(times_read=3.0)


def test_a_blank_shows_the_word_that_was_there_and_whether_it_was_guessed():
    text = shown()
    assert "吾輩は 【?】 である。 猫 0.70 In your text: 「猫」 right" in text
    assert "名前は 【?】 無い。 何も 0.40 In your text: 「まだ」 " in text and "「まだ」 right" not in text
    assert "Of 2 words taken out, 1 are the model's first guess and 2 are among its first five." in text


def test_what_the_model_writes_stands_above_what_the_text_says():
    assert "私は猫 が好きである。 In your text: である。名前はまだ無い。" in shown()


def test_a_run_without_own_text_says_nothing_of_it():
    results = {key: value for key, value in RESULTS.items() if key != "yours"}
    assert "yours" not in Outline(page(full(results=results))).ids


def test_a_text_that_is_too_short_for_all_of_it_shows_what_there_is():
    text = shown(continuations=[], blanks=[])
    assert "How well it predicts your text" in text and "Which word is missing in your text?" not in text
