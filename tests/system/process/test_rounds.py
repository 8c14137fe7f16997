"""Rounds of shares: each part is made by its share, all wait for all, and what is shown is the work of all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.system import log, storage
from tpullm.system.cluster import shares
from tpullm.system.cluster.place import Place
from tpullm.system.cluster.shares import SharedWork
from tpullm.system.process import workers
from tpullm.system.process.workers import Rounds

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


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 12), st.data())
def test_every_share_makes_its_own_missing_parts_and_waits_for_the_others(tmp_path_factory, count, parts, data):
    folder = tmp_path_factory.mktemp("run")
    share, files = data.draw(st.integers(0, count - 1)), files_in(folder, parts)
    there = data.draw(st.sets(st.sampled_from(range(parts)))) if parts else set()
    touch(files, *there)()
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        for module in (shares, workers, log):
            patch.setattr(module, "time", clock)
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
    do(tmp_path, clock, 0, 1, [MB] * 5, seconds=100.0)
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


def test_one_share_alone_lists_once(tmp_path, clock):
    do(tmp_path, clock, 0, 1, [1] * 100)
    assert len(clock.listed) == 1


@pytest.mark.parametrize("count, end", [(20, "18, 19"), (21, "18, 19, ...")])
def test_of_many_shares_the_first_twenty_are_named(tmp_path, clock, capsys, count, end):
    files = files_in(tmp_path, 2 * count)
    touch(files, 0, count)()
    clock.when = [(9.0, touch(files, *range(2 * count)))]
    do(tmp_path, clock, 0, count, [1] * (2 * count))
    told, _, _ = capsys.readouterr().err.partition(";")
    missing = 2 * count - 2
    assert told.startswith(f"collect: waits for {missing} of {2 * count} parts, from share 1, 2, 3, ")
    assert told.endswith(end if count == 20 else "19, 20")
