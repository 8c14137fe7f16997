"""A training that hangs ends with a line that names the host, and one that does not hang goes on."""

import threading
import time
from dataclasses import asdict

import pytest

from tests.conftest import wait_until
from tests.system.cluster.conftest import connect
from tpullm.system.cluster import channel, watchdog
from tpullm.system.cluster.watchdog import Progress, Watchdog, slow_host
from tpullm.system.errors import TRY_AGAIN

PATIENCE = 0.4


class Training:
    """A training in a thread of this process that goes through phases until it is told to hang in one."""

    def __init__(self, folder, connected=None, patience=PATIENCE):
        self.watchdog = Watchdog(folder, patience, connected)
        self.hangs, self.released = threading.Event(), threading.Event()

    def does(self, *todo) -> "Training":
        """Each is a step's number, which ends that step, or a phase, in which it hangs."""
        self.thread = threading.Thread(target=self._train, args=(todo,), daemon=True)
        self.thread.start()
        return self

    def _train(self, todo):
        with self.watchdog:
            for each in todo:
                if isinstance(each, int):
                    self.watchdog.at(each)
                else:
                    with self.watchdog.of(each):
                        self.hangs.set()
                        self.released.wait(60)
            self.hangs.set()
            self.released.wait(60)

    def ends(self):
        self.released.set()
        self.thread.join(60)


def stacks(folder) -> list[str]:
    return [path.read_text() for path in sorted((folder / "stacks").iterdir())]


@pytest.mark.parametrize("todo, where", [((7, "data"), "after step 7"), (("data",), "in its first step")])
def test_one_host_that_hangs_ends_with_a_line_and_its_stacks(tmp_path, ended, todo, where):
    """The line has no line of a test: it is none of this package."""
    training = Training(tmp_path).does(*todo)
    wait_until(lambda: ended)
    training.ends()
    line, code = ended[0]
    assert code == TRY_AGAIN and line.startswith("training made no progress for ")
    assert f": {where} it is waiting for data; the stacks of all threads are in {tmp_path / 'stacks'}; " in line
    assert line.endswith("the same command resumes from the last checkpoint")
    (text,) = stacks(tmp_path)
    assert "phase='data'" in text and "self.released.wait(60)" in text and "thread MainThread:" in text


@pytest.mark.parametrize("todo, patience", [((), PATIENCE), ((1, "start"), PATIENCE), ((7, "data"), 0.0)])
def test_what_comes_before_the_first_step_and_without_patience_all_is_not_watched(tmp_path, ended, todo, patience):
    training = Training(tmp_path, patience=patience).does(*todo)
    training.hangs.wait(60)
    time.sleep(2 * PATIENCE)
    training.ends()
    assert ended == [] and list(tmp_path.iterdir()) == []


def test_every_phase_step_and_batch_is_progress(tmp_path, ended):
    """Together they take longer than the patience. A process that the system stops is not one that hangs."""
    batch = []
    with Watchdog(tmp_path, 0.6, None) as dog:
        evaluate = dog.each(lambda number: batch.append(number) or number)
        for number in range(1, 3):
            dog.at(number)
            time.sleep(0.25)
            with dog.of("data"):
                time.sleep(0.25)
            evaluate(number)
            time.sleep(0.25)
    assert ended == [] and evaluate(7) == 7 and batch[-1] == 7


def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path, ended, monkeypatch):
    """Each look is an hour after the one before by the clock, and counts as two seconds between looks."""
    hours = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(watchdog, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(hours))
    with Watchdog(tmp_path, 1000.0, None) as dog:
        dog.at(1)
        threading.Event().wait(0.3)
        idle = dog._idle
    monkeypatch.undo()
    assert 0 < idle < 10 and ended == []


