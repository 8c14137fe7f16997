"""TPU slices by Google's own client and a fake of the service: the requests, and the effect of each answer."""

import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.launch.conftest import make_job
from tests.launch.fake_tpu import AWAY, BUSY, FAILED, LOST, NO_CAPACITY, SUSPENDED
from tests.launch.rest import Fault
from tpullm.launch import google_api, tpu_vm, watch
from tpullm.launch.record import HostExit, Record
from tpullm.launch.watch import State


def test_what_is_sent_is_what_a_dry_run_shows(tpu, tmp_path):
    job = make_job(tmp_path / "run", name="mine", slices=2, service_account="a@b.iam.gserviceaccount.com")
    (request,) = tpu_vm.requests(job, 3)
    google_api.create(request)
    shown = request.rest()
    (sent,) = tpu.requests
    address = urlsplit(shown["url"])
    assert (sent["path"], sent["body"]) == (address.path, shown["body"])
    assert sent["query"] == {key: values[0] for key, values in parse_qs(address.query).items()}
    assert sent["query"]["queuedResourceId"] == "mine-3"


@pytest.mark.parametrize(
    "reservation, name",
    [
        ("mine", "projects/my-project/locations/us-west4-a/reservations/mine"),
        ("projects/other/locations/us-west4-a/reservations/theirs",) * 2,
    ],
)
def test_a_reservation_is_of_the_project_unless_its_name_says_another(tmp_path, reservation, name):
    job = make_job(tmp_path, provisioning="reserved", reservation=reservation)
    (request,) = tpu_vm.requests(job, 1)
    assert request.body["reservationName"] == name


def test_states_and_costs(tpu, tmp_path):
    job = make_job(tmp_path, name="mine", slices=2)
    google_api.create(*tpu_vm.requests(job, 1))
    seen = [tpu_vm.observe(job)[0] for _ in range(3)]
    assert [each.state for each in seen] == [State.WAITING, State.PROVISIONING, State.ACTIVE]
    assert [each.dollars_an_hour for each in seen] == [0.0, 2 * 16 * 1.2, 2 * 16 * 1.2]
    assert (seen[0].attempt, seen[0].run) == (1, job.run_hash)
    tpu.set("mine-1", SUSPENDED)
    assert tpu_vm.observe(job)[0].state is State.PREEMPTED
    tpu_vm.delete(job, seen[0])
    assert tpu_vm.observe(job)[0].state is State.DELETING
    assert tpu_vm.observe(job) == []
    tpu_vm.delete(job, seen[0])  # gone already


def finish(folder: Record, number: int, hosts: int = 4, code: int = 0, line: str = "") -> None:
    """Report as the machines would."""
    folder.ready(number, 1, 0)
    for host in range(hosts):
        folder.add_exit(number, HostExit(host, code, line))


def when(condition, then) -> threading.Thread:
    """In a thread: act as soon as a condition holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def is_active(tpu, name: str) -> bool:
    return tpu.resources.get(name, {}).get("state", {}).get("state") == "ACTIVE"


def test_a_watched_run_survives_preemptions_busy_servers_and_lost_answers(tpu, tmp_path):
    job = make_job(tmp_path, name="mine")
    folder = Record(job.folder)
    tpu.faults += [LOST, Fault("POST", "", BUSY), Fault("GET", "", AWAY), Fault("GET", "", BUSY)]
    when(lambda: is_active(tpu, "mine-1"), lambda: tpu.set("mine-1", SUSPENDED))
    when(lambda: is_active(tpu, "mine-2"), lambda: tpu.set("mine-2", FAILED, NO_CAPACITY))
    when(lambda: is_active(tpu, "mine-3"), lambda: finish(folder, 3))
    assert not watch.follow(job, tpu_vm, watch.Pace())
    assert tpu.resources == {}
    assert tpu.counts == {f"{method} mine-{n}": 1 for method in ("POST", "DELETE") for n in (1, 2, 3)}
