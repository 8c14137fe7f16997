"""One host without a machine: when it restarts the verb, when it waits, what it reports, and which host it is."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import DEFAULT, Mock

import pytest

from tests.launch.conftest import job_of, nvidia_smi
from tests.launch.fake_metadata import Metadata
from tpullm.launch import supervisor as program
from tpullm.launch.record import HostExit
from tpullm.launch.supervisor import Supervisor
from tpullm.system import storage
from tpullm.system.cluster.place import Place
from tpullm.system.errors import TryAgain, UserError

ALONE, TWO = Place(source="a test"), Place(1, 2, "a test", "first:1")


class Lines(list):
    line = list.append


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Makes a host whose verb ends as told: exit codes, or functions that return one."""
    monkeypatch.setattr(program, "SECONDS_BETWEEN_LOOKS", 0.01)

    def make(*ends, verb="pretrain", place=ALONE):
        spec = {"verb": verb, "run": str(tmp_path / "run"), "folder": str(tmp_path / "launch"), "environment": {}}
        made = Supervisor(spec | {"recipe": ""}, 1, place, Lines())
        left = list(ends)

        def run_verb():
            end = left.pop(0)
            return (end() if callable(end) else end), "its last line"

        monkeypatch.setattr(made, "_run_verb", run_verb)
        made.left, made.record, made.run_folder = left, made._record, tmp_path / "run"
        return made

    return make


@pytest.mark.parametrize(
    "ends, code, left",
    [
        ([0, 1], 0, 1),  # finished
        ([2, 1], 2, 1),  # a user error is not tried again
        ([75] * 4 + [0], 0, 0),  # another host is gone
        ([130] * 4 + [0], 0, 0),  # stopped for another host
        ([1, 139, 137, 0], 137, 1),  # three faults
        ([1, 75, 1, 1, 0], 1, 1),  # what is between two faults is no progress by itself
        ([1, 1, 0], 0, 0),
    ],
)
def test_the_exit_codes_after_which_the_verb_is_restarted(host, ends, code, left):
    made = host(*ends)
    assert made.run() == HostExit(0, code, "its last line") and len(made.left) == left
    assert made.record.last_start(1, 0) == len(ends) - left
    assert made._log[-1] == f"host: pretrain ended with {code}"


@pytest.mark.parametrize("ends", [[75] * 5, [1, 75, 1, 130, 75]])
def test_a_host_that_always_hangs_is_restarted_four_times(host, ends):
    made = host(*ends, 0)
    assert made.run() == HostExit(0, 1, "no progress in 5 starts; the last one: its last line") and made.left == [0]


PROGRESS = ["pretrain/checkpoints/20", "documents/manifest.json", ".collect/0a1b/000003.npz", "documents/parts/1.json"]


@pytest.mark.parametrize("ends", [[1, 1, "progress", 1, 1, 0], [75] * 4 + ["progress"] + [75] * 5 + [0]])
@pytest.mark.parametrize("made", PROGRESS)
def test_ends_with_progress_between_them_are_not_counted_together(host, made, ends):
    supervisor = host(*(ending(end, ends[0], lambda: supervisor.run_folder / made) for end in ends))
    assert supervisor.run().code == 1 and supervisor.left == [0]


def ending(end, code, path):
    """An end, or a function that makes a file or a folder and then ends with `code`."""

    def progress():
        (storage.write_text(path(), "") if path().suffix else path().mkdir(parents=True))
        return code

    return progress if end == "progress" else end


@pytest.mark.parametrize("made", ["documents/parts/.1.json.5.partial", ".collect/0a1b/.000003.npz.5.partial"])
def test_halves_are_no_progress(host, made):
    def again():
        storage.write_text(supervisor.run_folder / f"{made}{len(supervisor.left)}", "")
        return 75

    supervisor = host(*[again] * 5, 0)
    assert supervisor.run().code == 1 and supervisor.left == [0]


@pytest.mark.parametrize("code", [0, 1, 75, 130])
def test_a_host_that_is_stopped_reports_what_the_verb_ended_with(host, code):
    made = host(lambda: made.stopping.set() or code)
    assert made.run() == HostExit(0, code, "its last line")


def test_a_host_that_is_stopped_before_the_verb_starts_nothing(host):
    made = host(0, place=Place(0, 2, "a test"))
    made.stopping.set()
    assert made.run() == HostExit(0, 130, "this machine is taken back") and made.left == [0]


