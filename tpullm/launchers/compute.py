"""Compute Engine: one managed instance group an attempt, of machines with GPUs or TPUs, and the template of those.

The group makes its machines with the names that we give it, `NAME-ATTEMPT-INDEX`: a group has no order of its own, and
this way a machine's name says which host it is. The machines of a TPU slice have to come all at once, with names of the
group's; which of them is which is what the slice says.

The group repairs nothing. A machine that was taken back stays where it can be seen until `watch.py` removes the
attempt: hosts that wait without it cost as much as if they worked.
"""

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from tpullm.errors import UserError
from tpullm.hardware import machines
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.machines import Machine
from tpullm.launchers import engine, settings
from tpullm.launchers import job as jobs
from tpullm.launchers.engine import GROUP, POLICY, TEMPLATE, Kind, Scope
from tpullm.launchers.job import Job
from tpullm.launchers.startup import metadata
from tpullm.launchers.target import Request, Resource, State
from tpullm.mesh import axes

SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # what it comes to is the service account's roles
_IMAGES = "projects/ubuntu-os-accelerator-images/global/images/family"
GPU_IMAGE = f"{_IMAGES}/ubuntu-accelerator-2404-amd64-with-nvidia-580"
CPU_IMAGE = "projects/debian-cloud/global/images/family/debian-13"
GONE = ("STOPPING", "STOPPED", "SUSPENDING", "SUSPENDED", "TERMINATED")
NO_CAPACITY = ("RESOURCE_POOL_EXHAUSTED", "STOCKOUT", "RESOURCE_NOT_AVAILABLE", "VM_MIN_COUNT_NOT_REACHED")


