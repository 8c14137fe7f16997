"""Compute Engine: an attempt is a managed instance group, of machines with GPUs or TPUs, and their instance template.

The requests name the machines `NAME-ATTEMPT-INDEX`. A group has no order, so the name of a machine says which host it
is. The machines of a TPU slice have to be created at once. The group names them; the slice numbers the hosts.

The group repairs nothing. A machine that was taken back is missing, or stays visible, until `watch.py` deletes the
attempt: the other hosts can only wait without it, and waiting costs as much as working.
"""

import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from tpullm.hardware import machines
from tpullm.hardware.chips import CHIPS
from tpullm.launch import google_api, gpu_network
from tpullm.launch import job as jobs
from tpullm.launch.google_api import GROUP, POLICY, TEMPLATE, ComputeKind, Request
from tpullm.launch.job import RUN_LABEL, Job
from tpullm.launch.watch import Resource, State, by_attempt
from tpullm.system.errors import UserError

_IMAGES = "projects/ubuntu-os-accelerator-images/global/images/family"
GPU_IMAGE = f"{_IMAGES}/ubuntu-accelerator-2404-amd64-with-nvidia-580"
CPU_IMAGE = "projects/debian-cloud/global/images/family/debian-13"
GONE = ("STOPPING", "STOPPED", "SUSPENDING", "SUSPENDED", "TERMINATED")
NO_CAPACITY = ("RESOURCE_POOL_EXHAUSTED", "STOCKOUT", "RESOURCE_NOT_AVAILABLE", "VM_MIN_COUNT_NOT_REACHED")


