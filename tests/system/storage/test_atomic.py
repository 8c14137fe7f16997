"""Writes are atomic: a file or folder is whole or not there, and what failed leaves nothing."""

import errno
import itertools
from unittest.mock import Mock

import pytest

from tests.system.storage.conftest import names
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage import gcs as gs


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


def test_a_stage_that_was_killed_while_it_was_sent_is_unfinished(bucket, monkeypatch):
    """Its manifest goes first and comes last, so a new one with the old manifest can't be."""
    stage, inputs = bucket / "stage", {"a": 1}

    def made(content: str) -> None:
        with storage.atomic_directory(stage) as temporary:
            (temporary / "data").write_text(content)
            manifest.write(temporary, inputs)

    made("old")
    assert manifest.is_finished(stage, inputs)
    for step in ("remove_all", "upload_all"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            once = itertools.chain([getattr(gs, step)], itertools.repeat(Mock(side_effect=KeyboardInterrupt)))
            patched.setattr(gs, step, lambda *given, once=once: next(once)(*given))
            made("new")
        assert not manifest.is_finished(stage, inputs), step
        made("new")
        assert manifest.is_finished(stage, inputs) and (stage / "data").read_text() == "new"


def test_a_place_that_can_be_written_is_left_as_it_was(folder):
    storage.check_writable(folder)
    assert not folder.exists() if storage.is_remote(folder) else names(folder) == []


def test_what_an_interrupted_write_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.1.partial", "a.partial", ".a"):
        (tmp_path / name).touch()
    (tmp_path / ".b.2.partial" / "sub").mkdir(parents=True)
    storage.remove_partials(tmp_path)
    assert names(tmp_path) == [".a", "a.partial"]


def test_a_full_disk_is_named_by_whoever_writes_also_where_another_error_was_raised_from_it():
    full = {"/save": OSError(errno.EDQUOT, "full"), "/a": OSError(errno.ENOSPC, "full", "/a")}
    for name, nameless in full.items():
        with pytest.raises(ValueError), storage.naming("/save"):
            raise ValueError("a save failed") from nameless
        assert nameless.filename == name
    other = OSError(errno.EIO, "broken")
    with pytest.raises(OSError), storage.naming("/save"):
        raise other
    assert other.filename is None
