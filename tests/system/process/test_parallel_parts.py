"""Parts of a stage are each done once, by this process or by others, and counted when they are done."""

import os
from pathlib import Path

import pytest

from tpullm.system.process.workers import run_all


def note(path: Path) -> None:
    """The work of a part: leave the number of the process."""
    path.write_text(str(os.getpid()))


def fail_at_two(path: Path) -> None:
    if path.name == "2":
        raise ValueError("the second")
    note(path)


def run(folder, workers, size, work=note, count=4):
    parts, finished = [folder / str(number) for number in range(count)], []
    run_all(work, parts, [size] * count, workers, 400, lambda part: finished.append((part, parts[part].exists())))
    return [int(path.read_text()) for path in parts], finished


@pytest.mark.parametrize(("workers", "size"), [(1, 1000), (2, 100), (0, 100)])
def test_one_worker_or_little_to_do_is_done_here_in_order(tmp_path, workers, size):
    processes, finished = run(tmp_path, workers, size)
    assert set(processes) == {os.getpid()} and finished == [(part, True) for part in range(4)]


@pytest.mark.parametrize("workers", [2, 99])
def test_more_is_done_by_other_processes(tmp_path, workers):
    processes, finished = run(tmp_path, workers, 101)
    assert os.getpid() not in processes and sorted(finished) == [(part, True) for part in range(4)]


def test_there_are_as_many_workers_as_cores_and_no_more_than_parts(tmp_path, monkeypatch):
    from tpullm.system.process import workers as parallel_parts

    asked, pool = [], parallel_parts.pool
    monkeypatch.setattr(parallel_parts, "pool", lambda workers: asked.append(workers) or pool(workers))
    monkeypatch.setattr(parallel_parts.os, "cpu_count", lambda: 3)
    for count, workers in ((4, 0), (2, 0), (4, 2)):
        folder = tmp_path / f"{count} {workers}"
        folder.mkdir()
        run(folder, workers, 1000, count=count)
    assert asked == [3, 2, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_part_is_raised(tmp_path, workers):
    with pytest.raises(ValueError, match="the second"):
        run(tmp_path, workers, 1000, fail_at_two)


def test_nothing_to_do_is_done():
    run_all(note, [], [], 0, 0, lambda part: None)
