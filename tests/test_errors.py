"""Which errors are one line, and which: errors of the user's, of the machine, and no others."""

import errno
from pathlib import Path

import pytest

from tpullm.system.errors import HostFailed, TryAgain, UserError, correctable


def caused(outer: Exception, inner: Exception) -> Exception:
    try:
        raise outer from inner
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("a.txt: is broken"), "a.txt: is broken"),
        (OSError(errno.ENOSPC, "full", "/a"), "no space left on the device (/a); free some"),
        (OSError(errno.ENOSPC, "full", "/a", None, "/b"), "no space left on the device (/b); free some"),
        (OSError(errno.EDQUOT, "full"), "no space left on the device; free some"),
        (caused(RuntimeError("a save failed"), ValueError("No space left on device")), "no space left on the device; "),
        (ValueError('Failed: "/a/b.__lock": No space left on device'), "no space left on the device (/a/b.__lock)"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: read-only file system; choose another place"),
        (caused(RuntimeError("a save failed"), OSError(errno.EROFS, "...")), "a disk: read-only file system; choose"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: permission denied; choose another place"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a"), "/a: not a directory; choose another place"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/.a.partial", None, "/a"), "/a: is a directory; choose"),
        (OSError(errno.EROFS, "Read-only file system", "/a/.b.html.a83f7e29.partial"), "/a/b.html: read-only file"),
        (MemoryError(), "out of memory; use a smaller batch_size"),
        (RuntimeError("Out of memory while trying to allocate 2500000000 bytes"), "out of memory (2.5 GB at once); "),
        (OSError("AF_UNIX path too long"), "the temporary folder's path is too long; set TMPDIR"),
    ],
)
def test_what_the_user_can_correct_is_one_line(error, line):
    assert correctable(error).startswith(line)


def test_a_folder_that_was_removed_under_the_program(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    (tmp_path / "a").rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        Path("b").absolute()
    assert correctable(raised.value) == "the current folder was removed; go to another one"
    monkeypatch.chdir(tmp_path)
    assert correctable(raised.value) is None


@pytest.mark.parametrize(
    "error",
    [
        TryAgain("the storage did not answer"),
        HostFailed("host 1 failed", 1),
        RuntimeError("a fault"),
        OSError(errno.EIO, "input/output error", "/a"),
        ValueError("Out of memory"),
    ],
)
def test_nothing_else_is(error):
    assert correctable(error) is None


def test_a_notebook_shows_the_line_alone():
    assert TryAgain("later")._render_traceback_() == ["TryAgain: later"]
