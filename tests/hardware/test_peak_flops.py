"""The peak is measured while nothing else keeps the processor busy, or it is not believed."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tpullm.hardware import chips, peak_flops
from tpullm.hardware.chips import Chip
from tpullm.hardware.peak_flops import MOST_WAITING, TRIALS, Fastest, Trial, fastest_trial, share_waited

calm = st.builds(Trial, seconds=st.floats(0.1, 9), waiting=st.floats(0, MOST_WAITING))
hindered = st.builds(Trial, seconds=st.floats(0.001, 99), waiting=st.floats(MOST_WAITING, 1, exclude_min=True))


@settings(max_examples=20)
@given(st.lists(calm, min_size=TRIALS, max_size=TRIALS), st.lists(hindered), st.randoms())
def test_the_fastest_of_enough_calm_trials_counts_whatever_the_others_took(good, bad, random):
    trials = random.sample([*good, *bad], len(good) + len(bad))
    assert fastest_trial(trials) == Fastest(min(trial.seconds for trial in good), disturbed=False)


@settings(max_examples=20)
@given(st.lists(calm, max_size=TRIALS - 1), st.lists(hindered, min_size=1))
def test_too_few_calm_trials_are_not_believed(good, bad):
    assert fastest_trial([*good, *bad]).disturbed


def test_no_more_trials_are_made_than_are_needed():
    trials = iter([Trial(1.0, 0.0)] * 99)
    fastest_trial(trials)
    assert len(list(trials)) == 99 - TRIALS


def test_waiting_is_a_share_of_what_was_wanted_and_without_the_schedulers_accounts_of_all_cores(monkeypatch):
    assert share_waited(1.0, 2.0, 0.0) == 0.0  # had both cores
    assert share_waited(1.0, 1.0, 1.0) == 0.5  # two threads, one of which had none
    assert share_waited(1.0, 0.9, 0.0) == share_waited(1.0, 0.0, 0.0) == 0.0  # did not want more than one, or any
    assert share_waited(1.0, 1.0, -0.1) == 0.0  # a thread that ended took its account with it
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert share_waited(1.0, 2.0, None) == 0.0 and share_waited(1.0, 0.5, None) == 0.75


def test_trials_go_on_for_a_bounded_time_and_pause_after_a_disturbed_one(monkeypatch):
    """By clocks of the test: each trial takes and uses 0.15 s, and every other one waits as long as it works."""
    clock, waited, pauses, done = [0.0], [0.0], [], []
    for name in ("monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(peak_flops.time, name, lambda: clock[0])
    monkeypatch.setattr(peak_flops.time, "sleep", pauses.append)
    monkeypatch.setattr(peak_flops, "_seconds_without_core", lambda: waited[0])

    def work():
        done.append(clock[0])
        clock[0] += 0.15
        waited[0] += 0.15 * (len(done) % 2)

    trials = list(peak_flops._timed_trials(work))
    assert [trial.seconds for trial in trials] == pytest.approx([0.15] * 7)  # the seventh begins at 0.9 s
    assert [trial.waiting for trial in trials] == pytest.approx([0.5, 0, 0.5, 0, 0.5, 0, 0.5])
    assert pauses == [peak_flops.PAUSE_SECONDS] * 4
    monkeypatch.setattr(peak_flops, "_seconds_without_core", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert [trial.waiting for trial in peak_flops._timed_trials(work)] == pytest.approx([0.75] * 7)


@pytest.mark.ci
@pytest.mark.skipif(
    peak_flops._seconds_without_core() is None, reason="the system does not tell how long a thread waits for a core"
)
def test_a_busy_core_is_noticed():
    """Three programs of the same core leave a fourth of it."""
    done = subprocess.run([sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stdout + done.stderr


BUSY = """
import os, subprocess, sys, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # and those that are started from here
from tpullm.hardware.peak_flops import fastest_run
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
def work():
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
try:
    print(fastest_run(work).disturbed)
finally:
    for other in others:
        other.kill()
"""


@pytest.fixture
def unmeasured():
    peak_flops.peak.cache_clear()
    yield
    peak_flops.peak.cache_clear()


def test_a_peak_that_was_disturbed_is_said_once(unmeasured, monkeypatch, capsys):
    monkeypatch.setattr(chips, "CHIPS", {})
    monkeypatch.setattr(peak_flops, "fastest_run", lambda work: Fastest(0.5, True))
    monkeypatch.setattr(peak_flops.jax, "default_backend", lambda: "cpu")
    first, second = peak_flops.peak("float32"), peak_flops.peak("float32")
    assert first is second and first.disturbed and first.flops == 2 * 1536**3 / 0.5
    assert capsys.readouterr().err.count("its peak can't be measured") == 1


def test_a_published_peak_is_not_measured(unmeasured, monkeypatch):
    monkeypatch.setitem(chips.CHIPS, "here", Chip((peak_flops.jax.local_devices()[0].device_kind,), 5.0))
    monkeypatch.setattr(peak_flops, "fastest_run", None)
    assert peak_flops.peak("bfloat16") == peak_flops.Peak(5.0, disturbed=False)
