"""TPU machines by queued resources of the Cloud TPU API, v2: one resource an attempt, of one or several slices."""

import re
import uuid
from collections.abc import Sequence
from typing import Any

from tpullm.errors import UserError
from tpullm.hardware import accelerators
from tpullm.launchers import google_api, settings
from tpullm.launchers import job as jobs
from tpullm.launchers.job import Job
from tpullm.launchers.startup import metadata
from tpullm.launchers.target import Request, Resource, State
from tpullm.mesh import axes

HOST = "tpu.googleapis.com"
CLIENT = "tpu_v2.TpuClient"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # what it comes to is the service account's roles
# Of the API's states; CREATING and ACCEPTED are before the queue, SUSPENDING is on its way to SUSPENDED.
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
    """Refuse what can't be launched on a TPU; `UserError` names the key."""
    settings.require(job.config, "tpu-vm", "project", "zone", "accelerator")
    if job.verb in jobs.SHARING:
        raise UserError(f"{job.verb}: needs no TPU, and would leave one idle; launch it on batch")
    jobs.check_cloud(job)
    chips = accelerators.find(job.config.accelerator).chips * job.config.slices
    try:
        axes.axis_sizes(job.recipe.mesh, chips)
    except UserError as error:
        slices = f"{job.config.slices} x " if job.config.slices > 1 else ""
        raise UserError(f"{error} (accelerator: {slices}{job.config.accelerator})") from None


def hosts(job: Job) -> int:
    """Machines of all slices together."""
    return accelerators.find(job.config.accelerator).hosts * job.config.slices


def requests(job: Job, attempt: int) -> Sequence[Request]:
    """One call makes it all; the service makes the slices."""
    message = {
        "parent": _parent(job),
        "queuedResourceId": resource_id(job, attempt),
        "requestId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_parent(job)}/{resource_id(job, attempt)}/{job.run}")),
        "queuedResource": _queued_resource(job, attempt),
    }
    path = "v2/{parent}/queuedResources"
    return [Request(CLIENT, "CreateQueuedResource", "POST", path, HOST, message, "queuedResource")]


def resource_id(job: Job, attempt: int) -> str:
    """An attempt has a name of its own: who is late to delete the one before can't hit it."""
    return f"{job.name}-{attempt}"


def _parent(job: Job) -> str:
    return f"projects/{job.config.project}/locations/{job.config.zone}"


def _queued_resource(job: Job, attempt: int) -> dict[str, Any]:
    config, name = job.config, resource_id(job, attempt)
    spec: dict[str, Any] = {"parent": _parent(job), "node": _node(job, attempt)}
    if config.slices == 1:
        spec["nodeId"] = name
    else:
        spec["multisliceParams"] = {"nodeCount": config.slices, "nodeIdPrefix": name}
    resource: dict[str, Any] = {"tpu": {"nodeSpec": [spec]}}
    if config.provisioning == "spot":
        resource["spot"] = {}
    if config.provisioning == "reserved":
        project = f"projects/{config.project}" if "/" not in config.reservation else ""
        place = f"{project}/locations/{config.zone}/reservations/" if project else ""
        resource |= {"guaranteed": {}, "reservationName": f"{place}{config.reservation}"}
    return resource


def _node(job: Job, attempt: int) -> dict[str, Any]:
    config = job.config
    found = accelerators.find(config.accelerator)
    network = {"network": config.network, "subnetwork": config.subnetwork, "enableExternalIps": config.external_ip}
    node: dict[str, Any] = {
        "acceleratorType": config.accelerator,
        "runtimeVersion": config.runtime_version or found.chip.cloud_tpu.runtime_version,
        "networkConfig": {key: value for key, value in network.items() if value != ""},
        "serviceAccount": {"email": config.service_account, "scope": [SCOPE]},
        "labels": job.labels(attempt),
        "metadata": metadata(job, attempt),
    }
    if not config.service_account:
        del node["serviceAccount"]["email"]
    return node


def observe(job: Job) -> Sequence[Resource]:
    """The queued resources of the job, of all attempts."""
    path, message = "v2/{parent}/queuedResources", {"parent": _parent(job)}
    listed = google_api.send(Request(CLIENT, "ListQueuedResources", "GET", path, HOST, message))
    pattern = re.compile(re.escape(job.name) + r"-(\d+)")
    found = [(pattern.fullmatch(each["name"].rpartition("/")[2]), each) for each in listed]
    return sorted((_resource(job, int(match[1]), each) for match, each in found if match), key=lambda r: r.attempt)


def _resource(job: Job, attempt: int, found: dict[str, Any]) -> Resource:
    state = STATES[found.get("state", {}).get("state", "CREATING")]
    error = found.get("state", {}).get("failedData", {}).get("error", {})
    nodes = [spec.get("node", {}) for spec in found.get("tpu", {}).get("nodeSpec", [])]
    return Resource(
        name=found["name"],
        attempt=attempt,
        state=state,
        run=nodes[0].get("labels", {}).get("tpullm-run", "") if nodes else "",
        why=error.get("message", ""),
        hopeless=state is State.FAILED and google_api.is_hopeless(error.get("code", 0), error.get("message", "")),
        dollars_an_hour=_dollars(job, nodes) if state in (State.ACTIVE, State.PROVISIONING) else 0.0,
    )


def _dollars(job: Job, nodes: list[dict[str, Any]]) -> float | None:
    """What the slices of a resource cost on demand, by the table."""
    try:
        return sum(accelerators.find(node["acceleratorType"]).dollars_an_hour for node in nodes) * job.config.slices
    except (KeyError, UserError):
        return None


def create(job: Job, attempt: int) -> None:
    """Ask for the slices; an answer that says it is there already is as good."""
    for request in requests(job, attempt):
        google_api.create(request)


def delete(job: Job, resource: Resource) -> None:
    """Remove the resource with its machines (`force`)."""
    path, message = "v2/{name}", {"name": resource.name, "force": True}
    google_api.delete(Request(CLIENT, "DeleteQueuedResource", "DELETE", path, HOST, message))