def check(job: Job) -> None:
    """Refuse a job that can't run on Compute Engine; `UserError` names the key."""
    config = job.config
    if config.accelerator:
        told = "is a slice of tpu-vm; give --machine, such as ct6e-standard-4t"
        raise UserError(f"accelerator: {config.accelerator} {told}")
    jobs.require(config, "compute", "project", "zone", "machine")
    machine, nodes = job.machine, config.nodes
    if job.verb in jobs.TEXT:
        raise UserError(f"{job.verb}: needs no accelerator; launch it on batch")
    jobs.check_cloud(job)
    machines.check_provisioning(machine, config.provisioning)
    gpu_network.check(config)
    if _is_slice(job):
        chip = CHIPS[machine.tpu]
        if machine.chips != chip.chips_per_host:
            told = "is a slice by itself; several machines need one with 4 chips (…-4t)"
            raise UserError(f"machine: {machine.name} {told}")
        topologies = chip.compute_engine.topologies
        if machine.chips * nodes not in topologies:
            sizes = ", ".join(str(chips // machine.chips) for chips in topologies)
            raise UserError(f"nodes: no slice of {machine.tpu} has {nodes} machines; there are {sizes}")
    jobs.check_mesh(job)


def requests(job: Job, attempt: int) -> Sequence[Request]:
    """A template, an empty group and its machines by name. For a slice: its shape, a template, a group of all."""
    name, config = job.attempt_name(attempt), job.config
    request_id = lambda what: google_api.request_id(config.project, config.zone, name, what, job.run)  # noqa: E731
    properties = {"name": name, "properties": _machine_properties(job, attempt)}
    template = TEMPLATE.insert(_scope_path(job), request_id("template"), properties)
    group = GROUP.insert(_scope_path(job, "zones"), request_id("group"), _instance_group(job, attempt))
    if not _is_slice(job):
        names = [f"{name}-{index}" for index in range(config.nodes)]
        created = google_api.create_instances(_scope_path(job, "zones"), name, request_id("machines"), names)
        return [template, group, created]
    shape = CHIPS[job.machine.tpu].compute_engine.topologies[job.machine.chips * config.nodes]
    workload = {"type": "HIGH_THROUGHPUT", "acceleratorTopology": shape}
    # A policy has no labels, so its description holds the hash of the run directory.
    policy = {"name": name, "description": job.run_hash, "workloadPolicy": workload}
    return [POLICY.insert(_scope_path(job, "regions"), request_id("policy"), policy), template, group]


def _is_slice(job: Job) -> bool:
    """Whether the machines form one TPU slice: several machines, which must have four chips each."""
    return bool(job.machine.tpu) and job.config.nodes > 1


def _scope_path(job: Job, place: str = "") -> str:
    """The path of the job's `zones` or `regions`; without a place, of what is global."""
    where = {"zones": f"zones/{job.config.zone}", "regions": f"regions/{job.config.region}"}
    return f"projects/{job.config.project}/{where.get(place, 'global')}"


def _machine_properties(job: Job, attempt: int) -> dict[str, Any]:
    """The properties of each machine.

    A machine with accelerators can't migrate. Compute Engine deletes it when its hours are over, whatever it does: also
    that of a group (cloud.google.com/compute/docs/instance-groups/limit-vm-runtime-in-migs). The action holds for a
    spot machine that is taken back, too: that one is then missing.
    """
    config, machine, fabric = job.config, job.machine, gpu_network.used(job.config)
    tpu = CHIPS[machine.tpu].compute_engine if machine.tpu else None
    image = config.image or (f"{_IMAGES}/{tpu.image}" if tpu else GPU_IMAGE if machine.gpus else CPU_IMAGE)
    disk = {"sourceImage": image, "diskSizeGb": str(config.disk_gb)}
    disk |= {"diskType": machine.disk} if machine.disk else {}
    email = {"email": config.service_account or "default"}
    spot, bound = config.provisioning == "spot", config.provisioning == "reserved" and machine.reservation_bound
    network = {"nicType": "GVNIC"} | (config.network_paths or {"network": "global/networks/default"})
    external = {"accessConfigs": [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]} if config.external_ip else {}
    first = "" if _is_slice(job) else f"{job.attempt_name(attempt)}-0"  # the hosts of a slice find their own places
    metadata = job.metadata(attempt) | {"tpullm-place": json.dumps({"hosts": str(config.nodes), "first": first})}
    metadata |= {"tpullm-gpudirect": f"{fabric.transport} {fabric.cards}"} if fabric else {}
    properties: dict[str, Any] = {
        "machineType": config.machine,
        "labels": job.labels(attempt),
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": disk}],
        "networkInterfaces": [network | external, *gpu_network.interfaces(config)],
        "serviceAccounts": [email | {"scopes": job.scopes}],
        "scheduling": {
            "provisioningModel": "SPOT" if spot else "RESERVATION_BOUND" if bound else "STANDARD",
            "automaticRestart": not spot,
            "maxRunDuration": {"seconds": str(config.max_seconds)},
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
        },
        "metadata": {"items": [{"key": key, "value": value} for key, value in metadata.items()]},
    }
    if config.reservation:
        properties["reservationAffinity"] = {
            "consumeReservationType": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [config.reservation],
        }
    return properties


def _instance_group(job: Job, attempt: int) -> dict[str, Any]:
    name, project = job.attempt_name(attempt), f"projects/{job.config.project}"
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
    """All attempts with a group, a template or a policy."""
    pattern = re.escape(job.name) + "-[0-9]+"
    listed = [kind.list(scope, pattern) for kind, scope in _resource_kinds(job)]
    found, groups = {each["name"]: each for each in itertools.chain(*listed)}, {group["name"] for group in listed[0]}
    return by_attempt(job, found.values(), functools.partial(_instance_group_resource, groups))


def _resource_kinds(job: Job) -> list[tuple[ComputeKind, str]]:
    """The kinds of resources of an attempt, in the order in which they can be deleted."""
    kinds = [(GROUP, _scope_path(job, "zones")), (TEMPLATE, _scope_path(job))]
    return kinds + ([(POLICY, _scope_path(job, "regions"))] if _is_slice(job) else [])


def _instance_group_resource(groups: set[str], job: Job, attempt: int, found: dict[str, Any]) -> Resource:
    name = found["name"]
    members = google_api.instances(_scope_path(job, "zones"), name) if name in groups else []
    state, reason, permanent = _state_of_machines(job, members)
    at_work = sum(member.get("instanceStatus") in ("PROVISIONING", "STAGING", "RUNNING") for member in members)
    dollars = job.machine.dollars_of(at_work)
    # Only a template has labels; the description of another resource holds the hash of the run directory.
    owner = found.get("properties", {}).get("labels", {}).get(RUN_LABEL, found.get("description", ""))
    return Resource(name, attempt, state, owner, reason, permanent, dollars)


def _state_of_machines(job: Job, members: list[dict[str, Any]]) -> tuple[State, str, bool]:
    """The state of an attempt, by its machines; why it failed, and whether another attempt would fail too."""
    if len(members) < job.config.nodes:
        return State.UNFINISHED, "", False
    if any(member.get("currentAction") == "DELETING" for member in members):
        return State.DELETING, "", False
    if any(member.get("instanceStatus") in GONE for member in members):
        return State.PREEMPTED, "", False
    tries = [member.get("lastAttempt", {}) for member in members]
    errors = [error for each in tries for error in each.get("errors", {}).get("errors", [])]
    for error in errors:
        if not any(word in error.get("code", "") for word in NO_CAPACITY):
            return State.FAILED, f"{error.get('code')}: {google_api.one_line(error.get('message', ''))}", True
    if all(member.get("instanceStatus") == "RUNNING" for member in members):
        return State.ACTIVE, "", False
    return (State.WAITING if errors else State.PROVISIONING), "", False


def delete(job: Job, resource: Resource) -> None:
    """Delete the group with its machines, then its template and policy."""
    for kind, scope in _resource_kinds(job):
        kind.delete(scope, resource.name)
