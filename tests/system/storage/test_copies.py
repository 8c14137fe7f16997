"""Copies of objects on `gs://`: of the present version, made once, removed when old."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage import gcs as gs


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
    before = time.time() - 2 * 86_400
    os.utime(old.parent, (before, before))
    storage.write_text(bucket / "a", "2")
    kept = storage.local_copy(bucket / "a")
    assert kept.read_text() == "2" and not old.exists()
    storage.write_text(bucket / "a", "3")
    assert storage.local_copy(bucket / "a").read_text() == "3" and kept.exists(), "another process may be reading it"
