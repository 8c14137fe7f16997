from math import comb

import numpy as np
import pytest

from tpullm.evaluation.statistics import bootstrap, figures, pass_at_k, wilson


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_it_is_the_share_of_draws_with_a_right_program(count):
    for right in {0, 1, count // 2, count}:
        for k in {1, min(2, count), count}:
            exact = 1 - comb(count - right, k) / comb(count, k)
            assert pass_at_k(count, right, k) == pytest.approx(exact, rel=1e-12, abs=1e-12)  # roundings of 200 factors


def test_figures_are_means_over_problems():
    found = figures([0, 5, 10], 10)
    assert list(found) == ["pass@1", "pass@10"]
    assert found["pass@1"]["share"] == pytest.approx(0.5) and found["pass@10"]["share"] == pytest.approx(2 / 3)
    assert found["pass@1"]["interval"] == list(bootstrap(np.array([0, 0.5, 1]))) and found["pass@1"]["count"] == 3
    assert found["pass@10"]["interval"] == list(wilson(2, 3)), "each problem is solved or not"
