"""Worker processes do each part once, and outlive neither their block nor their parent.

Of the rounds of shares each part is made by its share, all wait for all, and what is shown is the work of all.
"""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import is_gone, wait_until
from tests.system.process.hostile_work import parent_of
from tpullm.system import log, storage
from tpullm.system.cluster import shares
from tpullm.system.cluster.place import Place
from tpullm.system.cluster.shares import SharedWork
from tpullm.system.process import workers
from tpullm.system.process.workers import Rounds, run_all


def test_a_block_that_fails_ends_its_workers_at_once():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="^the block$"), workers.pool(1) as executor:
        child = executor.submit(os.getpid).result()
        executor.submit(time.sleep, 300)
        queued = [executor.submit(time.sleep, 300) for _ in range(5)]
        raise RuntimeError("the block")
    assert time.monotonic() - began < 200
    wait_until(lambda: is_gone(child))
    assert all(future.done() for future in queued)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("number, ignored", [(signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGINT, True)])
def test_workers_end_with_their_parent_and_silently_on_ctrl_c(number, ignored):
    """A parent that ignores Ctrl-C, as in a shell's background, has workers that do too."""
    program = (
        "import os, signal, time; from tpullm.system.process import workers\n"
        f"if {ignored}: signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with workers.pool(1) as executor:\n"
        "    print(executor.submit(os.getpid).result(), flush=True)\n"
        "    executor.submit(time.sleep, 300).result()\n"
    )
    with parent_of(program) as (parent, child):
        if number == signal.SIGINT:
            os.kill(child, number)
            if ignored:
                time.sleep(0.5)
                assert not is_gone(child)
            else:
                assert "KeyboardInterrupt" not in parent.communicate(timeout=60)[1]
        parent.kill()
        wait_until(lambda: is_gone(child))


def note(path: Path) -> None:
    path.write_text(str(os.getpid()))


def fail_at_two(path: Path) -> None:
    if path.name == "2":
        raise ValueError("the second")
    note(path)


def run(folder, workers, size, work=note, count=4):
    parts, finished = [folder / str(number) for number in range(count)], []
    run_all(work, parts, [size] * count, workers, 400, lambda part: finished.append((part, parts[part].exists())))
    return [int(path.read_text()) for path in parts], finished


@pytest.mark.parametrize(("workers", "size"), [(1, 1000), (2, 100), (0, 100), (2, 101)])
def test_one_worker_or_little_to_do_is_done_here_in_order_and_more_elsewhere(tmp_path, workers, size):
    (processes, finished), here = run(tmp_path, workers, size), (workers, size) != (2, 101)
    assert set(processes) == {os.getpid()} if here else os.getpid() not in processes
    assert (finished if here else sorted(finished)) == [(part, True) for part in range(4)]


