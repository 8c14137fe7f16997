import os

import pytest

from tpullm.run.unfinished import Unfinished
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UnfitNode, UserError


def make_part(run, error=None, inputs=None) -> None:
    with Unfinished(run, "collect") as work:
        part = work.folder(inputs or {"seed": 0}) / "000000.npz"
        half = part.with_name(".000001.npz.0a.partial")
        storage.write_text(part, "made")
        half.touch()
        if error:
            raise error


@pytest.mark.parametrize(
    "error, parts, halves",
    [
        (None, False, False),
        (UserError("a.txt: is broken"), False, False),
        (UnfitNode("engine: node a has numpy 1"), True, False),
        (OSError(28, "No space left on device"), True, False),
        (KeyboardInterrupt(), True, True),
        (TryAgain("gs://b: no answer"), True, True),
        (RuntimeError("a bug"), True, True),
    ],
)
def test_finished_parts_stay_unless_the_stage_is_made_or_the_user_has_to_change_something(
    tmp_path, error, parts, halves
):
    try:
        make_part(tmp_path, error)
    except BaseException as raised:
        assert raised is error
    names = [name for _, _, files in os.walk(tmp_path) for name in files]
    assert any(name.endswith(".npz") for name in names) is parts
    assert any(name.endswith(".partial") for name in names) is halves
    assert parts or list(tmp_path.iterdir()) == []


def test_parts_of_other_inputs_are_removed(tmp_path):
    for inputs in ({"seed": 0}, {"seed": 1}):
        with pytest.raises(KeyboardInterrupt):
            make_part(tmp_path, KeyboardInterrupt(), inputs)
    assert len(list((tmp_path / ".collect").iterdir())) == 1