def check(job: Job) -> None:
    """Refuse what can't be launched on Compute Engine; `UserError` names the key."""
    config = job.config
    if config.accelerator:
        raise UserError(
            f"accelerator: {config.accelerator} is a slice of tpu-vm; give --machine, such as ct6e-standard-4t"
        )
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
    chip = CHIPS[machine.tpu]
    if machine.chips != chip.chips_per_host:
        raise UserError(f"machine: {machine.name} is a slice by itself; several machines need one with 4 chips (…-4t)")
    topologies = chip.compute_engine.topologies
    if machine.chips * nodes not in topologies:
        sizes = ", ".join(str(chips // machine.chips) for chips in topologies)
        raise UserError(f"nodes: no slice of {machine.tpu} has {nodes} machines; there are {sizes}")


def hosts(job: Job) -> int:
    """How many machines report."""
    return job.config.nodes


def requests(job: Job, attempt: int) -> Sequence[Request]:
    """A template, an empty group, its machines by name; of a slice, its shape first, and a group of all machines."""
    name = _name(job, attempt)
    template = engine.insert(TEMPLATE, _everywhere(job), _request_id(job, name, "template"), _template(job, attempt))
    group = engine.insert(GROUP, _zone(job), _request_id(job, name, "group"), _group(job, attempt))
    if _is_slice(job):
        return [
            engine.insert(POLICY, _region(job), _request_id(job, name, "policy"), _policy(job, attempt)),
            template,
            group,
        ]
    names = [f"{name}-{index}" for index in range(job.config.nodes)]
    return [template, group, engine.create_instances(_zone(job), name, _request_id(job, name, "machines"), names)]


def _name(job: Job, attempt: int) -> str:
    """Of the group, the template and, before a dash and an index, the machines."""
    return f"{job.name}-{attempt}"


def _is_slice(job: Job) -> bool:
    """Whether the machines form one TPU slice."""
    return bool(machines.find(job.config.machine).tpu) and job.config.nodes > 1


def _everywhere(job: Job) -> Scope:
    return Scope(job.config.project)


def _zone(job: Job) -> Scope:
    return Scope(job.config.project, zone=job.config.zone)


def _region(job: Job) -> Scope:
    return Scope(job.config.project, region=job.config.region)


def _request_id(job: Job, name: str, what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job.config.project}/{job.config.zone}/{name}/{what}/{job.run}"))


def _policy(job: Job, attempt: int) -> dict[str, Any]:
    """The shape of a slice. It has no labels, so its description says whose it is."""
    machine = machines.find(job.config.machine)
    shape = CHIPS[machine.tpu].compute_engine.topologies[machine.chips * job.config.nodes]
    workload = {"type": "HIGH_THROUGHPUT", "acceleratorTopology": shape}
    return {"name": _name(job, attempt), "description": job.run_hash, "workloadPolicy": workload}


def _template(job: Job, attempt: int) -> dict[str, Any]:
    return {"name": _name(job, attempt), "properties": _properties(job, attempt)}


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
    tpu = CHIPS[machine.tpu].compute_engine if machine.tpu else None
    image = job.config.image or (f"{_IMAGES}/{tpu.image}" if tpu else GPU_IMAGE if machine.gpus else CPU_IMAGE)
    disk = {"sourceImage": image, "diskSizeGb": str(job.config.disk_gb)}
    if tpu and tpu.disk:
        disk["diskType"] = tpu.disk
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
    first = "" if _is_slice(job) else f"{_name(job, attempt)}-0"
    place = json.dumps({"hosts": str(job.config.nodes), "first": first})
    return metadata(job, attempt) | {"tpullm-place": place}


def _group(job: Job, attempt: int) -> dict[str, Any]:
    name, project = _name(job, attempt), f"projects/{job.config.project}"
    group: dict[str, Any] = {
        "name": name,
        "description": job.run_hash,
        "baseInstanceName": name,
        "instanceTemplate": f"{project}/global/instanceTemplates/{name}",
        "targetSize": 0,
        "instanceLifecyclePolicy": {"defaultActionOnFailure": "DO_NOTHING"},
    }
    if not _is_slice(job):
        return group
    policy = f"{project}/regions/{job.config.region}/resourcePolicies/{name}"
    together = {"targetSizePolicy": {"mode": "BULK"}, "resourcePolicies": {"workloadPolicy": policy}}
    return group | {"targetSize": job.config.nodes} | together


def observe(job: Job) -> Sequence[Resource]:
    """The attempts of which anything is there: a group, or what one is made from."""
    pattern = re.escape(job.name) + "-[0-9]+"
    groups, templates = (engine.find(kind, scope, pattern) for kind, scope in _kinds(job)[:2])
    policies = engine.find(POLICY, _region(job), pattern) if _is_slice(job) else []
    found = {each["name"]: _owner(each) for each in (*policies, *groups, *templates)}
    return sorted((_resource(job, name, run, groups) for name, run in found.items()), key=lambda r: r.attempt)


def _kinds(job: Job) -> list[tuple[Kind, Scope]]:
    """What an attempt is made of, in the order in which it can be removed."""
    kinds = [(GROUP, _zone(job)), (TEMPLATE, _everywhere(job))]
    return kinds + ([(POLICY, _region(job))] if _is_slice(job) else [])


def _owner(found: dict[str, Any]) -> str:
    """The label with the hash of the run directory."""
    labels = found.get("properties", {}).get("labels", {})
    return labels.get("tpullm-run", found.get("description", ""))


def _resource(job: Job, name: str, run: str, groups: list[dict[str, Any]]) -> Resource:
    attempt = int(name.rpartition("-")[2])
    there = any(group["name"] == name for group in groups)
    members = engine.instances(_zone(job), name) if there else []
    state, why, hopeless = _state(job, members)
    at_work = sum(member.get("instanceStatus") in ("PROVISIONING", "STAGING", "RUNNING") for member in members)
    return Resource(
        name, attempt, state, run, why, hopeless, machines.find(job.config.machine).dollars_an_hour * at_work
    )


def _state(job: Job, members: list[dict[str, Any]]) -> tuple[State, str, bool]:
    """Of an attempt, by its machines; why it failed, and whether it would again."""
    if len(members) < job.config.nodes:
        return State.UNFINISHED, "", False
    if any(member.get("currentAction") == "DELETING" for member in members):
        return State.DELETING, "", False
    if any(member.get("instanceStatus") in GONE for member in members):
        return State.PREEMPTED, "", False
    errors = [
        error for member in members for error in member.get("lastAttempt", {}).get("errors", {}).get("errors", [])
    ]
    for error in errors:
        if not any(word in error.get("code", "") for word in NO_CAPACITY):
            return State.FAILED, f"{error.get('code')}: {' '.join(error.get('message', '').split())[:300]}", True
    if all(member.get("instanceStatus") == "RUNNING" for member in members):
        return State.ACTIVE, "", False
    return (State.WAITING if errors else State.PROVISIONING), "", False


def create(job: Job, attempt: int) -> None:
    """Make what is not there yet, each when the one before is ready."""
    for (_, scope), request in zip(_order(job), requests(job, attempt), strict=True):
        engine.make(scope, request)


def _order(job: Job) -> list[tuple[Kind, Scope]]:
    """The kinds that `requests` makes; machines are the group's."""
    group, template, *policy = _kinds(job)
    return [*policy, template, group] + ([] if policy else [group])


def delete(job: Job, resource: Resource) -> None:
    """Remove the group with its machines, then what it was made from."""
    for kind, scope in _kinds(job):
        engine.remove(kind, scope, resource.name)
