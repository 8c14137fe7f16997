"""Numbers for people: rounded, and never better than they are."""

import pytest

from tpullm.report.language import compact, percent, probability, short
from tpullm.system.log import moment


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (compact(9_580_921), "9.58 million"),
        (compact(524_288), "524,288"),
        (compact(999_600_000), "1,000 million"),
        (short(2_500_000), "2.5M"),
        (short(0.003), "0.003"),
        (moment(0.0575), "57.5 ms"),
        (moment(2.168), "2.17 s"),
        (probability(0.4), "0.40"),
        (probability(0.001), "<0.01"),
        (probability(0.0), "0.00"),
    ],
)
def test_written_for_people(written, expected):
    assert written == expected


def test_only_all_is_written_as_100_percent_and_only_none_as_0():
    assert percent(1.0) == "100%" and percent(0.99999) == "99.9%"
    assert percent(0.0) == "0%" and percent(0.00001) == "0.1%"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0575, "57.5 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (2.214, "2.21 s"),
        (999.4, "999 s"),
        (1234.5, "1,234 s"),
    ],
)
def test_a_moment_has_three_digits_and_the_unit_that_suits(seconds, told):
    assert moment(seconds) == told
