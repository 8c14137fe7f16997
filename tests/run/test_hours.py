"""Where the hours went: every second of every process has one name, and the names add up to the time that passed."""

import json

import numpy as np
import pytest

from tpullm.run import hours
from tpullm.run.hours import Hours, goodput_in_words, planned_goodput, seconds_by_kind, share_kept


def line(process, resumed, step, seconds, skipped=0, **named):
    """What a process that began at `process` appends `seconds` later."""
    spent = {**named, "all": seconds}
    return {"process": process, "resumed": resumed, "step": step, "skipped": skipped, "seconds": spent}


def test_all_is_named_once():
    """Two processes: 100 s to step 10, of which 4 steps are made again; 10 s nobody; 60 s to step 16, 2 skipped."""
    lines = [
        line(1000.0, 0, 5, 60.0, compile=10.0, save=5.0, data=5.0),
        line(1000.0, 0, 10, 100.0, compile=10.0, save=5.0, data=5.0),
        line(1110.0, 6, 16, 60.0, skipped=2, restore=10.0),
    ]
    found = seconds_by_kind(lines)
    assert sum(found.values()) == pytest.approx(1110.0 + 60.0 - 1000.0)
    wanted = {"start": 10, "compile": 10, "restore": 10, "data": 5, "save": 5, "lost": 80 * 4 / 10}
    wanted |= {"skipped": 50 * 2 / 10, "train": 80 * 6 / 10 + 50 * 8 / 10}
    assert {kind: value for kind, value in found.items() if value} == pytest.approx(wanted)
    assert goodput_in_words(lines).startswith("goodput 51.8% (lost 18.8%, ") and goodput_in_words([]) == "goodput 0.0%"


@pytest.mark.parametrize(("restart", "until_saved", "between_saves"), [(5, 2, 10), (20, 0, 60), (0, 0, 1), (1, 9, 30)])
def test_what_is_kept_is_what_a_simulation_keeps(restart, until_saved, between_saves):
    """20,000 lives of 60 s in the mean: the mean has an error of less than 1 % of the whole."""
    lives = np.random.default_rng(0).exponential(60, 20_000)
    saves = np.maximum(0, (lives - restart - until_saved) // between_saves)
    kept = saves.sum() * between_saves / lives.sum()
    assert share_kept(restart, until_saved, between_saves, 60) == pytest.approx(kept, abs=0.01)
    assert share_kept(restart, until_saved, between_saves, 0) == 1


def test_beside_the_goodput_stands_what_was_planned():
    run = {"restart_seconds": 10.0, "save_seconds": 2.0, "between_saves_seconds": 20.0}
    once = [line(1000.0, 0, 10, 100.0), line(1120.0, 5, 20, 80.0)]
    assert planned_goodput(once, run) == (1, share_kept(10, 2, 20, 200))
    others = ((once, None), (once[:1], run), ([], run))
    assert [planned_goodput(*of) for of in others] == [(1, 1.0), (0, 1.0), (0, 1.0)]
    rolled_back = [line | {"started": 1.0} for line in once]
    assert planned_goodput(rolled_back, run) == (0, 1.0), "one process that begins again"
    assert "planned" not in goodput_in_words(once) and "planned" not in goodput_in_words(once[:1], run)
    assert f", planned for 1 interruptions {share_kept(10, 2, 20, 200):.1%} (" in goodput_in_words(once, run)


def test_a_clock_that_goes_back_takes_nothing_away():
    found = seconds_by_kind([line(1000.0, 0, 10, 100.0), line(500.0, 10, 20, 100.0)])
    assert found == dict.fromkeys(hours.KINDS, 0.0) | {"train": 200.0}


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_while_a_process_works_changes_nothing(monkeypatch, jump):
    """The process takes 100 s, then nobody works for 10 s."""
    clock, wall = [0.0], [1000.0]
    monkeypatch.setattr(hours.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(hours.time, "time", lambda: wall[0] + clock[0])
    made = Hours()
    clock[0] += 100.0
    wall[0] += jump
    lines = [made.line(10, 0)]
    clock[0] += 10.0
    after = Hours()
    after.resumed = 10
    clock[0] += 50.0
    found = seconds_by_kind([*lines, after.line(15, 0)])
    assert {kind: seconds for kind, seconds in found.items() if seconds} == {"start": 10.0, "train": 150.0}


def test_a_process_counts_its_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(hours.time, "monotonic", lambda: clock[0])
    made = Hours()
    made.resumed = 3
    with made.of("save"):
        clock[0] += 2.0
    with pytest.raises(KeyboardInterrupt), made.of("save"):
        clock[0] += 1.0
        raise KeyboardInterrupt
    clock[0] += 4.0
    said = made.line(7, 1)
    assert said["seconds"] == {"save": 3.0, "all": 7.0}
    assert (said["resumed"], said["step"], said["skipped"]) == (3, 7, 1)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    assert hours.read(tmp_path / "none") == []
    first = line(1.0, 0, 1, 1.0)
    (tmp_path / "hours.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(first)[:9])
    assert hours.read(tmp_path / "hours.jsonl") == [first]
