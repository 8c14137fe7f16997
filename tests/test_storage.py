"""Writes are atomic: what is there is whole, what failed leaves nothing."""

import pytest

from tpullm import storage
from tpullm.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    storage.write_text(path, "old")
    with pytest.raises(RuntimeError), storage.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    folder = tmp_path / "folder"
    for content in ("old", "new"):
        with storage.atomic_directory(folder) as temporary:
            (temporary / content).write_text(content)
            assert not (folder / "new").exists()
    assert [path.name for path in folder.iterdir()] == ["new"]
    with pytest.raises(RuntimeError), storage.atomic_directory(folder):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_broken_json_names_the_file_and_the_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n"b": }')
    with pytest.raises(UserError, match=r"a\.json: line 2 is not JSON"):
        storage.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="no such file"):
        storage.read_json(tmp_path / "b.json")


def test_hashes_do_not_depend_on_the_order_of_keys(tmp_path):
    assert storage.hash_json({"a": 1, "b": "あ"}) == storage.hash_json({"b": "あ", "a": 1})
    assert storage.hash_json({"a": 1}) != storage.hash_json({"a": 2})
