"""The model's sums are exact, so a text has the same language on every machine; and they are py3langid's own."""

import math
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier, visit_counts

from tpullm.corpus import language_detection

LANGUAGES = ("de", "en", "fr", "nl", "sv", "zxx")
TEXTS = (
    "It is a fine day, and I like to eat the apples that are in the garden of the school.",
    "Das Wetter ist heute schön, und ich esse mit den Kindern die Äpfel von dem Baum, nicht die Birnen.",
    "x = [f(2 * y) for y in range(1000)]",
    "Mijn hond eet elke dag een appel. " * 200,
)


def exact_scores(content, languages):
    """The same sums in Python's integers."""
    whole = language_detection.model()
    counts = visit_counts(whole.moves, whole.rows, whole.found, content) or Counter()
    columns = [column for column, language in enumerate(whole.classes) if language in languages]
    weight = {count: round(1024 * math.log1p(min(count, 4095))) for count in counts.values()}
    terms = [
        [weight[count] * int(512 * float(whole.log_probabilities[seen, column])) for seen, count in counts.items()]
        for column in columns
    ]
    priors = [round(512 * 1024 * float(whole.priors[column])) if counts else 0 for column in columns]
    return [sum(row) + prior for row, prior in zip(terms, priors, strict=True)]


@pytest.mark.parametrize("text", TEXTS)
def test_scores_are_whole_numbers_without_any_rounding(text):
    scores = language_detection._scores(text.encode(), language_detection._table(LANGUAGES))
    assert scores.tolist() == exact_scores(text.encode(), LANGUAGES)


def test_the_model_has_only_numbers_that_the_sums_are_exact_for():
    """A term is below 2**26, so 2**27 n-grams may be summed; a text has fewer bytes than that in any look."""
    whole = language_detection.model()
    steps = whole.log_probabilities.astype(np.float64) * language_detection.PER_NAT
    assert np.array_equal(steps, np.rint(steps)) and abs(steps).max() < 2**15
    assert abs(steps).max() * language_detection.WEIGHTS.max() < 2**26


@pytest.mark.parametrize("text", TEXTS)
def test_probabilities_are_those_of_py3langid(text):
    """Within what it rounds: it sums in float32, and weights are rounded to 1/1024 here."""
    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    theirs.set_languages(LANGUAGES)
    ours = language_detection.probabilities(text, LANGUAGES)
    assert ours == pytest.approx(dict(theirs.rank(text)), abs=1e-3)


@given(st.text(st.characters(exclude_categories=()), max_size=60), st.sampled_from(TEXTS), st.integers(0, 8))
def test_n_grams_are_those_of_the_automaton_one_byte_after_the_other(text, beside, length):
    content, whole = (beside[:length] + text).encode("utf-8", "replace"), language_detection.model()
    expected = visit_counts(whole.moves, whole.rows, whole.found, content) or Counter()
    assert Counter(language_detection._n_grams(content).tolist()) == expected


@given(st.floats(-2000, 0))
def test_the_power_is_near_that_of_e(exponent):
    assert language_detection._exp(np.array([exponent]))[0] == pytest.approx(math.exp(exponent), abs=3e-4)


@given(st.text(st.characters(exclude_categories=()), max_size=200))
@example("\ud800")
def test_probabilities_sum_to_one(text):
    found = language_detection.probabilities(text, LANGUAGES)
    assert tuple(found) == LANGUAGES and sum(found.values()) == pytest.approx(1)


def test_accents_may_be_composed_or_not():
    text = "Äpfel und Brötchen schmecken überall süß, wo Bäume blühen."
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert language_detection.probabilities(decomposed, LANGUAGES) == language_detection.probabilities(text, LANGUAGES)


def test_the_numbers_of_an_n_gram_lie_side_by_side():
    """By columns, each number is another cache miss: 10 us a text instead of 4."""
    assert language_detection._table(LANGUAGES).log_probabilities.flags.c_contiguous


def test_a_text_without_a_known_n_gram_is_in_any_language_alike():
    assert set(language_detection.probabilities("", LANGUAGES).values()) == {1 / len(LANGUAGES)}


def test_a_language_in_two_scripts_is_one():
    """The model has a class for each script of Serbian."""
    whole = language_detection.model()
    assert whole.classes.count("sr") == 2
    found = language_detection.probabilities("Свако има право на слободу мишљења.", ("bg", "ru", "sr"))
    assert max(found, key=found.get) == "sr"
