"""Compute Engine: one managed instance group an attempt, of machines with GPUs or TPUs, and the template that it is made from.

The group makes its machines with the names that we give it, `NAME-ATTEMPT-INDEX`: a group has no order of its own, and
this way a machine's name says which host it is. The machines of a TPU slice have to come all at once, with names of the
group's; which of them is which is what the slice says.

The group repairs nothing. A machine that was taken back stays where all see it until `watch.py` removes the attempt: hosts
that go on without it cost as much as if they worked.
"""

import json
import re
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tpullm import axes
from tpullm.errors import UserError
from tpullm.launchers import google, job as jobs, machines, settings
from tpullm.launchers.job import Job
from tpullm.launchers.machines import Machine
from tpullm.launchers.startup import metadata
from tpullm.launchers.target import Request, Resource, State

HOST = "compute.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # what it comes to is the service account's roles
_IMAGES = "projects/ubuntu-os-accelerator-images/global/images/family"
GPU_IMAGE = f"{_IMAGES}/ubuntu-accelerator-2404-amd64-with-nvidia-580"
TPU_IMAGE = f"{_IMAGES}/ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
CPU_IMAGE = "projects/debian-cloud/global/images/family/debian-13"
GONE = ("STOPPING", "STOPPED", "SUSPENDING", "SUSPENDED", "TERMINATED")
NO_CAPACITY = ("RESOURCE_POOL_EXHAUSTED", "STOCKOUT", "RESOURCE_NOT_AVAILABLE", "VM_MIN_COUNT_NOT_REACHED")
SECONDS_TO_MAKE = 300.0  # a template without its group after this long: whoever made it did not get further
SECONDS_FOR_OPERATION = 240.0
# Chips of a slice's sides, by how many there are (cloud.google.com/tpu/docs/v6e and v5p).
SHAPES = {
    "v6e": {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v5p": {8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"},
}


def check(job: Job) -> None:
    """Refuse what can't be launched on Compute Engine; `UserError` names the key."""
    config = job.config
    if config.accelerator:
        raise UserError(f"accelerator: {config.accelerator} is a slice of tpu-vm; give --machine, such as ct6e-standard-4t")
    settings.require(config, "compute", "project", "zone", "machine")
    machine = machines.find(config.machine)
    if job.verb in jobs.SHARING:
        raise UserError(f"{job.verb}: is shared out as tasks; launch it on batch")
    jobs.check_cloud(job)
    _check_slice(machine, config.nodes)
    try:
        axes.axis_sizes(job.recipe.mesh, machine.devices * config.nodes)
    except UserError as error:
        raise UserError(f"{error} (machine: {config.nodes} x {config.machine})") from None


