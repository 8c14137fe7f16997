"""Writes are atomic: what is there is whole, what failed leaves nothing. Here and on `gs://`."""

import hashlib
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tpullm import storage
from tpullm.errors import TryAgain, UserError
from tpullm.run import manifest
from tpullm.storage import gcs as gs


@pytest.fixture(params=["local", "gs"])
def folder(request, tmp_path) -> Path:
    """A folder here, then one on `gs://`."""
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket") / "folder"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder):
    path = folder / "file.txt"
    storage.write_text(path, "old")
    with pytest.raises(RuntimeError), storage.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(folder) == ["file.txt"]
    with storage.atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_folder_appears_whole_and_replaces_the_old_one(folder):
    path = folder / "stage"
    for content in ("old", "new"):
        with storage.atomic_directory(path) as temporary:
            (temporary / "inside").mkdir()
            (temporary / "inside" / content).write_text(content)
            assert not (path / "inside" / "new").exists()
    assert names(path) == ["inside"] and names(path / "inside") == ["new"]
    with pytest.raises(RuntimeError), storage.atomic_directory(path):
        raise RuntimeError
    assert names(folder) == ["stage"]
    with pytest.raises(UserError, match="is not an empty folder any more"):
        with storage.atomic_directory(path, replaces=False) as temporary:
            (temporary / "file").write_text("")
    assert names(path) == ["inside"]


def test_broken_json_names_the_file_and_the_line(folder):
    storage.write_text(folder / "a.json", '{"a": 1,\n"b": }')
    with pytest.raises(UserError, match=r"a\.json: line 2 is not JSON"):
        storage.read_json(folder / "a.json")
    with pytest.raises(UserError, match="no such file"):
        storage.read_json(folder / "b.json")


def test_hashes_do_not_depend_on_the_order_of_keys(folder):
    assert storage.hash_json({"a": 1, "b": "あ"}) == storage.hash_json({"b": "あ", "a": 1})
    assert storage.hash_json({"a": 1}) != storage.hash_json({"a": 2})
    storage.write_text(folder / "a", "あ" * 100_000)
    assert storage.hash_file(folder / "a") == hashlib.sha256(("あ" * 100_000).encode()).hexdigest()


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
    storage.remove_tree(folder / "moved")
    storage.remove_tree(folder / "moved")
    (folder / "copy.txt").unlink()
    (folder / "copy.txt").unlink(missing_ok=True)
    assert not (folder / "copy.txt").exists() and not (folder / "moved").exists()


def test_a_stage_that_was_killed_while_it_was_sent_is_unfinished(bucket, monkeypatch):
    """Its manifest goes first and comes last, so a new one with the old manifest can't be."""
    stage, inputs = bucket / "stage", {"a": 1}

    def made(content: str) -> None:
        with storage.atomic_directory(stage) as temporary:
            (temporary / "data").write_text(content)
            manifest.write(temporary, inputs)

    class Killed(BaseException):
        pass

    made("old")
    assert manifest.is_finished(stage, inputs)
    for step in ("remove_all", "upload_all"):
        with monkeypatch.context() as patched:
            real, calls = getattr(gs, step), []

            def killed_after_the_first(*arguments, real=real, calls=calls):
                if calls:
                    raise Killed
                calls.append(real(*arguments))

            patched.setattr(gs, step, killed_after_the_first)
            with pytest.raises(Killed):
                made("new")
        assert not manifest.is_finished(stage, inputs), step
        made("new")
        assert manifest.is_finished(stage, inputs) and (stage / "data").read_text() == "new"


def test_a_local_copy_is_of_what_is_there_now(bucket, tmp_path):
    storage.write_text(bucket / "model" / "a", "1")
    storage.write_text(bucket / "model" / "sub" / "b", "2")
    copied = storage.local_copy(bucket / "model")
    assert copied.name == "model" and (copied / "sub" / "b").read_text() == "2"
    assert storage.local_copy(bucket / "model") == copied
    storage.write_text(bucket / "model" / "sub" / "b", "3")
    assert (storage.local_copy(bucket / "model") / "sub" / "b").read_text() == "3"
    assert storage.local_copy(bucket / "model" / "a").read_text() == "1"
    storage.write_text(bucket / "model" / "a", "11")
    assert storage.local_copy(bucket / "model" / "a").read_text() == "11"
    assert storage.local_copy(tmp_path) == tmp_path
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        storage.local_copy(bucket / "nothing")


