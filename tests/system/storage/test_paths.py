"""Paths of both kinds do the same, and other paths are refused; folders, hashes and room."""

import base64
import hashlib
import pickle
import shutil
import sys
from types import SimpleNamespace

import pytest

from tests.system.storage.conftest import names
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError
from tpullm.system.storage import gcs as gs


def test_paths_of_both_kinds_do_the_same(folder):
    """What `storage.path` promises: all that the rest of the program does with a path."""
    sub, moved, copy = folder / "sub", folder / "moved", folder / "copy.txt"
    storage.write_text(sub / "a.txt", "あ\r\nb\n")
    storage.write_json(sub / "deep" / "b.json", {})
    storage.write_text(sub / "deep" / "empty", "")
    assert storage.path(str(folder)) == folder and pickle.loads(pickle.dumps(folder)) == folder
    assert (sub / "a.txt").read_text(encoding="utf-8") == "あ\nb\n"
    assert (sub / "a.txt").read_bytes() == "あ\r\nb\n".encode()
    assert storage.sizes(folder) == {"sub/a.txt": 7, "sub/deep/b.json": 3, "sub/deep/empty": 0}
    with (sub / "a.txt").open("rb") as file:
        assert file.read(3) == "あ".encode() and file.read() == b"\r\nb\n"
    assert sub.is_dir() and not sub.is_file() and sub.exists()
    assert (sub / "a.txt").is_file() and not (folder / "su").exists()
    assert names(sub) == ["a.txt", "deep"] and [path.name for path in sub.glob("*.txt")] == ["a.txt"]
    assert (sub / "deep").parent == sub and sub.is_relative_to(folder)
    assert sub.resolve() == sub.absolute() == folder / "sub"
    with pytest.raises(FileNotFoundError):
        list((folder / "nothing").iterdir())
    storage.move_tree(sub, moved / "here")
    assert names(moved / "here") == ["a.txt", "deep"] and not sub.exists()
    storage.copy(moved / "here" / "a.txt", copy)
    assert names(folder) == ["copy.txt", "moved"]
    for _ in range(2):
        storage.remove_tree(moved)
        copy.unlink(missing_ok=True)
    assert not copy.exists() and not moved.exists()


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
    error = RuntimeError("a save failed")
    error.__cause__ = ValueError(
        'ABORTED: Error opening "zarr3" driver: Error reading gs://bbb/s/tokens/zarr.json: All 2 retry attempts '
        "failed: CURL error Could not connect to server [tensorstore_spec='{}']"
    )
    told = storage.explain(error)
    assert isinstance(told, TryAgain)
    assert str(told).startswith("gs://bbb/s/tokens/zarr.json: the storage did not answer (CURL error Could not connect")
    assert storage.explain(ValueError("gs://bbb/s: something else")) is None


def test_hashes_do_not_depend_on_the_order_of_keys(folder):
    assert storage.hash_json({"a": 1, "b": "あ"}) == storage.hash_json({"b": "あ", "a": 1})
    assert storage.hash_json({"a": 1}) != storage.hash_json({"a": 2})
    storage.write_text(folder / "a", "あ" * 100_000)
    assert storage.hash_file(folder / "a") == hashlib.sha256(("あ" * 100_000).encode()).hexdigest()


def test_bytes_that_the_disk_cannot_read_are_told_with_their_file(tmp_path):
    (tmp_path / "a").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"a: cannot be read \(Input/output error\); copy it again, or remove it"):
        storage.hash_file(tmp_path / "a")


def test_md5s_are_those_of_the_content(folder):
    md5s = {}
    for name in ("a", "b/c"):
        storage.write_text(folder / name, name * 1000)
        md5s[name] = base64.b64encode(hashlib.md5(name.encode() * 1000).digest()).decode()
    assert storage.md5s(folder, ["a", "b/c", "missing"]) == md5s


def test_what_does_not_fit_is_refused_before_it_is_written(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    storage.room_for(1_000_000, tmp_path / "not" / "there")
    storage.room_for(1_000_001, bucket)
    with pytest.raises(UserError, match=f"no space left on the device: {tmp_path} has 1.0 MB, 1.0 are needed"):
        storage.room_for(1_000_001, tmp_path / "not" / "there")


def test_each_object_of_a_folder_is_removed_and_no_other(bucket):
    for number in range(40):
        storage.write_text(bucket / "folder" / f"{number % 3}" / f"{number}", "")
    storage.write_text(bucket / "folders" / "a", "")
    gs.remove_all(bucket / "folder", ["not there"])
    storage.remove_tree(bucket / "folder")
    assert list(gs.files(bucket)) == ["folders/a"]
