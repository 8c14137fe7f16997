import pytest

from tpullm.measuring.calibration import calibration


def test_the_error_of_planted_probabilities():
    """By hand: in the bin of 0.5 to 0.6 the share is 1/2 and the mean 0.56, in the last one 2/3 and 0.95."""
    probabilities = [[0.52, 0.48], [0.4, 0.6 - 1e-9], [0.95, 0.05], [0.1, 0.9], [0.0, 1.0]]
    found = calibration(probabilities, right=[0, 0, 0, 1, 0])
    assert [each["count"] for each in found["bins"]] == [2, 3]
    assert [each["share"] for each in found["bins"]] == pytest.approx([1 / 2, 2 / 3])
    assert [each["probability"] for each in found["bins"]] == pytest.approx([0.56, 0.95])
    assert found["count"] == 5
    assert found["error"] == pytest.approx((2 * (0.56 - 1 / 2) + 3 * (0.95 - 2 / 3)) / 5)


def test_a_model_that_is_as_right_as_it_is_sure():
    found = calibration([[0.75, 0.25]] * 4, right=[0, 0, 1, 0])
    assert found["error"] == 0 and found["bins"] == [{"count": 4, "probability": 0.75, "share": 0.75}]
