"""A host's log in the bucket: every line once, in order, in small pieces, whatever the storage does."""

import time

import pytest

from tpullm.launch import record
from tpullm.launch.record import Log
from tpullm.system import storage
from tpullm.system.errors import TryAgain


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(record, "SECONDS_BETWEEN_UPLOADS", 0.02)
    monkeypatch.setattr(record, "PIECE_CHARACTERS", 50)


@pytest.fixture
def written(monkeypatch):
    """The names of the files that are written, each time; what `fail` says is refused."""
    names, write = [], storage.write_text

    def write_text(path, text):
        names.append(path.name)
        if names.fail and names.fail.pop(0):
            raise TryAgain("the storage did not answer")
        write(path, text)

    names = type("Names", (list,), {"fail": []})()
    monkeypatch.setattr(record.storage, "write_text", write_text)
    return names


LINES = [f"line {number}" for number in range(40)]


def pieces(folder) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("[!.]*"))]  # not what is being written


def until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_lines_are_there_in_pieces(quick, tmp_path, capsys):
    log = Log(tmp_path, 3)
    for line in LINES:
        log.line(line)
    log.close()
    found = pieces(tmp_path)
    assert "".join(found).splitlines() == LINES
    assert len(found) > 4 and all(50 < len(piece) <= 50 + len("line 10\n") for piece in found[:-1])
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == ["0003.0000.log", "0003.0001.log"]
    assert capsys.readouterr().err.splitlines() == LINES


def test_a_line_is_uploaded_while_the_verb_runs(quick, tmp_path):
    log = Log(tmp_path, 0)
    for line in LINES[:3]:
        log.line(line)
        until(lambda line=line: tmp_path.exists() and "".join(pieces(tmp_path)).endswith(f"{line}\n"))
    log.close()


def test_what_has_not_changed_is_not_uploaded_again(quick, tmp_path, written):
    log = Log(tmp_path, 0)
    for line in LINES:
        log.line(line)
    last = f"0000.{len(log._pieces) - 1:04d}.log"
    until(lambda: "".join(pieces(tmp_path)).splitlines() == LINES)
    before = len(written)
    time.sleep(0.2)
    assert len(written) == before
    log.line("one more")
    until(lambda: "".join(pieces(tmp_path)).endswith("one more\n"))
    log.close()
    assert written[before:] == [last]


def test_a_storage_that_fails_loses_no_line(quick, tmp_path, written):
    written.fail += [False, True, True, False, True]
    log = Log(tmp_path, 0)
    for line in LINES:
        log.line(line)
    until(lambda: not written.fail)
    log.close()
    assert "".join(pieces(tmp_path)).splitlines() == LINES


def test_closing_uploads_what_is_left_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SECONDS_BETWEEN_UPLOADS", 10000.0)
    log = Log(tmp_path, 0)
    log.line("the end")
    log.close()
    assert pieces(tmp_path) == ["the end\n"]
