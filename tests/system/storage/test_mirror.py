"""Files that grow reach `gs://`, however the storage is, and nobody waits for it unasked."""

import threading

import pytest

from tests.conftest import wait_until
from tpullm.system.errors import TryAgain
from tpullm.system.storage import gcs as gs
from tpullm.system.storage import mirror


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """An upload every fifth of a second, also after one that took long."""
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN", 0.2)
    monkeypatch.setattr(mirror, "SHARE_OF_TIME", 1.0)


def test_what_grows_is_sent_unasked_and_whole_when_waited_for(bucket):
    before = set(threading.enumerate())
    grown, sent = mirror.mirrored(bucket / "stage"), bucket / "stage" / "log"
    with open(grown.folder / "log", "a") as file:
        for line in ("1\n", "2\n"):
            file.write(line)
            file.flush()
            grown.changed()
            wait_until(lambda line=line: sent.exists() and sent.read_text()[-2:] == line)
        file.write("3\n")
    grown.wait()
    assert sent.read_text() == "1\n2\n3\n"
    grown.close()
    assert not grown.folder.exists()
    wait_until(lambda: not any(thread.name == "mirror" for thread in set(threading.enumerate()) - before))


def test_a_local_folder_is_written_where_it_is(tmp_path):
    grown = mirror.mirrored(tmp_path / "run" / "stage")
    (grown.folder / "log").write_text("1\n")
    grown.changed()
    grown.wait()
    grown.close()
    assert (tmp_path / "run" / "stage" / "log").read_text() == "1\n"


def test_an_upload_that_failed_is_tried_again(bucket, storage_server, monkeypatch):
    grown = mirror.mirrored(bucket / "stage")
    monkeypatch.setattr(gs, "PATIENCE_SECONDS", 0.5)
    (grown.folder / "log").write_text("1\n")
    storage_server.kill()
    with pytest.raises(TryAgain, match="did not answer"):
        grown.wait()
    threading.Timer(0.1, storage_server.start).start()
    wait_until(lambda: storage_server.is_running() and (bucket / "stage" / "log").exists())
    grown.close()
