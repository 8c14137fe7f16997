"""Paths of both kinds do the same, and other paths are refused."""

import pickle
import sys

import pytest

from tests.system.storage.conftest import names
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError


def test_paths_of_both_kinds_do_the_same(folder):
    """What `storage.path` promises: all that the rest of the program does with a path."""
    storage.write_text(folder / "sub" / "a.txt", "あ\r\nb\n")
    storage.write_json(folder / "sub" / "deep" / "b.json", {})
    assert storage.path(str(folder)) == folder and pickle.loads(pickle.dumps(folder)) == folder
    assert (folder / "sub" / "a.txt").read_text(encoding="utf-8") == "あ\nb\n"
    assert (folder / "sub" / "a.txt").read_bytes() == "あ\r\nb\n".encode()
    assert storage.size(folder / "sub" / "a.txt") == 7
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
    assert storage.size(folder / "empty") == 0
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