def test_hosts_that_join_wait_for_each_other(host):
    made, ended = host(0, place=TWO), []
    thread = threading.Thread(target=lambda: ended.append(made.run()))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and made.left == [0]
    made.record.ready(1, 2, 0)
    thread.join(0.2)
    assert thread.is_alive(), "that is another start"
    made.record.share_secret(1, 1, "theirs")
    made.record.ready(1, 1, 0)
    thread.join(60)
    assert ended == [HostExit(1, 0, "its last line")]


@pytest.fixture
def nodes(monkeypatch):
    """The nodes of Ray that were kept: which host's, with which variables; each until its host ends."""
    kept, left = [], []

    def keep(here, environment, line, stopping):
        kept.append((here.index, {name: environment[name] for name in environment if name.startswith("RAY_")}))
        assert stopping.wait(60)
        left.append(here.index)

    monkeypatch.setattr(program.ray_node, "keep", keep)
    return kept, left


def test_of_a_verb_of_text_host_0_is_the_driver_and_the_others_work_until_it_has_reported(host, nodes):
    """They wait for nobody, and all have the secret of the cluster; a machine that replaces host 0 reads it."""
    kept, left = nodes
    worker, driver = (
        host(verb="collect", place=TWO),
        host(75, 0, verb="collect", place=Place(0, 2, "a test", "first:1")),
    )
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(worker.run)
        assert driver.run() == HostExit(0, 0, "its last line") and left == [0]
        assert driver._shared["RAY_ADDRESS"] == "first:1"
        assert not waits.done()
        worker.record.add_exit(1, HostExit(0, 2, "a.txt: is broken"))
        assert waits.result(60) == HostExit(1, 0, "host 0 ended: a.txt: is broken") and left == [0, 1]
    (_, one), (_, other) = kept
    assert one == other and one["RAY_AUTH_MODE"] == "token" and len(one["RAY_AUTH_TOKEN"]) == 64
    again = host(0, verb="collect", place=Place(0, 2, "a test", "first:1"))
    assert again.run().code == 0 and kept[2] == (0, one)


def test_a_node_that_is_taken_back_reports_it(host, nodes):
    made = host(verb="tokenize", place=TWO)
    made.record.share_secret(1, 0, "theirs")
    made.stopping.set()
    assert made.run() == HostExit(1, 130, "this machine is taken back")


def test_one_machine_needs_no_ray(host, nodes):
    assert host(0, verb="collect").run().code == 0 and nodes == ([], [])


def test_hosts_wait_no_longer_than_their_peers_may_come(host, monkeypatch):
    monkeypatch.setattr(program, "SECONDS_FOR_PEERS", 0.05)
    assert host(0, place=TWO).run() == HostExit(1, 75, "1 of 2 hosts are ready after 0 minutes")
    made = host(0, place=TWO)
    made.record.add_exit(1, HostExit(0, 2, "tokens: not made yet"))
    assert made.run() == HostExit(1, 75, "host 0 ended: tokens: not made yet") and made.left == [0]


@pytest.fixture
def metadata(monkeypatch):
    server = Metadata("x-3-1")
    monkeypatch.setenv("GCE_METADATA_HOST", server.address)
    server.values["hostname"] = "x-3-1.zone.c.x-3-1.internal"  # the project has the name of the machine
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_batch(monkeypatch):
    for name in ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT", "BATCH_HOSTS_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "key, value, stops",
    [
        ("preempted", "TRUE", True),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", True),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", False),
    ],
)
def test_a_notice_stops_the_host(host, metadata, key, value, stops):
    made = host()
    metadata.values[key] = value
    thread = threading.Thread(target=program.watch_notices, args=(made,), daemon=True)
    thread.start()
    thread.join(60 if stops else 0.3)
    assert made.stopping.is_set() is stops and thread.is_alive() is not stops
    metadata.warn()
    thread.join(60)
    assert made.stopping.is_set()


@pytest.mark.parametrize("code", [2, 75, 130])
@pytest.mark.parametrize("batch", [False, True])
def test_how_it_ended_is_reported_however_long_the_storage_takes(host, monkeypatch, batch, code):
    """A task that Batch restarts has not ended."""
    if batch:
        monkeypatch.setenv("BATCH_TASK_INDEX", "0")
    record = host().record
    add_exit = Mock(wraps=record.add_exit, side_effect=[TryAgain("away")] * 3 + [DEFAULT])
    monkeypatch.setattr(record, "add_exit", add_exit)
    program._report_exit(record, 1, HostExit(0, code, "line"))
    assert record.exits(1) == ([] if batch and code in (75, 130) else [HostExit(0, code, "line")])


