"""Which checkpoints stay."""

import errno
import itertools
from types import SimpleNamespace
from unittest.mock import Mock

import jax.numpy as jnp
import pytest

from tpullm.formats import checkpoints as checksums
from tpullm.formats.checkpoints import Checkpoints, save_params
from tpullm.formats.models import steps
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system.errors import correctable

LOSSES = {1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan"), 5: 6.0, 6: 7.0}


def state(number):
    return {"params": {"a": jnp.full(3, number)}}


def save(directory, config, numbers, losses, first="save", **options):
    """Save at each step and note its loss, one before the other."""
    checkpoints = Checkpoints(directory, config, **options)
    for number in numbers:
        for saves in (first == "save", first != "save"):
            if saves:
                checkpoints.save(number, state(number), {})
            elif number in losses:
                checkpoints.best.note(number, losses[number])
    checkpoints.close()
    return steps(directory)


@pytest.mark.parametrize(
    ("first", "keep_best", "losses", "kept"),
    [
        ("save", 1, LOSSES, [2, 6]),
        ("note", 2, LOSSES, [2, 3, 6]),
        ("save", 2, {5: 1.0}, [5, 6]),
        ("save", 0, LOSSES, [6]),
    ],
)
def test_the_best_stay_beside_the_last(tmp_path, first, keep_best, losses, kept):
    """A loss that is no number is not the best, and a step that was not evaluated is none of them."""
    config = CheckpointConfig(keep=1, keep_best=keep_best)
    assert save(tmp_path / "checkpoints", config, range(1, 7), losses, first) == kept


def test_the_best_are_known_after_a_restart_but_not_of_steps_that_are_repeated(tmp_path):
    directory, config = tmp_path / "stage" / "checkpoints", CheckpointConfig(keep=1, keep_best=1)
    save(directory, config, [1, 2], {1: 2.0, 2: 9.0})
    assert save(directory, config, [3, 4], {4: 1.5}) == [1, 4]
    checkpoints = Checkpoints(directory, config)
    checkpoints.best.note(9, 1.0)  # and then it was killed
    checkpoints.close()
    checkpoints = Checkpoints(directory, config)
    checkpoints.restore(4, state(0))
    for number in (9, 10):
        checkpoints.save(number, state(number), {})
    checkpoints.close()
    assert steps(directory) == [4, 10]


def test_multiples_stay(tmp_path):
    config = CheckpointConfig(keep=2, keep_every=3)
    assert save(tmp_path, config, range(1, 12), {}, always=5) == [3, 5, 6, 9, 10, 11]


def test_a_clock_that_is_set_ahead_fails_no_save(tmp_path, monkeypatch):
    days = itertools.count(0, 86_400)  # a day at each look
    monkeypatch.setattr("orbax.checkpoint._src.futures.future.time", SimpleNamespace(time=days.__next__))
    assert save(tmp_path / "stage" / "checkpoints", CheckpointConfig(keep=2), [1, 2], {}) == [1, 2]


def test_parameters_alone_have_checksums_too(tmp_path):
    """Also if an earlier process was killed after the save, before there were any."""
    for _ in range(2):
        save_params(tmp_path, state(3)["params"], {})
        assert (tmp_path / "0" / checksums.FILE).exists()
        checksums.verify(tmp_path / "0")
        (tmp_path / "0" / checksums.FILE).unlink()
    assert steps(tmp_path) == [0]


def test_a_save_that_fails_costs_no_earlier_one(tmp_path, monkeypatch):
    """The disk is full when the checksums are written, after all else; the same training saves once there is room."""
    directory, config = tmp_path / "stage" / "checkpoints", CheckpointConfig(keep=1)
    save(directory, config, [1], {})
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        checkpoints = Checkpoints(directory, config)
        checkpoints.save(2, state(2), {})
        with pytest.raises(OSError) as failed:
            checkpoints.close()
        assert "no space left on the device" in correctable(failed.value)
    assert steps(directory) == [1]
    checksums.verify(directory / "1")
    assert save(directory, config, [2], {}) == [2]
    checksums.verify(directory / "2")
    assert [path.name for path in directory.iterdir()] == ["2"]
