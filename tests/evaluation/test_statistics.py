"""Intervals cover the truth, and differences, calibration and pass@k are those of their definitions."""

from math import comb

import numpy as np
import pytest

from tpullm.evaluation import statistics
from tpullm.evaluation.statistics import ALIKE, BETTER, WORSE, bootstrap, calibration, compared_means, pass_at_k, wilson


def covered(seed, simulate):
    """How often, of 300 simulated evaluations, an interval held the truth."""
    random, held = np.random.default_rng(seed), 0
    for _ in range(300):
        (low, high), truth = simulate(random)
        held += low <= truth <= high
    return held / 300


def of_a_share(random):
    """Truths all over: of one share, counts of right answers are so few that it covers a bit more or less."""
    share, count = random.uniform(0.05, 0.95), int(random.integers(50, 500))
    return wilson(random.binomial(count, share), count), share


def of_a_difference(random):
    """Two models: questions of any difficulty, of which the second one is right 5 % more often."""
    easy = random.uniform(0.1, 0.9, 80)
    first, other = random.random(80) < easy, random.random(80) < easy + 0.05
    return compared_means([first, other])["deltas"][0]["interval"], 0.05


@pytest.mark.parametrize("simulate", [of_a_share, of_a_difference])
def test_an_interval_covers_the_truth(simulate):
    """One of 95 % covers 95 % of 300 evaluations +- 2.5 % (two standard deviations)."""
    assert 0.92 <= covered(2, simulate) <= 0.98


def test_a_pair_says_more_than_two_intervals():
    random = np.random.default_rng(0)
    first = random.random(500) < 0.5
    found = compared_means([first, first | (random.random(500) < 0.1)])
    (low, high), alone = found["deltas"][0]["interval"], [score["interval"] for score in found["scores"]]
    assert low > 0 and high - low < 0.5 * sum(end - begin for begin, end in alone)


def test_wilson_of_published_figures():
    """Newcombe 1998 (Statistics in Medicine 17, table I), method 3: 81/263, 15/148, 0/20, 1/29."""
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (right, count), ends in table.items():
        assert wilson(right, count) == pytest.approx(ends, abs=5e-5)
    assert wilson(0, 48)[0] == 0 and wilson(48, 48)[1] == 1, "no rounding of sums is shown"
    assert wilson(0, 0) == [0, 1] and bootstrap(np.zeros(0)) == [-np.inf, np.inf], "no question says nothing"


def test_the_error_of_planted_probabilities():
    """By hand: from 0.5 the share is 1/2 and the mean 0.56, from 0.8 1 and 0.85, and in the last bin 2/3 and 0.95."""
    probabilities = [[0.52, 0.48], [0.4, 0.6 - 1e-9], [0.95, 0.05], [0.1, 0.9], [0.0, 1.0], [0.85, 0.15]]
    found = calibration(probabilities, right=[0, 0, 0, 1, 0, 0])
    assert [each["count"] for each in found["bins"]] == [2, 1, 3]
    assert [each["share"] for each in found["bins"]] == pytest.approx([1 / 2, 1, 2 / 3])
    assert [each["probability"] for each in found["bins"]] == pytest.approx([0.56, 0.85, 0.95])
    assert found["count"] == 6
    assert found["error"] == pytest.approx((2 * (0.56 - 1 / 2) + (1 - 0.85) + 3 * (0.95 - 2 / 3)) / 6)
    # A model that is as right as it is sure:
    found = calibration([[0.75, 0.25]] * 4, right=[0, 0, 1, 0])
    assert found["error"] == 0 and found["bins"] == [{"count": 4, "probability": 0.75, "share": 0.75}]


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_it_is_the_share_of_draws_with_a_right_program(count):
    for right in {0, 1, count // 2, count}:
        for k in {1, min(2, count), count}:
            exact = 1 - comb(count - right, k) / comb(count, k)
            assert pass_at_k(count, right, k) == pytest.approx(exact, rel=1e-12, abs=1e-12)  # roundings of 200 factors
    found = statistics.pass_at_k_figures([0, 5, 10], 10)  # means over problems
    assert list(found) == ["pass@1", "pass@10"]
    assert found["pass@1"]["share"] == pytest.approx(0.5) and found["pass@10"]["share"] == pytest.approx(2 / 3)
    assert found["pass@1"]["interval"] == bootstrap(np.array([0, 0.5, 1])) and found["pass@1"]["count"] == 3
    assert found["pass@10"]["interval"] == wilson(2, 3), "each problem is solved or not"


FIRST = np.repeat([1, 0], [20, 20]).astype(float)


def changed(gained: int, lost: int) -> np.ndarray:
    """The scores of a model that answers so many more questions right, and others wrong."""
    found = FIRST.copy()
    found[20 : 20 + gained], found[:lost] = 1, 0
    return found


@pytest.mark.parametrize(("gained", "lost", "word"), [(10, 2, BETTER), (2, 10, WORSE), (3, 2, ALIKE), (12, 11, ALIKE)])
def test_a_planted_difference(gained, lost, word):
    """Where lower is better, the words are exchanged."""
    (delta,) = compared_means([FIRST, changed(gained, lost)])["deltas"]
    assert delta["value"] == pytest.approx((gained - lost) / 40) and delta["differ"] == gained + lost
    low, high = delta["interval"]
    assert low < delta["value"] < high and delta["word"] == word
    (delta,) = compared_means([FIRST, changed(gained, lost)], higher_is_better=False)["deltas"]
    assert delta["word"] == {BETTER: WORSE, WORSE: BETTER, ALIKE: ALIKE}[word]


@pytest.mark.parametrize(("differing", "word"), [(5, ALIKE), (6, BETTER)])
def test_a_few_that_differ_say_nothing(differing, word):
    """All one way, and the interval is far from 0 in both cases."""
    (delta,) = compared_means([np.zeros(differing), np.ones(differing)])["deltas"]
    assert delta["interval"] == [1.0, 1.0] and delta["word"] == word


def test_sums_over_documents_are_divided_by_the_sum_of_their_sizes():
    sizes, bits = np.array([10, 1000] * 5), np.array([20.0, 1000.0] * 5)
    found = compared_means([bits, bits + 0.1 * sizes], higher_is_better=False, sizes=sizes)
    assert found["scores"][0]["value"] == pytest.approx(1020 / 1010)
    low, high = found["scores"][0]["interval"]
    assert 1000 / 1000 < low < 1020 / 1010 < high < 2
    (delta,) = found["deltas"]
    assert [delta["value"], *delta["interval"]] == pytest.approx([0.1] * 3) and delta["word"] == WORSE


def test_who_is_right_where():
    right, first = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]], bool)
    assert statistics.answer_agreement(right, first) == {"both": 1, "only_first": 1, "only_other": 2, "neither": 2}
