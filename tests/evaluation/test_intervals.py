import numpy as np
import pytest

from tpullm.evaluation.statistics import bootstrap, paired, wilson


def covered(seed, simulate):
    """How often, of 1,000 simulated evaluations, an interval held the truth."""
    random = np.random.default_rng(seed)
    held = 0
    for number in range(1000):
        (low, high), truth = simulate(random, number)
        held += low <= truth <= high
    return held / 1000


# An interval of 95 % covers 95 % of 1,000 evaluations +- 1.4 % (two standard deviations), so 93 to 97 % is asked.
def test_wilson_covers_the_truth():
    """Truths all over: of one share, counts of right answers are so few that it covers a bit more or less."""

    def simulate(random, _):
        share, count = random.uniform(0.05, 0.95), int(random.integers(50, 500))
        return wilson(random.binomial(count, share), count), share

    assert 0.93 <= covered(0, simulate) <= 0.97


def test_the_bootstrap_covers_the_truth():
    def simulate(random, number):
        return bootstrap(random.beta(2, 3, 100), seed=number), 0.4

    assert 0.93 <= covered(1, simulate) <= 0.97


def test_paired_bootstrap_covers_the_true_difference():
    """Two models: questions of any difficulty, of which the second one is right 5 % more often."""

    def simulate(random, number):
        easy = random.uniform(0.1, 0.9, 200)
        one, other = random.random(200) < easy + 0.05, random.random(200) < easy
        return paired(one, other, seed=number), 0.05

    assert 0.93 <= covered(2, simulate) <= 0.97


def test_a_pair_says_more_than_two_intervals():
    random = np.random.default_rng(0)
    other = random.random(500) < 0.5
    one = other | (random.random(500) < 0.1)
    low, high = paired(one, other)
    assert low > 0 and high - low < 0.5 * sum(of.high - of.low for of in (bootstrap(one), bootstrap(other)))


def test_wilson_of_published_figures():
    """Newcombe 1998 (Statistics in Medicine 17, table I), method 3: 81/263, 15/148, 0/20, 1/29."""
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (right, count), ends in table.items():
        assert wilson(right, count) == pytest.approx(ends, abs=5e-5)


def test_no_question_says_nothing():
    assert wilson(0, 0) == (0, 1) and bootstrap(np.zeros(0)) == (-np.inf, np.inf)


def test_a_bootstrap_of_sums_divided_by_sizes():
    values = np.random.default_rng(0).uniform(size=30)
    assert bootstrap(values, sizes=np.ones(30)) == pytest.approx(bootstrap(values))
    sizes = np.arange(1, 31)
    assert bootstrap(3.0 * sizes, sizes=sizes) == pytest.approx((3.0, 3.0))
    assert paired(values + 0.5 * sizes, values, sizes=sizes) == pytest.approx((0.5, 0.5))
    low, high = bootstrap(values, sizes=sizes)
    assert low < values.sum() / sizes.sum() < high < 2 * values.sum() / sizes.sum()
