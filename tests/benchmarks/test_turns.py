"""Programs take turns in processes of their own, and one that fails does not take the others with it."""

from pathlib import Path

import pytest
from turns import Worker, WorkerError, take_turns, warm

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent)}


def programs(file: Path, **broken: str) -> dict:
    working = {name: ("noted:noting", {"name": name, "file": str(file)}) for name in "AB"}
    return working | dict.fromkeys(broken, ("noted:broken", {}))


def started(file: Path, **broken):
    return warm(programs(file, **broken), ENVIRONMENT, required="A", tell=lambda share, message: None)


def test_they_run_one_after_the_other(tmp_path):
    with started(tmp_path / "notes") as ready:
        rounds = list(take_turns(ready.workers, 3, {"A": 1, "B": 2}))
        processes = [worker._process for worker in ready.workers.values()]
        assert [process.poll() for process in processes] == [None, None]
    assert [process.poll() for process in processes] == [0, 0], "their processes end with the block"
    assert (tmp_path / "notes").read_text() == "ABB" * 3
    assert [{name: answer["noted"] for name, answer in answers.items()} for answers in rounds] == [{"A": 1, "B": 2}] * 3
    assert all(answer["seconds"] > 0 for answers in rounds for answer in answers.values())


def test_one_that_fails_is_named_with_its_reason(tmp_path):
    with started(tmp_path / "notes", C="broken") as ready:
        assert ready.failed == {"C": "ValueError: no compiler here"}
        assert list(ready.workers) == list(ready.facts) == ["A", "B"]


def test_a_process_that_ends_unasked_is_an_error(tmp_path):
    arguments = {"name": "A", "file": str(tmp_path)}  # a folder can't be opened
    with Worker("noted:noting", arguments, ENVIRONMENT) as worker:
        assert worker.facts() == {"name": "A"}
        with pytest.raises(WorkerError, match="IsADirectoryError"):
            worker.run(1)
