"""What a launch notes in its run directory is what whoever watches it next reads; the logs of hosts, in pieces."""

import pytest

from tpullm.launch import record as module
from tpullm.launch.record import HostExit, Log, Outcome, Record
from tpullm.system.errors import TryAgain


@pytest.fixture
def record(tmp_path):
    return Record(str(tmp_path / "run" / "launch" / "x"))


def test_an_attempt_is_read_as_it_was_noted(record):
    record.begin(1, "spec")
    (attempt,) = record.attempts()
    assert (attempt.number, attempt.spec) == (1, "spec")
    assert (attempt.active, attempt.starts, attempt.exits, attempt.outcome) == (0.0, 0, (), None)
    record.saw_active(1)
    exits = [HostExit(0, 0, "done"), HostExit(11, 75, "host 0 is gone")]
    for each in reversed(exits):
        record.add_exit(1, each)
    outcome = Outcome(True, 75, "taken back", 12.5)
    record.conclude(1, outcome)
    (attempt,) = record.attempts()
    assert attempt.active > 1e9 and attempt.exits == tuple(exits) and attempt.outcome == outcome


def test_starts_are_counted_by_host_and_attempt(record):
    for number, start, host in ((1, 1, 0), (1, 1, 1), (1, 2, 1), (2, 5, 0)):
        record.ready(number, start, host)
    assert [record.ready_hosts(1, start) for start in (1, 2, 3)] == [2, 1, 0]
    assert [record.last_start(1, host) for host in (0, 1, 2)] == [1, 2, 0]
    assert [attempt.starts for attempt in record.attempts()] == [2, 5]


LINES = [f"line {number}" for number in range(40)]


def test_all_lines_are_there_in_pieces(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 50)
    for folder in (tmp_path / "logs", bucket / "logs"):
        log = Log(folder, 3)
        for line in LINES:
            log.line(line)
        log.close()
        found = [(folder / name).read_text() for name in sorted(path.name for path in folder.iterdir())]
        assert "".join(found).splitlines() == LINES
        assert len(found) > 4 and all(50 < len(piece) <= 50 + len("line 10\n") for piece in found[:-1])
        assert sorted(path.name for path in folder.iterdir())[:2] == ["0003.0000.log", "0003.0001.log"]
    assert capsys.readouterr().err.splitlines() == 2 * LINES


def test_a_storage_that_is_away_keeps_no_host_from_its_end(bucket, monkeypatch):
    log = Log(bucket / "logs", 0)
    monkeypatch.setattr(log._mirror, "_send", lambda: (_ for _ in ()).throw(TryAgain("away")))
    log.line("the end")
    log.close()
