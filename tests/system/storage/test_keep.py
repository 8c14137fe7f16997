"""What takes long to make is made once, and again where what is kept can't be trusted."""

import os

import pytest

from tpullm.system import storage
from tpullm.system.storage import keep as module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tpullm" / "things"


def asked(key, what=b"thing") -> int:
    """Ask for what a key means, and see that it is that: how often it was made for it."""
    made = []
    assert storage.kept("things", key, lambda: made.append(1) or what) == what
    return len(made)


def test_it_is_made_once_for_a_key(folder):
    assert [asked(key) for key in (["a", 1], ["a", 1], ["a", 2])] == [1, 0, 1]
    assert [asked("empty", b"") for _ in range(2)] == [1, 0]
    assert all(path.stat().st_mode & 0o022 == 0 for path in (folder, folder.parent))


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1] + b"?", lambda data: data[:9], lambda data: b"", bytes.upper]
)
def test_what_is_not_as_it_was_written_is_made_again(folder, change):
    asked("key")
    (file,) = folder.iterdir()
    file.write_bytes(change(file.read_bytes()))
    assert [asked("key") for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("mode", [0o770, 0o702, None])
def test_where_others_may_write_nothing_is_kept(folder, monkeypatch, mode):
    asked("key")
    if mode:
        folder.chmod(mode)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert [asked("key") for _ in range(2)] == [1, 1] and [asked("other") for _ in range(2)] == [1, 1]
    assert len(list(folder.iterdir())) == 1


def test_without_a_folder_it_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [asked("key") for _ in range(2)] == [1, 1]


def test_what_was_longest_not_used_is_removed(folder, monkeypatch):
    asked("old")
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    asked("newer", bytes(100))
    monkeypatch.setattr(module, "MOST_BYTES", 300)
    asked("newest", bytes(100))
    assert asked("newer", bytes(100)) == 0 and asked("newest", bytes(100)) == 0 and asked("old") == 1


def test_there_are_at_most_so_many_files(folder, monkeypatch):
    monkeypatch.setattr(module, "_MOST_FILES", 3)
    for number in range(5):
        asked(number)
    assert len(list(folder.iterdir())) == 3
