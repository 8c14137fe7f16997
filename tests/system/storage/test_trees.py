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


@pytest.mark.parametrize("count", [1, 1000, 1001, 2500])
def test_of_many_objects_each_is_removed_once(bucket, monkeypatch, count):
    removed = []
    monkeypatch.setattr(gs.fsspec.asyn, "sync", lambda loop, delete, keys, size: removed.append(keys) or [])
    names = [f"{number:04}" for number in range(count)]
    gs.remove_all(bucket / "folder", names)
    start = f"{bucket}/folder/".removeprefix("gs://")
    assert [key for keys in removed for key in keys] == [start + name for name in names]
    assert max(map(len, removed)) <= 1000, "as many as one request may name"
