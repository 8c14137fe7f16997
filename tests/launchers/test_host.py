"""One host without a machine: when it restarts the verb, when it waits, what it reports, and which host it is."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.launchers.fake_metadata import Metadata
from tpullm import storage
from tpullm.cluster.place import Place
from tpullm.errors import TryAgain, UserError
from tpullm.launchers import supervisor as program
from tpullm.launchers.record import HostExit
from tpullm.launchers.supervisor import Supervisor

ALONE, TWO = Place(source="a test"), Place(1, 2, "a test", "first:1")


class Lines:
    """A log that keeps its lines."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


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
        ([75] * 9 + [0], 0, 0),  # another host is gone, however often
        ([130] * 9 + [0], 0, 0),  # stopped for another host
        ([1, 139, 137, 0], 137, 1),  # three faults
        ([1, 75, 1, 130, 1, 0], 1, 1),  # what is between two faults is no progress by itself
        ([1, 1, 0], 0, 0),
    ],
)
def test_the_exit_codes_after_which_the_verb_is_restarted(host, ends, code, left):
    made = host(*ends)
    assert made.run() == HostExit(0, code, "its last line") and len(made.left) == left
    assert made.record.last_start(1, 0) == len(ends) - left
    assert made._log.lines[-1] == f"host: pretrain ended with {code}"


@pytest.mark.parametrize("made", ["pretrain/checkpoints/20", "documents/manifest.json"])
def test_faults_with_progress_between_them_are_not_counted_together(host, made):
    def progress():
        path = supervisor.run_folder / made
        (storage.write_text(path, "") if path.suffix else path.mkdir(parents=True))
        return 1

    supervisor = host(1, 1, progress, 1, 1, 0)
    assert supervisor.run().code == 1 and supervisor.left == [0]


def test_it_continues_after_the_starts_that_were_before_a_reboot(host):
    made = host(0)
    for start, index in ((1, 0), (2, 0), (7, 1)):
        made.record.ready(1, start, index)
    made.run()
    assert made.record.last_start(1, 0) == 3


@pytest.mark.parametrize("code", [0, 1, 75, 130])
def test_a_host_that_is_stopped_reports_what_the_verb_ended_with(host, code):
    made = host(lambda: made.stop() or code)
    assert made.run() == HostExit(0, code, "its last line")


def test_a_host_that_is_stopped_before_the_verb_starts_nothing(host):
    made = host(0, place=Place(0, 2, "a test"))
    made.stop()
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


def test_shares_wait_for_nobody(host):
    made = host(0, verb="collect", place=TWO)
    assert made.run().code == 0
    assert made.record.ready_hosts(1, 1) == 1, "the watcher sees that it was started"


def test_a_host_whose_peer_has_ended_ends_too(host):
    made = host(0, place=TWO)
    made.record.add_exit(1, HostExit(0, 2, "tokens: not made yet"))
    assert made.run() == HostExit(1, 75, "host 0 ended: tokens: not made yet") and made.left == [0]


def test_a_hosts_own_report_does_not_count_as_a_peers(host):
    made = host(0, place=TWO)
    made.record.add_exit(1, HostExit(1, 75, "before"))
    made.record.share_secret(1, 1, "theirs")
    threading.Timer(0.1, made.record.ready, (1, 1, 0)).start()
    assert made.run().code == 0


def test_peers_that_never_come_are_given_up(host, monkeypatch):
    monkeypatch.setattr(program, "SECONDS_FOR_PEERS", 0.05)
    assert host(0, place=TWO).run() == HostExit(1, 75, "1 of 2 hosts are ready after 0 minutes")


@pytest.mark.parametrize(
    "verb, place, flags",
    [
        ("pretrain", TWO, ["--hosts.index=1", "--hosts.count=2", "--hosts.coordinator=first:1"]),
        ("evaluate", ALONE, ["--hosts.index=0", "--hosts.count=1"]),
        ("collect", TWO, []),
    ],
)
def test_a_verb_that_joins_is_told_its_place(host, verb, place, flags):
    assert host(verb=verb, place=place)._flags() == flags


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


def test_a_machine_of_a_group_knows_its_place_by_its_name(metadata):
    place = program.find_host('{"hosts": "2", "first": "x-3-0"}', "pretrain")
    assert (place.index, place.count) == (1, 2)
    assert place.coordinator == f"x-3-0.zone.c.x-3-1.internal:{program.PORTS[0]}"
    assert program.find_host('{"hosts": "1", "first": "x-3-1"}', "pretrain").coordinator == ""


def test_a_task_that_shares_knows_its_index(monkeypatch):
    monkeypatch.setenv("BATCH_TASK_INDEX", "3")
    monkeypatch.setenv("BATCH_TASK_COUNT", "8")
    place = program.find_host("", "collect")
    assert (place.index, place.count) == (3, 8)


def test_there_have_to_be_as_many_hosts_as_were_launched():
    assert program.find_host("", "pretrain").count == 1
    assert program.find_host('{"hosts": "1", "first": ""}', "pretrain").count == 1
    with pytest.raises(UserError, match="hosts: 1 by no sign of others .*, and 4 were launched"):
        program.find_host('{"hosts": "4", "first": ""}', "pretrain")


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
    assert made._stopping.is_set() is stops and thread.is_alive() is not stops
    metadata.warn()
    thread.join(60)
    assert made._stopping.is_set()


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130])
@pytest.mark.parametrize("batch", [False, True])
def test_how_it_ended_is_reported_however_long_the_storage_takes(host, monkeypatch, batch, code):
    """A task that Batch restarts has not ended."""
    if batch:
        monkeypatch.setenv("BATCH_TASK_INDEX", "0")
    record, faults = host().record, [TryAgain("away")] * 3
    add_exit = record.add_exit

    def sometimes(*arguments):
        if faults:
            raise faults.pop()
        add_exit(*arguments)

    monkeypatch.setattr(record, "add_exit", sometimes)
    program._report(record, 1, HostExit(0, code, "line"))
    assert record.exits(1) == ([] if batch and code in (75, 130) else [HostExit(0, code, "line")])


def test_a_machine_that_was_rebooted_after_its_report_runs_nothing(host, tmp_path, monkeypatch):
    made = host()
    made.record.add_exit(4, HostExit(0, 7, "before"))
    storage.write_text(tmp_path / "job.json", json.dumps(made._spec))
    monkeypatch.setattr(program.sys, "argv", ["supervisor", "--job", str(tmp_path / "job.json"), "--attempt", "4"])
    assert program.main() == 7 and made.record.last_start(4, 0) == 0 and made.record.logs(4) == []


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
    assert not any(secret in line for secret in found for line in first._log.lines + second._log.lines)