def test_there_are_as_many_workers_as_cores_and_no_more_than_parts(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(workers, "pool", lambda count: asked.append(count) or ThreadPoolExecutor(count))
    monkeypatch.setattr(workers, "cores", lambda: 3)
    for count, wanted in ((4, 0), (2, 0), (4, 2)):
        run(tmp_path, wanted, 1000, count=count)
    assert asked == [3, 2, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_error_of_a_part_is_raised(tmp_path, workers):
    with pytest.raises(ValueError, match="the second"):
        run(tmp_path, workers, 1000, fail_at_two)


MB = 1_000_000


class Clock:
    """Time that passes when somebody sleeps or works, and the listings of the folder of the parts."""

    def __init__(self):
        self.now, self.listed, self.listing_seconds = 0.0, [], 0.0
        self.when = []  # (moment, what happens then)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        while self.when and self.when[0][0] <= self.now:
            self.when.pop(0)[1]()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock, names = Clock(), shares.names

    def listed(folder):
        if folder.name == "parts":
            clock.listed.append(clock.now)
            clock.now += clock.listing_seconds
        return names(folder)

    for module in (shares, workers, log):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(shares, "names", listed)
    return clock


def files_in(folder, count):
    (folder / "parts").mkdir(exist_ok=True)
    return [folder / "parts" / f"{number}" for number in range(count)]


def do(folder, clock, share, count, sizes, seconds=1.0, is_finished=lambda: False):
    """One round of a share, which takes `seconds` for each of its parts; the parts that it made."""
    files, made = files_in(folder, len(sizes)), []

    def make(part):
        clock.sleep(seconds)
        made.append(part)
        files[part].touch()

    with SharedWork(folder, "verb", Place(share, count)) as work:
        work.begin({})
        Rounds(1, work, is_finished).do("collect", make, list(range(len(sizes))), files, sizes, 10**12)
        storage.write_text(folder / ".verb" / "stays", "")  # the round is over, the verb goes on
    return made


def touch(files, *numbers):
    return lambda: [files[number].touch() for number in numbers]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(0, 12), st.data())
def test_every_share_makes_its_own_missing_parts_and_waits_for_the_others(tmp_path_factory, clock, count, parts, data):
    folder = tmp_path_factory.mktemp("run")
    share, files = data.draw(st.integers(0, count - 1)), files_in(folder, parts)
    there = data.draw(st.sets(st.sampled_from(range(parts)))) if parts else set()
    touch(files, *there)()
    clock.__init__()
    clock.when = [(100.0, touch(files, *range(parts)))]
    made = do(folder, clock, share, count, [1] * parts)
    assert made == [part for part in range(share, parts, count) if part not in there]
    assert (clock.now >= 100) == any(part % count != share and part not in there for part in range(parts))


def test_a_finished_stage_is_not_made_again_and_ends_all_waiting(tmp_path, clock):
    assert do(tmp_path, clock, 0, 2, [1] * 4, is_finished=lambda: True) == [] and clock.now == 0
    assert do(tmp_path, clock, 1, 2, [1] * 4, is_finished=lambda: clock.now > 60) == [1, 3]
    assert 60 < clock.now < 70


def test_lines_tell_of_the_parts_of_all_shares_and_for_whom_a_share_waits(tmp_path, clock, capsys):
    """Parts 0 and 1 were there before: they count, but not for the rate."""
    files, sizes = files_in(tmp_path, 10), [100 * MB] * 10
    touch(files, 0, 1)()
    clock.when = [(10.0, touch(files, 3)), (80.5, touch(files, 5, 7)), (250.0, touch(files, 9))]
    do(tmp_path, clock, 0, 2, sizes, seconds=10.0)
    assert capsys.readouterr().err.splitlines() == [
        # after 10 s part 2 is made, and 3 seen
        "collect: 4 of 10 parts; 40% of 1 GB, 20 MB/s, 0:00:30 left",
        # from 40 s on it waits; a line a minute
        "collect: waits for 3 of 10 parts, from share 1; 70% of 1 GB, 4.77 MB/s, 0:01:03 left",
        "collect: waits for 1 of 10 parts, from share 1; 90% of 1 GB, 3.33 MB/s, 0:00:30 left",
        "collect: waits for 1 of 10 parts, from share 1; 90% of 1 GB, 0 kB/s, -:--:-- left",
        "collect: 10 of 10 parts; 100% of 1 GB, 1.67 MB/s, 0:00:00 left",
    ]


def test_a_short_round_and_one_share_alone_print_no_line(tmp_path, clock, capsys):
    """And one share alone lists the folder once."""
    do(tmp_path, clock, 0, 1, [MB] * 5, seconds=100.0)
    assert len(clock.listed) == 1
    clock.when = [(clock.now + 2.0, touch(files_in(tmp_path, 10), 5, 7, 9))]
    do(tmp_path, clock, 0, 2, [MB] * 10, seconds=1.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("listing, most", [(0.0, 70), (5.0, 5)])
def test_the_folder_is_listed_every_few_seconds_and_in_little_of_the_time(tmp_path, clock, listing, most):
    clock.listing_seconds = listing
    files = files_in(tmp_path, 1400)
    touch(files, *range(1, 1400, 2))()
    do(tmp_path, clock, 0, 2, [1] * 1400, seconds=0.5)
    assert 2 < len(clock.listed) <= most + 2
    pauses = [after - before for before, after in zip(clock.listed, clock.listed[1:-1], strict=False)]
    assert min(pauses) >= max(5.0, 20 * listing)


@pytest.mark.parametrize("count, end", [(21, "19, 20"), (22, "19, 20, ...")])
def test_of_many_shares_the_first_twenty_are_named(tmp_path, clock, capsys, count, end):
    files = files_in(tmp_path, 2 * count)
    touch(files, 0, count)()
    clock.when = [(9.0, touch(files, *range(2 * count)))]
    do(tmp_path, clock, 0, count, [1] * (2 * count))
    told, _, _ = capsys.readouterr().err.partition(";")
    assert told.startswith(f"collect: waits for {2 * count - 2} of {2 * count} parts, from share 1, 2, 3, ")
    assert told.endswith(end)
