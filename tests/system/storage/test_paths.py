"""Paths of both kinds do the same, and other paths are refused; folders, hashes and room."""

import base64
import hashlib
import pickle
import shutil
import sys

import pytest

from tests.system.storage.conftest import names
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError
from tpullm.system.storage import gcs as gs


def test_paths_of_both_kinds_do_the_same(folder):
    """What `storage.path` promises: all that the rest of the program does with a path."""
    storage.write_text(folder / "sub" / "a.txt", "あ\r\nb\n")
    storage.write_json(folder / "sub" / "deep" / "b.json", {})
    assert storage.path(str(folder)) == folder and pickle.loads(pickle.dumps(folder)) == folder
    assert (folder / "sub" / "a.txt").read_text(encoding="utf-8") == "あ\nb\n"
    assert (folder / "sub" / "a.txt").read_bytes() == "あ\r\nb\n".encode()
    assert storage.sizes(folder)["sub/a.txt"] == 7
    with (folder / "sub" / "a.txt").open("rb") as file:
        assert file.read(3) == "あ".encode() and file.read() == b"\r\nb\n"
    assert (folder / "sub").is_dir() and not (folder / "sub").is_file() and (folder / "sub").exists()
    assert (folder / "sub" / "a.txt").is_file() and not (folder / "su").exists()
    assert names(folder / "sub") == ["a.txt", "deep"]
    assert [path.name for path in (folder / "sub").glob("*.txt")] == ["a.txt"]
    assert (folder / "sub" / "deep").parent == folder / "sub" and (folder / "sub").is_relative_to(folder)
    assert (folder / "sub").resolve() == (folder / "sub").absolute() == folder / "sub"
    with pytest.raises(FileNotFoundError):
        list((folder / "nothing").iterdir())
    storage.move_tree(folder / "sub", folder / "moved" / "here")
    assert names(folder / "moved" / "here") == ["a.txt", "deep"] and not (folder / "sub").exists()
    storage.copy(folder / "moved" / "here" / "a.txt", folder / "copy.txt")
    assert names(folder) == ["copy.txt", "moved"]
    storage.write_text(folder / "empty", "")
    assert storage.sizes(folder)["empty"] == 0
    (folder / "empty").unlink()
    storage.remove_tree(folder / "moved")
    storage.remove_tree(folder / "moved")
    (folder / "copy.txt").unlink()
    (folder / "copy.txt").unlink(missing_ok=True)
    assert not (folder / "copy.txt").exists() and not (folder / "moved").exists()


@pytest.mark.parametrize("text", ["gs://", "gs:///folder", "gs://A/b", "s3://bucket/a", "hdfs://a/b"])
def test_other_schemes_and_no_bucket_are_refused(text):
    with pytest.raises(UserError, match=f"^{text}: (names no bucket|only local paths and gs://)"):
        storage.path(text)


def test_without_the_extra_the_line_says_what_to_install(monkeypatch):
    monkeypatch.delattr(storage, "gcs")
    monkeypatch.delitem(sys.modules, "tpullm.system.storage.gcs")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(UserError, match=r"gs:// needs google.cloud.storage.*pip install 'tpullm\[gcp\]'"):
        storage.path("gs://bucket/a")


def test_what_tensorstore_gives_up_is_one_line():
    text = (
        'ABORTED: Error opening "zarr3" driver: Error reading gs://bbb/s/tokens/zarr.json: All 2 retry attempts '
        "failed: CURL error Could not connect to server [tensorstore_spec='{}']"
    )
    try:
        raise RuntimeError("a save failed") from ValueError(text)
    except RuntimeError as error:
        told = storage.explain(error)
    assert isinstance(told, TryAgain)
    assert str(told).startswith("gs://bbb/s/tokens/zarr.json: the storage did not answer (CURL error Could not connect")
    assert storage.explain(ValueError("gs://bbb/s: something else")) is None


def test_hashes_do_not_depend_on_the_order_of_keys(folder):
    assert storage.hash_json({"a": 1, "b": "あ"}) == storage.hash_json({"b": "あ", "a": 1})
    assert storage.hash_json({"a": 1}) != storage.hash_json({"a": 2})
    storage.write_text(folder / "a", "あ" * 100_000)
    assert storage.hash_file(folder / "a") == hashlib.sha256(("あ" * 100_000).encode()).hexdigest()


def test_md5s_are_those_of_the_content(folder):
    for name in ("a", "b/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(folder / name, name * 1000)
    assert storage.sizes(folder) == {"a": 1000, "b/c": 3000}
    found = storage.md5s(folder, ["a", "b/c", "missing"])
    assert found == {
        name: base64.b64encode(hashlib.md5(name.encode() * 1000).digest()).decode() for name in ("a", "b/c")
    }


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
    assert list(gs.files(bucket)) == ["folders/a"]