def _check_slice(machine: Machine, nodes: int) -> None:
    """Machines with TPUs that are several form one slice, of machines with four chips."""
    if not machine.tpu or nodes == 1:
        return
    if machine.chips != 4:
        raise UserError(f"machine: {machine.name} is a slice by itself; several machines need one with 4 chips (…-4t)")
    if 4 * nodes not in SHAPES[machine.tpu]:
        sizes = ", ".join(str(chips // 4) for chips in SHAPES[machine.tpu])
        raise UserError(f"nodes: no slice of {machine.tpu} has {nodes} machines; there are {sizes}")


def hosts(job: Job) -> int:
    """How many machines report."""
    return job.config.nodes


def resource_name(job: Job, attempt: int) -> str:
    """Of the group, the template and, before a dash and an index, the machines."""
    return f"{job.name}-{attempt}"


def requests(job: Job, attempt: int) -> Sequence[Request]:
    """A template, a group of no machines, the machines by name; of a slice, its shape first, and a group of them all."""
    template, group = _template_request(job, attempt), _group_request(job, attempt)
    if _is_slice(job):
        return [_policy_request(job, attempt), template, group]
    return [template, group, _machines_request(job, attempt)]


def _is_slice(job: Job) -> bool:
    return bool(machines.find(job.config.machine).tpu) and job.config.nodes > 1


def _insert(job: Job, attempt: int, what: str, client: str, scope: dict[str, str], body: dict[str, Any]) -> Request:
    """The request that makes a resource of Compute Engine in a scope (global, of a region or of a zone)."""
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", what).lower()
    place = "".join(f"/{key}s/{{{key}}}" for key in scope) or "/global"
    collection = {"ResourcePolicy": "resourcePolicies"}.get(what, f"{what[0].lower()}{what[1:]}s")
    field = f"{what[0].lower()}{what[1:]}Resource"
    message = {"project": job.config.project, **scope, "requestId": _request_id(job, attempt, snake), field: body}
    path = f"compute/v1/projects/{{project}}{place}/{collection}"
    return Request(f"compute_v1.{client}", f"Insert{what}", "POST", path, HOST, message, field, function="insert_unary")


def _request_id(job: Job, attempt: int, what: str) -> str:
    name = f"{job.config.project}/{job.config.zone}/{resource_name(job, attempt)}/{what}/{job.run}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _policy_request(job: Job, attempt: int) -> Request:
    machine = machines.find(job.config.machine)
    shape = SHAPES[machine.tpu][machine.chips * job.config.nodes]
    body = {
        "name": resource_name(job, attempt),
        "workloadPolicy": {"type": "HIGH_THROUGHPUT", "acceleratorTopology": shape},
    }
    return _insert(job, attempt, "ResourcePolicy", "ResourcePoliciesClient", {"region": job.config.region}, body)


def _template_request(job: Job, attempt: int) -> Request:
    body = {"name": resource_name(job, attempt), "properties": _properties(job, attempt)}
    return _insert(job, attempt, "InstanceTemplate", "InstanceTemplatesClient", {}, body)


def _properties(job: Job, attempt: int) -> dict[str, Any]:
    """What each machine is."""
    config = job.config
    email = {"email": config.service_account or "default"}
    properties: dict[str, Any] = {
        "machineType": config.machine,
        "labels": job.labels(attempt),
        "disks": [_boot_disk(job)],
        "networkInterfaces": [_network(job)],
        "serviceAccounts": [email | {"scopes": [SCOPE]}],
        "scheduling": _scheduling(config.provisioning),
        "metadata": {"items": [{"key": key, "value": value} for key, value in _metadata(job, attempt).items()]},
    }
    if config.reservation:
        properties["reservationAffinity"] = {
            "consumeReservationType": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [config.reservation],
        }
    return properties


def _boot_disk(job: Job) -> dict[str, Any]:
    machine = machines.find(job.config.machine)
    image = job.config.image or (TPU_IMAGE if machine.tpu else GPU_IMAGE if machine.gpus else CPU_IMAGE)
    disk = {"sourceImage": image, "diskSizeGb": str(job.config.disk_gb)}
    if machine.tpu == "v6e":
        disk["diskType"] = "hyperdisk-balanced"  # such machines take no other
    return {"boot": True, "autoDelete": True, "initializeParams": disk}


def _network(job: Job) -> dict[str, Any]:
    config = job.config
    interface: dict[str, Any] = {"nicType": "GVNIC"}
    if config.network or not config.subnetwork:
        interface["network"] = f"global/networks/{config.network or 'default'}"
    if config.subnetwork:
        interface["subnetwork"] = f"regions/{config.region}/subnetworks/{config.subnetwork}"
    if config.external_ip:
        interface["accessConfigs"] = [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]
    return interface


def _scheduling(provisioning: str) -> dict[str, Any]:
    """Machines with accelerators can't be moved. One that was taken back is only stopped, so that it can be seen."""
    if provisioning == "spot":
        spot = {"provisioningModel": "SPOT", "instanceTerminationAction": "STOP", "automaticRestart": False}
        return spot | {"onHostMaintenance": "TERMINATE"}
    return {"provisioningModel": "STANDARD", "automaticRestart": True, "onHostMaintenance": "TERMINATE"}


def _metadata(job: Job, attempt: int) -> dict[str, str]:
    """What a machine asks for when it starts; of a slice, the machines know their places by themselves."""
    first = "" if _is_slice(job) else f"{resource_name(job, attempt)}-0"
    place = json.dumps({"hosts": str(job.config.nodes), "first": first})
    return metadata(job, attempt) | {"tpullm-place": place}


def _group_request(job: Job, attempt: int) -> Request:
    name = resource_name(job, attempt)
    body: dict[str, Any] = {
        "name": name,
        "baseInstanceName": name,
        "instanceTemplate": f"projects/{job.config.project}/global/instanceTemplates/{name}",
        "targetSize": 0,
        "instanceLifecyclePolicy": {"defaultActionOnFailure": "DO_NOTHING"},
    }
    if _is_slice(job):
        policy = f"projects/{job.config.project}/regions/{job.config.region}/resourcePolicies/{name}"
        body |= {
            "targetSize": job.config.nodes,
            "targetSizePolicy": {"mode": "BULK"},
            "resourcePolicies": {"workloadPolicy": policy},
        }
    return _insert(
        job, attempt, "InstanceGroupManager", "InstanceGroupManagersClient", {"zone": job.config.zone}, body
    )


def _machines_request(job: Job, attempt: int) -> Request:
    field, name = "instanceGroupManagersCreateInstancesRequestResource", resource_name(job, attempt)
    message = {
        "project": job.config.project,
        "zone": job.config.zone,
        "instanceGroupManager": name,
        "requestId": _request_id(job, attempt, "machines"),
        field: {"instances": [{"name": f"{name}-{index}"} for index in range(job.config.nodes)]},
    }
    path = "compute/v1/projects/{project}/zones/{zone}/instanceGroupManagers/{instanceGroupManager}/createInstances"
    client, kind = "compute_v1.InstanceGroupManagersClient", "CreateInstancesInstanceGroupManagerRequest"
    call = "CreateInstances"
    return Request(client, call, "POST", path, HOST, message, field, kind=kind, function="create_instances_unary")
