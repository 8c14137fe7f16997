"""Compute Engine: refused jobs, the requests, and a fake of the service."""

import pytest
from google.cloud import compute_v1

from tests.launch.conftest import QUICK, job_of
from tests.launch.fake_compute import FakeCompute
from tests.launch.published import published
from tests.launch.rest import Fault, Refused
from tpullm.launch import compute_engine, google_api, watch

GPUS = {"machine": "a3-highgpu-8g", "nodes": 2}
SLICE = {"machine": "ct6e-standard-4t", "nodes": 4}


CASES = {
    "spot": GPUS,
    "on_demand": GPUS | {"provisioning": "on_demand", "image": "projects/p/global/images/mine"},
    "reserved": GPUS | {"provisioning": "reserved", "reservation": "mine"},
    "bound": {"machine": "a4-highgpu-8g", "nodes": 2, "provisioning": "reserved", "reservation": "mine"},
    "cards": {"machine": "a3-megagpu-8g", "nodes": 2, "gpu_network": "gpus"},
    "rdma": {"machine": "a3-ultragpu-8g", "nodes": 2, "gpu_network": "gpus"},
    "network": GPUS | {"subnetwork": "inside", "external_ip": False, "service_account": "a@b"},
    "cpu": {"machine": "n2-standard-8"},
    "tpu": {"machine": "ct6e-standard-8t"},
    "slice": SLICE,
    "cubes": {"machine": "ct5p-hightpu-4t", "nodes": 16},
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_requests_are_the_published_types_to_the_letter(config):
    """Parsing them into the client's types and writing them again changes nothing.

    The types have strings in place of enumerations, so the parser accepts any value of those.
    """
    for request in compute_engine.requests(job_of("compute", "pretrain", **config), 1):
        assert published(request) == request.body
        for key, value in pairs(request.body):
            assert key not in ENUMS or value in ENUMS[key].__members__, (key, value)


ENUMS = {
    "provisioningModel": compute_v1.Scheduling.ProvisioningModel,
    "instanceTerminationAction": compute_v1.Scheduling.InstanceTerminationAction,
    "onHostMaintenance": compute_v1.Scheduling.OnHostMaintenance,
    "consumeReservationType": compute_v1.ReservationAffinity.ConsumeReservationType,
    "nicType": compute_v1.NetworkInterface.NicType,
    "defaultActionOnFailure": compute_v1.InstanceGroupManagerInstanceLifecyclePolicy.DefaultActionOnFailure,
    "mode": compute_v1.InstanceGroupManagerTargetSizePolicy.Mode,
}


def pairs(value):
    if isinstance(value, dict):
        yield from value.items()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from pairs(each)


def properties(**config):
    requests = compute_engine.requests(job_of("compute", "pretrain", **config), 1)
    return next(request for request in requests if "Template" in request.call).body["properties"]


def test_a_machine_is_deleted_when_its_hours_are_over_and_no_group_repairs():
    limit = {"maxRunDuration": {"seconds": "5400"}, "instanceTerminationAction": "DELETE"}
    for config, model, restarts in (
        ({}, "SPOT", False),
        ({"provisioning": "on_demand"}, "STANDARD", True),
        ({"provisioning": "reserved", "reservation": "mine"}, "STANDARD", True),
        ({"machine": "a4-highgpu-8g", "provisioning": "reserved", "reservation": "mine"}, "RESERVATION_BOUND", True),
    ):
        assert properties(max_hours=1.5, **GPUS | config)["scheduling"] == limit | {
            "provisioningModel": model,
            "automaticRestart": restarts,
            "onHostMaintenance": "TERMINATE",
        }
    _, group, _ = compute_engine.requests(job_of("compute", "pretrain", **GPUS), 1)
    lifecycle = group.body["instanceLifecyclePolicy"]
    assert lifecycle == {"defaultActionOnFailure": "DO_NOTHING"}


def test_machines_have_the_account_the_reservation_the_network_disk_image_and_extras():
    plain = properties(**GPUS)
    (interface,) = plain["networkInterfaces"]
    assert interface["network"] == "global/networks/default" and "accessConfigs" in interface
    assert plain["serviceAccounts"][0]["email"] == "default" and "reservationAffinity" not in plain
    config = {"service_account": "a@b", "provisioning": "reserved", "reservation": "mine", "subnetwork": "s"}
    asked = properties(external_ip=False, **GPUS | config)
    subnetwork = {"nicType": "GVNIC", "subnetwork": "regions/us-central1/subnetworks/s"}
    assert asked["networkInterfaces"] == [subnetwork] and asked["serviceAccounts"][0]["email"] == "a@b"
    assert asked["reservationAffinity"]["values"] == ["mine"] and asked["scheduling"]["provisioningModel"] == "STANDARD"
    for machine, disk, image, extras in (
        ("ct6e-standard-8t", "hyperdisk-balanced", "tpu", "tpu,gcp"),
        ("ct5p-hightpu-4t", None, "tpu", "tpu,gcp"),
        ("a2-highgpu-1g", None, "nvidia", "cuda,gcp"),
        ("a3-megagpu-8g", "pd-balanced", "nvidia", "cuda,gcp"),
        ("a4-highgpu-8g", "hyperdisk-balanced", "nvidia", "cuda,gcp"),
        ("n2-standard-8", None, "debian", "gcp"),
    ):
        made = properties(machine=machine)
        asked = made["disks"][0]["initializeParams"]
        assert asked.get("diskType") == disk and image in asked["sourceImage"], machine
        assert {"key": "tpullm-extras", "value": extras} in made["metadata"]["items"]


# Against the fake.


@pytest.fixture
def fake(address, monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
    with FakeCompute() as service:
        address("COMPUTE", service)
        yield service


@pytest.mark.parametrize("lost", ["instanceTemplates", "instanceGroupManagers$", "createInstances"])
def test_an_attempt_is_created_once_even_if_answers_are_lost(tmp_path, fake, lost):
    """And if the service no longer knows the identifiers of the first requests."""
    work = job_of("compute", "pretrain", str(tmp_path), **GPUS)
    fake.faults += [
        Fault("GET", "instanceTemplates", Refused(429, "RESOURCE_EXHAUSTED", "requests per minute")),
        Fault("POST", lost, Refused(503, "UNAVAILABLE", "try later")),
        Fault("POST", lost, done=True),
    ]
    assert watch.follow(work, compute_engine, QUICK, stay=False)
    fake.by_request.clear()
    for request in compute_engine.requests(work, 1):
        google_api.create(request)
    assert fake.made == ["instanceTemplates/tiny-pretrain-1", "instanceGroupManagers/tiny-pretrain-1"]
    assert sorted(fake.machines["tiny-pretrain-1"]) == ["tiny-pretrain-1-0", "tiny-pretrain-1-1"]
    while (seen := compute_engine.observe(work)[0]).state is not watch.State.ACTIVE:
        assert seen.state is watch.State.PROVISIONING
    assert (seen.run, seen.attempt) == (work.run_hash, 1)
    assert seen.dollars_an_hour == pytest.approx(2 * 88.48)
    compute_engine.delete(work, seen)
    assert fake.left() == [] and list(compute_engine.observe(work)) == []
    compute_engine.delete(work, seen)


def test_a_slice_has_a_policy_that_is_deleted_with_it(fake):
    work = job_of("compute", "pretrain", **SLICE)
    for request in compute_engine.requests(work, 1):
        google_api.create(request)
    assert len(fake.left()) == 3 and len(fake.machines["tiny-pretrain-1"]) == 4
    compute_engine.delete(work, compute_engine.observe(work)[0])
    assert fake.left() == []
