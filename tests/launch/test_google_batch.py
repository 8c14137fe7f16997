"""Google Batch: refused jobs, the requests, and a fake of the service."""

import pytest

from tests.launch.conftest import QUICK, job_of
from tests.launch.published import published
from tests.launch.rest import Fault, Refused
from tpullm.launch import google_api, google_batch, watch
from tpullm.system.errors import TRY_AGAIN

STAGE = {"machine": "n2-standard-8", "nodes": 8}
GPUS = {"machine": "a3-highgpu-8g", "nodes": 2}


CASES = {
    "stage": ("collect", STAGE),
    "stage_in_an_image": ("tokenize", STAGE | {"image": "us-docker.pkg.dev/p/tpullm/cpu", "provisioning": "on_demand"}),
    "gpus": ("pretrain", GPUS),
    "gpus_in_an_image": ("finetune", GPUS | {"image": "us-docker.pkg.dev/p/tpullm/cuda"}),
    "bound": ("pretrain", {"machine": "a4-highgpu-8g", "provisioning": "reserved", "reservation": "mine"}),
    "reserved": ("pretrain", GPUS | {"provisioning": "reserved", "reservation": "mine", "max_preemptions": 3}),
    "network": ("collect", STAGE | {"subnetwork": "inside", "external_ip": False, "service_account": "a@b"}),
    "volumes": ("collect", STAGE | {"volumes": {"gs://b/f": "/mnt/disks/f", "nfs://10.0.0.2/e": "/mnt/disks/e"}}),
}


@pytest.mark.parametrize("verb, config", CASES.values(), ids=CASES)
def test_a_job_is_the_published_type_to_the_letter(verb, config):
    """Parsing it into the client's type and writing it again changes nothing: 64-bit numbers, enumeration names."""
    (request,) = google_batch.requests(job_of("batch", verb, **config), 1)
    assert published(request) == request.body


def body_of(verb, **config):
    return google_batch.requests(job_of("batch", verb, **config), 1)[0].body


def test_a_task_is_retried_after_a_preemption_and_its_container_has_what_the_machine_has():
    task = body_of("collect", max_hours=1.5, **STAGE)["taskGroups"][0]["taskSpec"]
    assert task["maxRunDuration"] == "5400s"
    (policy,) = task["lifecyclePolicies"]
    assert policy["action"] == "RETRY_TASK"
    assert {50001, TRY_AGAIN} <= set(policy["actionCondition"]["exitCodes"])
    assert not {0, 1, 2} & set(policy["actionCondition"]["exitCodes"])
    assert task["maxRetryCount"] == 10
    assert body_of("collect", max_preemptions=3, **STAGE)["taskGroups"][0]["taskSpec"]["maxRetryCount"] == 3
    config = GPUS | {"image": "i", "volumes": {"gs://b": "/mnt/disks/b"}}
    (runnable,) = body_of("pretrain", **config)["taskGroups"][0]["taskSpec"]["runnables"]
    container = runnable["container"]
    assert container["options"] == "--network host --gpus all"
    hosts = google_batch.HOSTS_FILE
    assert container["volumes"] == ["/mnt/disks/b:/mnt/disks/b", f"{hosts}:{hosts}:ro"]
    assert "script" not in runnable and container["commands"][1].startswith("#!/bin/sh")
    volumes = {"gs://b/f": "/mnt/disks/f", "nfs://10.0.0.2/e/g": "/mnt/disks/e"}
    assert body_of("collect", volumes=volumes, **STAGE)["taskGroups"][0]["taskSpec"]["volumes"] == [
        {"gcs": {"remotePath": "b/f"}, "mountPath": "/mnt/disks/f"},
        {"nfs": {"server": "10.0.0.2", "remotePath": "/e/g"}, "mountPath": "/mnt/disks/e"},
    ]


def test_machines_have_the_account_the_reservation_and_the_network_of_the_settings():
    plain = body_of("collect", **STAGE)["allocationPolicy"]
    assert "network" not in plain and "email" not in plain["serviceAccount"]
    assert "reservation" not in plain["instances"][0]["policy"]
    for provisioning, model in (("spot", "SPOT"), ("on_demand", "STANDARD")):
        made = body_of("pretrain", machine="a2-ultragpu-8g", provisioning=provisioning)
        assert made["allocationPolicy"]["instances"][0]["policy"]["provisioningModel"] == model
        assert made["taskGroups"][0]["taskSpec"]["computeResource"] == {"cpuMilli": "96000", "memoryMib": "1392640"}
    config = {"service_account": "a@b", "provisioning": "reserved", "reservation": "mine", "subnetwork": "s"}
    asked = body_of("collect", external_ip=False, **STAGE | config)["allocationPolicy"]
    assert asked["serviceAccount"]["email"] == "a@b" and asked["instances"][0]["policy"]["reservation"] == "mine"
    interface = {"subnetwork": "regions/us-central1/subnetworks/s", "noExternalIpAddress": True}
    assert asked["network"] == {"networkInterfaces": [interface]}


def test_a_job_is_created_once_even_if_answers_are_lost_and_its_cost_and_end_are_observed(batch, tmp_path):
    work = job_of("batch", "collect", machine="n2-standard-8", nodes=2)
    assert list(google_batch.observe(work)) == []
    for request in google_batch.requests(work, 1):
        google_api.create(request)
    seen = [google_batch.observe(work)[0] for _ in range(3)]
    assert [each.state for each in seen] == [watch.State.WAITING, watch.State.PROVISIONING, watch.State.ACTIVE]
    assert (seen[2].attempt, seen[2].run) == (1, work.run_hash)
    assert seen[2].dollars_an_hour == pytest.approx(2 * 8 * 0.0486, abs=1e-3)
    batch.fail("tiny-collect-1", 1, 9)
    (seen,) = google_batch.observe(work)
    assert (seen.state, seen.permanent, seen.dollars_an_hour) == (watch.State.FAILED, True, 0.0)
    assert "exit code 9" in seen.reason
    google_batch.delete(work, seen)
    assert google_batch.observe(work)[0].state is watch.State.DELETING and google_batch.observe(work) == []
    google_batch.delete(work, seen)
    work = job_of("batch", "collect", str(tmp_path), **STAGE)
    busy = Refused(503, "UNAVAILABLE", "try later"), Refused(429, "RESOURCE_EXHAUSTED", "requests per minute")
    batch.faults += [Fault("POST", "jobs", busy[0]), Fault("GET", "jobs", busy[1]), Fault("POST", "jobs", done=True)]
    assert watch.follow(work, google_batch, QUICK, stay=False)
    assert batch.made == 2 * ["tiny-collect-1"], "once each time"