def test_the_time_that_a_host_waits_for_its_data_is_counted(tmp_path, monkeypatch):
    dog, now = Watchdog(tmp_path, 1.0, None), [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    for phase, seconds in (("data", 2.0), ("save", 30.0), ("data", 0.5)):
        with dog.of(phase):
            now[0] += seconds
    assert dog._progress() == Progress(0, "start", 0.0, 2.5)


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    monkeypatch.setattr(channel, "SECONDS_BETWEEN_BEATS", 0.02)
    connected = connect()
    made = [Training(tmp_path, one) for one in connected]
    for one in connected:
        one.start()
    return made


def test_the_host_that_is_behind_is_named_on_all_hosts_and_all_write_their_stacks(tmp_path, ended, trainings):
    """Host 1 waits for its data. The others are silent as long, since they wait for host 1, but they are further."""
    trainings[1].does(7, "data")
    time.sleep(PATIENCE / 2)
    trainings[0].does(8, "step")
    trainings[2].does(8, "data")
    wait_until(lambda: len(ended) == 3)
    for training in trainings:
        training.ends()
    assert len(set(ended)) == 1 and ended[0][1] == TRY_AGAIN
    assert ended[0][0].startswith("host 1 (name1) made no progress for ")
    assert "after step 7 it is waiting for data; the stacks" in ended[0][0] and channel.RESUME in ended[0][0]
    found = stacks(tmp_path)
    assert [text.splitlines()[0].split(",")[0] for text in found] == ["host 0", "host 1", "host 2"]
    assert all("self.released.wait(60)" in text for text in found)


def test_hosts_that_hang_in_the_same_place_are_all_named(ended, trainings):
    for training in trainings:
        training.does(8, "step")
    wait_until(lambda: len(ended) == 3)
    for training in trainings:
        training.ends()
    assert "after step 8 it is in a step, as all hosts are (a device or the network may hang); " in ended[0][0]


def test_what_is_no_progress_is_refused():
    said = asdict(Progress(7, "data", 1.0, 2.0))
    assert Progress(**said) == Progress(7, "data", 1.0, 2.0)
    wrong = [("step", "7"), ("step", []), ("phase", "x"), ("phase", []), ("idle_seconds", None), ("data_seconds", True)]
    for key, value in wrong:
        with pytest.raises(ValueError, match=key):
            Progress(**said | {key: value})


@pytest.mark.parametrize(
    "which, hosts",
    [
        (None, [(7, "step", 99.0), (7, "save", 99.0)]),
        (1, [(8, "step", 100.0), (7, "save", 5.0)]),  # the one that is behind, though it went on a moment ago
        (1, [(8, "step", 100.0), (8, "data", 5.0)]),  # a step begins with its data
        (1, [(8, "save", 100.0), (8, "evaluate", 5.0)]),
        (1, [(8, "step", 100.0), (8, "step", 101.0)]),
        (None, [(1, "step", 100.0), (0, "start", 0.0)]),  # it still compiles
        (1, [(0, "start", 0.0), (0, "data", 100.0)]),  # host 0 may be in its first step until host 1 joins it
        (1, [(7, "data", 100.0), (6, "data", 100.0), (5, "step", 100.0)]),
    ],
)
def test_the_host_that_all_wait_for_is_the_one_that_is_behind(which, hosts):
    progress = {index: Progress(*host, data_seconds=0.0) for index, host in enumerate(hosts)}
    assert watchdog.hanging_host(progress, 100.0) == which


NAMES = ["name0", "name1", "name2"]


def after(*waits: float, steps: int = 100) -> dict[int, Progress]:
    """Progress after 100 more steps, in each of which a host has waited so long for its data."""
    return {host: Progress(50 + steps, "step", 0.0, 10 + wait * steps) for host, wait in enumerate(waits)}


BEFORE = after(0, 0, 0, steps=0)


def test_a_slow_host_is_named_with_what_it_costs():
    assert slow_host(BEFORE, after(0.01, 0.9, 0.1), 200.0, NAMES) == (
        "host 1 (name1) is slower than the others: in each step it waits 900 ms for its data, no other more than "
        "100 ms; that costs up to 40% of a step"
    )
    assert slow_host(BEFORE, after(0.01, 0.29, 0.1), 200.0, NAMES) == "", "9.5 % of a step"
    assert slow_host(BEFORE, after(0.9, 0.9, 0.9), 200.0, NAMES) == "", "all wait alike"
    assert slow_host(BEFORE, after(0.9, 0.0, 0.0, steps=0), 200.0, NAMES) == "", "no step has ended"
    assert slow_host({}, after(0.9, 0.0, 0.0), 200.0, NAMES) == "", "the first look"
    assert slow_host(BEFORE, {0: after(0.9)[0]}, 200.0, NAMES) == "", "not all hosts have said something"


def test_a_slow_host_is_warned_about_now_and_then(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog, said = Watchdog(tmp_path, 1.0, connect()[0]), []
    for minute in range(25):
        now[0] = 1000.0 + 60 * minute
        dog._compare(after(0.01, 0.5, 0.1, steps=60 * minute))
        said.append("host 1 (name1) is slower" in capsys.readouterr().err)
    monkeypatch.undo()
    assert [minute for minute, warned in enumerate(said) if warned] == [2, 12, 22]