def test_of_several_who_need_a_copy_at_once_one_makes_it(bucket, monkeypatch):
    """flock holds between open files, so threads stand for processes."""
    storage.write_text(bucket / "model" / "a", "1")
    made, download = [], gs.download_all

    def slowly(*arguments):
        made.append(threading.current_thread())
        time.sleep(0.3)
        download(*arguments)

    monkeypatch.setattr(gs, "download_all", slowly)
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda _: (storage.local_copy(bucket / "model") / "a").read_text(), range(4)))
    assert texts == ["1"] * 4 and len(made) == 1


def test_old_copies_go(bucket):
    storage.write_text(bucket / "a", "1")
    old = storage.local_copy(bucket / "a")
    yesterday = time.time() - 2 * 86_400
    os.utime(old.parent, (yesterday, yesterday))
    storage.write_text(bucket / "a", "2")
    assert storage.local_copy(bucket / "a").read_text() == "2" and not old.exists()


def test_of_two_writers_with_one_generation_one_succeeds(bucket):
    path = bucket / "object"
    first = gs.write_if(path, {"writer": 1}, 0)
    assert first and gs.write_if(path, {"writer": 2}, 0) is None
    second = gs.write_if(path, {"writer": 2}, first)
    assert second and gs.write_if(path, {"writer": 3}, first) is None
    generation, value, age = gs.read_with_age(path)
    assert (generation, value) == (second, {"writer": 2}) and abs(age) < 30


def test_an_outage_is_waited_for_and_a_long_one_is_one_line(bucket, storage_server, monkeypatch):
    storage.write_text(bucket / "a", "1")
    storage_server.kill()
    threading.Timer(2.0, storage_server.start).start()
    assert (bucket / "a").read_text() == "1"
    monkeypatch.setattr(gs, "PATIENCE_SECONDS", 1.0)
    storage_server.kill()
    with pytest.raises(TryAgain, match=f"{bucket}/a: the storage did not answer for 1 s .*the same command resumes"):
        (bucket / "a").read_text()


def test_a_place_that_can_be_written_is_left_as_it_was(folder):
    storage.check_writable(folder)
    assert not storage.is_remote(folder) or not folder.exists()
    assert storage.is_remote(folder) or names(folder) == []


def test_a_bucket_that_is_not_there_is_told(bucket):
    elsewhere = storage.path(f"{bucket}-not")
    for use in (storage.check_writable, lambda path: storage.write_text(path / "a", "")):
        with pytest.raises(
            UserError, match=f"{elsewhere}: no such bucket; make it with `gcloud storage buckets create"
        ):
            use(elsewhere)


@pytest.mark.parametrize(
    "code, says", [(401, "no valid credentials; run `gcloud auth"), (403, "permission denied; grant")]
)
def test_what_the_server_refuses_is_one_line_without_secrets(code, says, bucket, monkeypatch):
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import validate_response

    async def refused(self, method, path, *args, **options):
        validate_response(code, b'{"error": {"message": "Bearer ya29.secret is not enough"}}', path, args)

    refused.__wrapped__ = refused
    monkeypatch.setattr(gs.filesystem(), "_reached", False)
    monkeypatch.setattr(GCSFileSystem, "_request", refused)
    for use in (lambda: storage.read_json(bucket / "a"), lambda: (bucket / "a").exists(), lambda: names(bucket)):
        with pytest.raises(UserError, match=f"{bucket}.*{says}") as told:
            use()
        assert "secret" not in str(told.value)


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


@pytest.mark.parametrize("text", ["gs://", "gs:///folder", "gs://A/b", "s3://bucket/a", "hdfs://a/b"])
def test_other_schemes_and_no_bucket_are_refused(text):
    with pytest.raises(UserError, match=f"^{text}: (names no bucket|only local paths and gs://)"):
        storage.path(text)


def test_without_gcsfs_the_line_says_what_to_install(monkeypatch):
    monkeypatch.delattr(storage, "gcs")
    monkeypatch.delitem(sys.modules, "tpullm.storage.gcs")
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    with pytest.raises(UserError, match=r"gs:// needs gcsfs.*pip install 'tpullm\[gcp\]'"):
        storage.path("gs://bucket/a")
