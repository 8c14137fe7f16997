"""Copies of objects on `gs://`: of the present version, made once; brief ones never more than their readers."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage import copies as module
from tpullm.system.storage import gcs
from tpullm.system.storage.paths import remove_tree

# Reads one object, says where its copy is, and waits.
READER = """
import sys
from tpullm.system import storage
with storage.brief_copy(storage.path(sys.argv[1])) as copied:
    print(copied, flush=True)
    sys.stdin.read()
    print(copied.read_text(), flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tpullm" / "brief"


def copies(cache) -> list[str]:
    """The text of each copy, of those too that are being written."""
    found = []
    for folder, _, names in os.walk(cache):  # unlike `rglob`, it bears that folders go
        for name in set(names) - {"lock"}:
            with contextlib.suppress(FileNotFoundError):
                found.append((Path(folder) / name).read_text())
    return sorted(found)


@contextlib.contextmanager
def reader(path):
    """A process that reads an object until the block ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", READER, str(path)], cwd=ROOT, **pipes) as process:
        process.copied = Path(process.stdout.readline().strip())
        yield process


def test_a_copy_is_of_what_is_there_now_and_stays_until_another_is_needed(bucket, tmp_path, cache, monkeypatch):
    """And there must be room for it."""
    asked = []
    monkeypatch.setattr(module, "room_for", lambda size, folder: asked.append(size))
    storage.write_text(bucket / "a", "1")
    with storage.brief_copy(bucket / "a") as first, storage.brief_copy(bucket / "a") as again:
        assert again == first and first.name == "a" and first.read_text() == "1"
    storage.write_text(bucket / "a", "2")
    with storage.brief_copy(bucket / "a") as second:
        assert second.read_text() == "2" and not first.exists()
        storage.remove_unread_copies()
        assert second.exists()
    storage.remove_unread_copies()
    assert list(cache.iterdir()) == [] and asked == [1, 1]
    storage.remove_unread_copies()
    with storage.brief_copy(tmp_path) as here:
        assert here == tmp_path
    with pytest.raises(UserError, match="nothing: no such file"), storage.brief_copy(bucket / "nothing"):
        pass


def test_another_process_reads_on_and_who_was_killed_leaves_its_copy_to_the_next(bucket, cache):
    for name in "abc":
        storage.write_text(bucket / name, name)
    with reader(bucket / "a") as other, reader(bucket / "a") as third:
        assert other.copied == third.copied
        with storage.brief_copy(bucket / "b"):
            assert copies(cache) == ["a", "b"]
        third.send_signal(signal.SIGKILL)
        third.communicate()
        with storage.brief_copy(bucket / "c"):
            assert copies(cache) == ["a", "c"]
        assert other.communicate("")[0].strip() == "a"
    with storage.brief_copy(bucket / "b"):
        assert copies(cache) == ["b"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("copied", [storage.brief_copy, lambda path: contextlib.nullcontext(storage.local_copy(path))])
def test_of_several_who_need_a_copy_at_once_one_makes_it_and_if_that_fails_another(bucket, monkeypatch, copied, fails):
    """flock holds between open files, so threads stand for processes."""
    storage.write_text(bucket / "a", "1")
    began, download = [], gcs.download_all

    def slowly(*arguments):
        began.append(1)
        time.sleep(0.2)
        if fails and len(began) == 1:
            raise ConnectionError("lost")
        download(*arguments)

    def read() -> str:
        with copied(bucket / "a") as copy:
            return copy.read_text()

    monkeypatch.setattr(gcs, "download_all", slowly)
    with ThreadPoolExecutor(4) as threads:
        reading = [threads.submit(read) for _ in range(4)]
        outcomes = sorted(repr(of.exception() or of.result()) for of in reading)
    assert outcomes == ["'1'"] * (4 - fails) + ["ConnectionError('lost')"] * fails and len(began) == 1 + fails


def test_there_are_never_more_copies_than_readers(bucket, monkeypatch, readers=3):
    """Counted at each begin of a copy and each removal: a walk over the folders sees no one moment."""
    names, there, most, counting = [str(number) for number in range(6)], set(), [], threading.Lock()
    for name in names:
        storage.write_text(bucket / name, name)

    def download(source, target, wanted):
        with counting:
            there.add(target.parents[0])
            most.append(len(there))
        time.sleep(0.001)  # while the others move on
        (target / wanted[0]).write_text(wanted[0])

    def remove(home):
        remove_tree(home)
        with counting:
            there.discard(home)

    def read(seed):
        choices = random.Random(seed)
        for name in choices.choices(names, k=30):
            with storage.brief_copy(bucket / name) as copied:
                time.sleep(choices.choice([0, 0, 0.002]))
                assert copied.read_text() == name

    monkeypatch.setattr(gcs, "download_all", download)
    monkeypatch.setattr(module, "remove_tree", remove)
    with ThreadPoolExecutor(readers) as threads:
        list(threads.map(read, range(readers)))
    assert max(most) == readers


def test_a_local_copy_is_of_what_is_there_now(bucket, tmp_path):
    storage.write_text(bucket / "model" / "a", "1")
    storage.write_text(bucket / "model" / "sub" / "b", "2")
    copied = storage.local_copy(bucket / "model")
    assert copied.name == "model" and (copied / "sub" / "b").read_text() == "2"
    assert storage.local_copy(bucket / "model") == copied
    storage.write_text(bucket / "model" / "sub" / "b", "3")
    assert (storage.local_copy(bucket / "model") / "sub" / "b").read_text() == "3"
    for content in ("1", "11"):
        storage.write_text(bucket / "model" / "a", content)
        assert storage.local_copy(bucket / "model" / "a").read_text() == content
    assert storage.local_copy(tmp_path) == tmp_path
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        storage.local_copy(bucket / "nothing")


def test_old_copies_go(bucket):
    """One of a moment ago stays: another process may be reading it."""
    copies = []
    for text in "123":
        storage.write_text(bucket / "a", text)
        copies.append(storage.local_copy(bucket / "a"))
        assert copies[-1].read_text() == text
        if text == "1":
            os.utime(copies[0].parent, (0, 0))
    assert [copied.exists() for copied in copies] == [False, True, True]
