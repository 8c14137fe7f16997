"""A flipped bit on one device is found, and the device is named; a check changes nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.eight_devices import printed
from tests.run.test_resume import assert_same_bits
from tpullm.cli.main import main
from tpullm.training.diagnosis import Check, unequal_copies


@pytest.mark.ci
def test_one_flipped_bit_on_one_of_eight_devices_is_found():
    found = printed("tests.training.wrong_bits")
    assert found.pop("sound") == ""
    assert "device 5 of host 0" in (computed := found.pop("computed on 5")) and "computed one step twice" in computed
    assert len(found) == 3
    for name, line in found.items():
        device = name.rsplit(" ", 1)[1]
        assert f"device {device} of host 0" in line and "['params']['embedding']" in line and "more devices" not in line


def copied(*groups):
    """An array whose parts are held by groups of devices."""
    places = {device: number for number, group in enumerate(groups) for device in group}
    return SimpleNamespace(shape=(4,), sharding=SimpleNamespace(devices_indices_map=lambda shape: places))


@pytest.mark.parametrize(
    ("arrays", "sums", "expected"),
    [
        ([copied("abcd")], [[1], [1], [1], [1]], {}),
        ([copied("abcd")], [[1], [1], [2], [1]], {"c": 0}),
        ([copied("ab", "cd")], [[1], [1], [2], [2]], {}),  # two parts, which may differ
        ([copied("ab", "cd")], [[1], [1], [2], [3]], {"c": 0, "d": 0}),  # of two, nobody knows which
        ([copied("abcd"), copied("abcd")], [[1, 5], [1, 6], [1, 5], [1, 5]], {"b": 1}),
        ([copied("a", "b", "c", "d")], [[1], [2], [3], [4]], {}),  # no copies: nothing to compare
    ],
)
def test_the_copy_that_differs_from_most_is_named(arrays, sums, expected):
    assert unequal_copies(arrays, np.array(sums, np.uint32), np.array(list("abcd"))) == expected


@pytest.mark.ci
def test_a_checked_training_ends_with_the_same_bits(tiny_run, tiny_tokens, monkeypatch):
    checked, plain = [], Check.__call__

    def call(self, state, batch, number, frozen):
        checked.append(number)
        plain(self, state, batch, number, frozen)

    monkeypatch.setattr(Check, "__call__", call)
    assert main(["pretrain", "--run", str(tiny_tokens), "--pretrain.check_every=7"]) == 0
    assert checked == [7, 14, 21, 28]
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")