@pytest.fixture
def start(host, tmp_path, monkeypatch):
    """Runs the program of a machine. It has a job's specification, a place, and a time until the machine ends."""
    monkeypatch.setattr(program, "watch_notices", lambda supervisor: None)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    monkeypatch.setattr(program, "SECONDS_AT_THE_END", 0.01)
    monkeypatch.setattr(program.socket, "gethostname", lambda: "machine")
    monkeypatch.setattr(program.place, "attribute", {"agent-worker-number": "3"}.get)

    def run(spec=None, seconds=1000.0, place=ALONE, name=None):
        made = spec or host()._spec
        path = tmp_path / "launch" / "jobs" / f"{name or storage.hash_json(made)[:12]}.json"
        storage.write_json(path, made)
        monkeypatch.setattr(program, "find_host", place if callable(place) else lambda: place)
        words = ["--job", str(path), "--attempt", "4", "--seconds", str(seconds)]
        monkeypatch.setattr(program.sys, "argv", ["supervisor", *words, "--reported", str(tmp_path / "reported")])
        return program.main()

    return run


def test_a_machine_that_was_rebooted_after_its_report_runs_nothing(host, start):
    made = host()
    made.record.add_exit(4, HostExit(0, 7, "before"))
    assert start() == 7 and made.record.last_start(4, 0) == 0 and made.record.logs(4) == []


@pytest.fixture
def reports(tmp_path):
    folder = tmp_path / "launch" / "attempts" / "0004" / "ended"
    return lambda: {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("hosts: 1 by a test, and 4 were launched"), 2, "hosts: 1 by a test, and 4 were launched"),
        (TryAgain("the storage is away"), 75, "the storage is away"),
        (KeyError("verb"), 1, "KeyError: 'verb'"),
        (OSError("no metadata\nserver"), 1, "OSError: no metadata server"),
    ],
)
def test_an_error_before_a_machine_knows_its_place_is_reported(start, reports, tmp_path, error, code, line):
    assert start(place=Mock(side_effect=error)) == code
    assert reports() == {"setup-machine": {"host": 3, "code": code, "line": f"supervisor on machine: {line}"}}
    assert (tmp_path / "reported").exists()


def test_an_error_of_the_supervisor_itself_and_a_changed_specification_are_reported(start, host, reports, monkeypatch):
    """Its name, which the machine was told by the cloud, is the hash of its content."""
    assert start(host()._spec | {"verb": "run"}, name=storage.hash_json(host()._spec)[:12]) == 2
    (report,) = reports().values()
    assert report["line"].endswith("is not what was launched (its hash differs); remove it and launch again")
    monkeypatch.setattr(Supervisor, "run", Mock(side_effect=ValueError("a fault of ours")))
    assert start(place=TWO) == 1
    line = "supervisor on machine: ValueError: a fault of ours"
    assert reports() == {"setup-machine": report, "0001": {"host": 1, "code": 1, "line": line}}


def verb_at_the_end_of_the_hours(code):
    def run_verb(self):
        self.end_of_hours()
        assert self.stopping.is_set(), "as by a notice"
        return code, "stopped and saved at step 5"

    return run_verb


@pytest.mark.parametrize("batch, ended, code", [(False, 130, 124), (True, 130, 124), (False, 0, 0), (False, 2, 2)])
def test_the_verb_is_stopped_before_the_hours_of_its_machine_are_over(start, reports, monkeypatch, batch, ended, code):
    """Batch starts a task again after 75, with new hours; after 124 it does not. One that ends by itself has ended."""
    if batch:
        monkeypatch.setenv("BATCH_TASK_INDEX", "0")
    monkeypatch.setattr(Supervisor, "_run_verb", verb_at_the_end_of_the_hours(ended))
    assert start() == code
    (report,) = reports().values()
    line = "stopped and saved at step 5"
    if ended == 130:
        line = f"the hours of this machine are over (max_hours); {line}"
    assert report == {"host": 0, "code": 75 if ended == 130 else code, "line": line}


@pytest.mark.parametrize("seconds, after", [(3600.0, 3240.0), (7200.0, 6600.0), (0.0, 0.0), (-5.0, 0.0)])
def test_ten_minutes_or_a_tenth_are_left_to_save(host, monkeypatch, seconds, after):
    timed, timer = host(), Mock()
    monkeypatch.setattr(program.threading, "Timer", timer)
    timed.limit(seconds)
    timer.assert_called_once_with(after, timed.end_of_hours)
    timer.return_value.start.assert_called_once_with()


