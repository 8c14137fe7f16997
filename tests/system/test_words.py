"""Numbers for people: rounded, and never better than they are."""

import pytest

from tpullm.system.words import clock, compact, long_time, memory, moment, percent, probability, relative, short, size


@pytest.mark.parametrize(
    ("write", "cases"),
    [
        (compact, {9_580_921: "9.58 million", 524_288: "524,288", 999_600_000: "1,000 million"}),
        (short, {2_500_000: "2.5M", 0.003: "0.003"}),
        (probability, {0.4: "0.40", 0.001: "<0.01", 0.0: "0.00"}),
        (relative, {0.2: "20.0%", 0.9999: "99.9%", 1.0: "100%", 4.18: "418%", 12.0: "1,200%"}),
        (percent, {1.0: "100%", 0.99999: "99.9%", 0.0: "0%", 0.00001: "0.1%"}),
        (moment, {0.0575: "57.5 ms", 0.9994: "999 ms", 0.9996: "1 s", 999.4: "999 s", 1234.5: "1,234 s"}),
        (size, {1.5e12: "1.5 TB", 1e12: "1 TB", 999e9: "999 GB", 999.7e6: "1,000 MB", 5e5: "500 kB", 0: "0 kB"}),
        (memory, {1.5 * 2**30: "1.5 GiB", 2**29: "512 MiB"}),
        (long_time, {1234.567: "1,234.57 days", 1: "1.00 days", 0.5: "12.0 hours", 1 / 48: "30.0 minutes"}),
        (clock, {0: "0:00", 59: "0:59", 75: "1:15", 3599: "59:59", 3661: "1:01:01", 90_000: "25:00:00"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_written_for_people(write, cases):
    assert {value: write(value) for value in cases} == cases
