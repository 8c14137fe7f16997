"""An engine makes each missing part once, the largest first, here or in other processes, and tells how far it is."""

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpullm.system import log
from tpullm.system.process import parts as engine
from tpullm.system.process.parts import Engine


def note(path: Path) -> None:
    path.write_text(str(os.getpid()))


def fail_at_two(path: Path) -> None:
    if path.name == "2":
        raise ValueError("the second")
    note(path)


def run(folder, workers=0, size=1000, work=note, count=4):
    parts = [folder / str(number) for number in range(count)]
    with Engine("processes", workers, folder) as own:
        own.map("note", work, parts, parts, [size] * count, 400)
    return [int(path.read_text()) for path in parts]


@pytest.mark.parametrize(("workers", "size"), [(1, 1000), (2, 100), (0, 100), (2, 101)])
def test_one_worker_or_little_to_do_is_done_here_and_more_elsewhere(tmp_path, workers, size):
    processes, here = run(tmp_path, workers, size), (workers, size) != (2, 101)
    assert set(processes) == {os.getpid()} if here else os.getpid() not in processes


def test_there_are_as_many_workers_as_cores_and_no_more_than_parts(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(engine.workers, "pool", lambda count: asked.append(count) or ThreadPoolExecutor(count))
    monkeypatch.setattr(engine, "cores", lambda: 3)
    for count, wanted in ((4, 0), (2, 0), (4, 2)):
        (folder := tmp_path / str(len(asked))).mkdir()
        run(folder, wanted, count=count)
    assert asked == [3, 2, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_part_is_raised(tmp_path, workers):
    with pytest.raises(ValueError, match="the second"):
        run(tmp_path, workers, work=fail_at_two)


def kill_own_process(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_round(tmp_path):
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        run(tmp_path, 2, work=kill_own_process)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 4), st.data())
def test_each_missing_part_is_made_once_and_elsewhere_the_largest_first(
    tmp_path_factory, monkeypatch, sizes, in_flight, data
):
    """Whatever is there, and however many are in flight."""
    monkeypatch.setattr(engine, "IN_FLIGHT", in_flight)
    monkeypatch.setattr(engine.workers, "pool", lambda count: ThreadPoolExecutor(1))
    files, made = [tmp_path_factory.mktemp("run") / "0"], []
    files += [files[0].with_name(str(number)) for number in range(1, len(sizes))]
    numbers = range(len(sizes))
    there = data.draw(st.sets(st.sampled_from(numbers))) if sizes else set()
    for number in there:
        files[number].touch()
    with Engine("processes", 2, files[0].parent) as own:
        few = data.draw(st.integers(0, 30))
        own.map("note", made.append, list(numbers), files[: len(sizes)], sizes, few)
    missing = [number for number in numbers if number not in there]
    elsewhere = len(missing) > 1 and sum(sizes[number] for number in missing) > few
    assert made == (sorted(missing, key=lambda number: (-sizes[number], number)) if elsewhere else missing)


class Threads:
    """In place of a Ray cluster."""

    most = left = 0

    @contextlib.contextmanager
    def tasks(self, title):
        with ThreadPoolExecutor(1) as pool:
            yield pool

    def leave(self):
        self.left += 1


def test_lines_tell_how_far_a_cluster_is(tmp_path, monkeypatch, capsys):
    """A part that was there before counts, but not for the rate; at the end the engine leaves the cluster."""
    monkeypatch.setattr(engine.ray_tasks, "Cluster", lambda run: Threads())
    monkeypatch.setattr(log, "SECONDS_TO_FIRST_LINE", 0.0)
    monkeypatch.setattr(log, "SECONDS_BETWEEN_LINES", 0.0)
    files = [tmp_path / str(number) for number in range(4)]
    files[3].touch()
    with Engine("ray", 2, tmp_path) as own:  # the third missing part waits for another
        own.map("collect", note, files, files, [1_000_000] * 4, 0)
    assert own._cluster.left == 1
    told = [line.split(";")[:2] for line in capsys.readouterr().err.splitlines()]
    assert [parts for parts, _ in told] == [f"collect: {number} of 4 parts" for number in (2, 3, 4)]
    assert told[0][1].startswith(" 50% of 4 MB, ") and told[2][1].startswith(" 100% of 4 MB, ")


def test_processes_print_no_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log, "SECONDS_TO_FIRST_LINE", 0.0)
    run(tmp_path, 1)
    assert capsys.readouterr().err == ""
