import pytest

from tpullm.evaluation.statistics import calibration


def test_the_error_of_planted_probabilities():
    """By hand: from 0.5 the share is 1/2 and the mean 0.56, from 0.8 1 and 0.85, and in the last bin 2/3 and 0.95."""
    probabilities = [[0.52, 0.48], [0.4, 0.6 - 1e-9], [0.95, 0.05], [0.1, 0.9], [0.0, 1.0], [0.85, 0.15]]
    found = calibration(probabilities, right=[0, 0, 0, 1, 0, 0])
    assert [each["count"] for each in found["bins"]] == [2, 1, 3]
    assert [each["share"] for each in found["bins"]] == pytest.approx([1 / 2, 1, 2 / 3])
    assert [each["probability"] for each in found["bins"]] == pytest.approx([0.56, 0.85, 0.95])
    assert found["count"] == 6
    assert found["error"] == pytest.approx((2 * (0.56 - 1 / 2) + (1 - 0.85) + 3 * (0.95 - 2 / 3)) / 6)


def test_a_model_that_is_as_right_as_it_is_sure():
    found = calibration([[0.75, 0.25]] * 4, right=[0, 0, 1, 0])
    assert found["error"] == 0 and found["bins"] == [{"count": 4, "probability": 0.75, "share": 0.75}]