@pytest.mark.parametrize("own", [0, 130])
def test_a_machine_stays_until_all_hosts_have_reported(start, host, monkeypatch, own):
    """Switched off before, it would look as if it was taken back."""
    monkeypatch.setattr(Supervisor, "run", lambda self: HostExit(1, own, "done"))
    codes, record = [], host().record
    thread = threading.Thread(target=lambda: codes.append(start(place=TWO)), daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not record.exits(4) and time.monotonic() < until:
        time.sleep(0.01)
    thread.join(0.2)
    assert thread.is_alive() and len(record.exits(4)) == 1
    record.add_exit(4, HostExit(0, 0, "done"))
    thread.join(60)
    assert codes == [own]


@pytest.mark.parametrize("own, other", [(1, None), (2, None), (75, None), (0, 2), (130, 75)])
def test_after_a_failure_no_machine_stays(start, host, monkeypatch, own, other):
    monkeypatch.setattr(Supervisor, "run", lambda self: HostExit(1, own, "ended"))
    place = Place(1, 3, "a test", "first:1")
    if other:
        host().record.add_exit(4, HostExit(0, other, "ended"))
    assert start(place=place) == own


def test_the_hosts_of_a_start_get_one_secret_that_no_other_start_has(host):
    """Host 0 makes it, and nobody else sees it: not the record's files of the attempt, nor the log."""
    places = [Place(index, 2, "a test", "name0:1234") for index in range(2)]
    first, second = (host(place=place) for place in places)
    found = []
    for start in (1, 2):
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda one, start=start: one._wait_for_peers(start), (first, second))) == ["", ""]
        assert first._shared == second._shared
        found.append(first._shared["TPULLM_HOSTS_SECRET"])
    assert len(set(found)) == 2 and all(len(secret) == 64 for secret in found)
    assert not any(secret in line for secret in found for line in first._log + second._log)


def test_a_machine_without_the_gpus_that_were_launched_does_not_start_the_verb(
    start, host, reports, tmp_path, monkeypatch
):
    """Nor is it tried again: another attempt would get a machine of the same image."""
    monkeypatch.setenv("PATH", str(tmp_path))
    nvidia_smi(tmp_path, ["NVIDIA H100 80GB HBM3, 580.95.05"] * 7)
    made = host()
    gpus = {"machine": "a3-highgpu-8g", "name": "NVIDIA H100 80GB HBM3", "count": 8}
    assert start(made._spec | {"gpus": gpus}) == 2 and made.record.last_start(4, 0) == 0
    (report,) = reports().values()
    assert "a3-highgpu-8g has 8 x NVIDIA H100 80GB HBM3, and nvidia-smi finds 7" in report["line"]


H200 = "NVIDIA H200, 580.95.05"
SPEC = job_of("batch", "pretrain", machine="a3-ultragpu-8g").spec()


@pytest.fixture
def finds(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda lines, code=0: nvidia_smi(tmp_path, lines, code)


def test_the_gpus_of_the_machines_specification_pass(finds):
    assert SPEC["gpus"] == {"machine": "a3-ultragpu-8g", "name": "NVIDIA H200", "count": 8}
    assert "gpus" not in job_of("batch", "pretrain", machine="n2-standard-8").spec()
    finds([H200] * 8)
    program.check_gpus(**SPEC["gpus"])


@pytest.mark.parametrize(
    "lines, code, says",
    [
        ([H200] * 7, 0, "machine: a3-ultragpu-8g has 8 x NVIDIA H200, and nvidia-smi finds 7 x NVIDIA H200"),
        (["NVIDIA H100 80GB HBM3, 580.95.05"] * 8, 0, "nvidia-smi finds 8 x NVIDIA H100 80GB HBM3; launch again"),
        ([H200] * 7 + ["NVIDIA L4, 580.95.05"], 0, "finds 7 x NVIDIA H200, 1 x NVIDIA L4"),
        ([], 0, "nvidia-smi finds none"),
        ([H200] * 7 + ["NVIDIA H200, 550.90.07"], 0, "image: its NVIDIA driver 550.90.07 is older than 580"),
        (["No devices were found"], 6, "nvidia-smi finds no GPU (No devices were found)"),
    ],
)
def test_others_are_one_line(finds, lines, code, says):
    finds(lines, code)
    with pytest.raises(UserError) as error:
        program.check_gpus(**SPEC["gpus"])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_image_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="image: it has no nvidia-smi, so no NVIDIA driver; use an image with one"):
        program.check_gpus(**SPEC["gpus"])
