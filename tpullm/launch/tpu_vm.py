"""TPU slices by the Cloud TPU API, v2: an attempt is one queued resource of one or several slices.

The API has no limit of time, so `startup.sh` schedules the shutdown of a machine at the end of `max_hours`. Batch and
Compute Engine enforce `maxRunDuration` themselves.
"""

from collections.abc import Sequence
from typing import Any

from tpullm.hardware import machines
from tpullm.launch import google_api
from tpullm.launch import job as jobs
from tpullm.launch.google_api import Collection, Request
from tpullm.launch.job import RUN_LABEL, Job
from tpullm.launch.watch import Resource, State, by_attempt
from tpullm.system.errors import UserError

QUEUED_RESOURCES = Collection("https://tpu.googleapis.com/v2", "QueuedResource")
# States of the API. A resource is CREATING and ACCEPTED before it is in the queue, and SUSPENDING before SUSPENDED.
STATES = {
    "CREATING": State.WAITING,
    "ACCEPTED": State.WAITING,
    "WAITING_FOR_RESOURCES": State.WAITING,
    "PROVISIONING": State.PROVISIONING,
    "ACTIVE": State.ACTIVE,
    "SUSPENDING": State.PREEMPTED,
    "SUSPENDED": State.PREEMPTED,
    "FAILED": State.FAILED,
    "DELETING": State.DELETING,
}


def check(job: Job) -> None:
    """Refuse a job that can't run on TPU slices; `UserError` names the key."""
    jobs.require(job.config, "tpu-vm", "project", "zone", "accelerator")
    if job.verb in jobs.TEXT:
        raise UserError(f"{job.verb}: needs no TPU, and would leave one idle; launch it on batch")
    if job.config.provisioning == "flex_start":
        raise UserError("provisioning: flex_start is for gke; use spot, on_demand or reserved")
    jobs.check_cloud(job)
    jobs.check_mesh(job)


def requests(job: Job, attempt: int) -> Sequence[Request]:
    """One queued resource; the service creates its slices."""
    config, name = job.config, job.attempt_name(attempt)
    location = f"projects/{config.project}/locations/{config.zone}"
    network = {"network": config.network, "subnetwork": config.subnetwork, "enableExternalIps": config.external_ip}
    email = {"email": config.service_account} if config.service_account else {}
    version = config.runtime_version or machines.find_slice(config.accelerator).chip.cloud_tpu.runtime_version
    node = {
        "acceleratorType": config.accelerator,
        "runtimeVersion": version,
        "networkConfig": {key: value for key, value in network.items() if value != ""},
        "serviceAccount": email | {"scope": job.scopes},
        "labels": job.labels(attempt),
        "metadata": job.metadata(attempt),
    }
    spec: dict[str, Any] = {"parent": location, "node": node}
    if config.slices == 1:
        spec["nodeId"] = name
    else:
        spec["multisliceParams"] = {"nodeCount": config.slices, "nodeIdPrefix": name}
    # The API has no limit for the time that a slice exists: its machines switch themselves off (`startup.sh`). After
    # this time in the queue nobody may expect the slice any more.
    queueing = {"validUntilDuration": f"{config.max_seconds}s"}
    resource: dict[str, Any] = {"tpu": {"nodeSpec": [spec]}, "queueingPolicy": queueing}
    if config.provisioning == "spot":
        resource["spot"] = {}
    if config.provisioning == "reserved":
        place = "" if "/" in config.reservation else f"{location}/reservations/"
        resource |= {"guaranteed": {}, "reservationName": f"{place}{config.reservation}"}
    return [QUEUED_RESOURCES.create_request(location, name, job.run, resource)]


def observe(job: Job) -> Sequence[Resource]:
    """The queued resources of all attempts."""
    listed = QUEUED_RESOURCES.list(f"projects/{job.config.project}/locations/{job.config.zone}")
    return by_attempt(job, listed, _queued_slice_resource)


def _queued_slice_resource(job: Job, attempt: int, found: dict[str, Any]) -> Resource:
    state = STATES[found.get("state", {}).get("state", "CREATING")]
    error = found.get("state", {}).get("failedData", {}).get("error", {})
    nodes = [spec.get("node", {}) for spec in found.get("tpu", {}).get("nodeSpec", [])]
    try:
        each = [machines.find_slice(node["acceleratorType"]).dollars_an_hour for node in nodes]
        dollars = sum(each) * job.config.slices
    except (KeyError, UserError):  # a slice that the price table lacks
        dollars = None
    return Resource(
        name=found["name"],
        attempt=attempt,
        state=state,
        run=nodes[0].get("labels", {}).get(RUN_LABEL, "") if nodes else "",
        reason=error.get("message", ""),
        permanent=state is State.FAILED and google_api.is_permanent(error.get("code", 0), error.get("message", "")),
        dollars_an_hour=dollars if state in (State.ACTIVE, State.PROVISIONING) else 0.0,
    )


def delete(job: Job, resource: Resource) -> None:
    """Delete the queued resource, with its slices (`force`)."""
    QUEUED_RESOURCES.delete(resource.name, "?force=true")
