"""Folders are removed whole, and what does not fit on a disk is refused."""

import shutil

import pytest

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage import gcs as gs


def test_only_an_empty_folder_is_removed_as_empty(folder):
    (folder / "empty").mkdir(parents=True)
    storage.write_text(folder / "full" / "a", "")
    for name in ("empty", "full", "nothing"):
        storage.remove_empty(folder / name)
    assert [path.name for path in folder.iterdir()] == ["full"]


@pytest.mark.parametrize("needed, fits", [(1_000_000, True), (1_000_001, False)])
def test_what_does_not_fit_is_refused_before_it_is_written(folder, monkeypatch, needed, fits):
    usage = type(shutil.disk_usage("/"))(10_000_000, 9_000_000, 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    if fits or storage.is_remote(folder):
        return storage.room_for(needed, folder / "not" / "there")
    with pytest.raises(UserError, match=f"no space left on the device: {folder} has 1.0 MB, 1.0 are needed"):
        storage.room_for(needed, folder / "not" / "there")


def test_each_object_of_a_folder_is_removed_and_no_other(bucket):
    for number in range(40):
        storage.write_text(bucket / "folder" / f"{number % 3}" / f"{number}", "")
    storage.write_text(bucket / "folders" / "a", "")
    gs.remove_all(bucket / "folder", ["not there"])
    storage.remove_tree(bucket / "folder")
    assert list(storage.files(bucket)) == ["folders/a"]
