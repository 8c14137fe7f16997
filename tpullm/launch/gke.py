"""Google Kubernetes Engine: the verb as one JobSet, for TPU slices, GPU hosts, or a Ray cluster of the machines.

JobSet restarts what fails, so no supervisor runs in a pod (`pod.py` only starts the verb). Kubernetes and JobSet act on
the verb's exit codes:

    0                       the pod is done; the JobSet is complete when all are
    2, a user error         the JobSet fails at once (podFailurePolicy FailJob, then the rule `userError`)
    a pod that is disrupted a node is taken back, drained or lost: the JobSet starts again, and this is not counted
    75, 130                 a peer is gone, or saved and stopped: the pod is replaced, and this is not counted
    any other               the JobSet starts again, `max_restarts` times (backoffLimit 0)
    hours are over          the JobSet fails (activeDeadlineSeconds, then the rule `hours`)

Of text, a disrupted pod is replaced alone, because the other nodes of Ray can go on.

Sources: kubernetes.io/docs/tasks/job/pod-failure-policy; jobset.sigs.k8s.io/docs/tasks/failure_policy;
cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice; AI-Hypercomputer/xpk, `system_characteristics.py` and
`capacity.py`, for the labels of nodes.
"""

import math
from typing import Any

from tpullm.hardware import machines, topologies
from tpullm.hardware.chips import CHIPS
from tpullm.launch import job as jobs
from tpullm.launch.job import RUN_LABEL, Job
from tpullm.system.cluster.place import PORTS
from tpullm.system.errors import TRY_AGAIN, UserError

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
IMAGE = "python:3.13"  # has curl, with which `startup.sh` gets the code
# Where GKE puts NVIDIA's driver, which only images of NVIDIA look for (kubernetes-engine/docs/how-to/gpus).
DRIVER = "/usr/local/nvidia/lib64"
SHARED = {"name": "shared", "mountPath": "/dev/shm"}  # else 64 MiB, too little for NCCL and for Ray's objects
SECONDS_TO_SAVE = 600  # between SIGTERM and SIGKILL; GKE gives pods of spot nodes less


def slice_of(job: Job) -> tuple[str, tuple[int, ...], int]:
    """The generation, the shape and the hosts of one slice of `accelerator`.

    Args:
        job: `accelerator` is a name of the Cloud TPU API (`v6e-256`) or a topology (`v5p:4x4x8`), which says the shape.

    Raises:
        UserError: there is no such slice, or GKE has no such TPUs.
    """
    name = job.config.accelerator
    if ":" in name:
        found = topologies.parse(name)
        if found.slices != 1 or found.chip.gpu:
            raise UserError(f"accelerator: {name} is not one TPU slice, such as v6e:16x16; give --slices N for several")
        generation, shape = found.generation, found.shape
        chips = math.prod(shape)
        one_host = found.chip.cloud_tpu.one_host if found.chip.cloud_tpu else found.chip.chips_per_host
        hosts = 1 if chips <= one_host else chips // found.chip.chips_per_host
    else:
        rented = machines.find_slice(name)
        generation = next(key for key, chip in CHIPS.items() if chip is rented.chip)
        shape, hosts = _usual_shape(generation, rented.chips), rented.hosts
    if not CHIPS[generation].gke:
        names = ", ".join(name for name, chip in CHIPS.items() if chip.gke)
        raise UserError(f"accelerator: GKE has no {generation}; there are {names}")
    return generation, shape, hosts


def _usual_shape(generation: str, chips: int) -> tuple[int, ...]:
    """The shape that Google gives a slice whose name says chips only: the most cubic one."""
    of = CHIPS[generation].slices or CHIPS["v5p"].slices  # a v4's torus has the shapes of a v5p's
    sides = range(of.wraps, 33, of.wraps)
    cubes = [(a, b, c) for a in sides for b in sides for c in sides if a <= b <= c] if of.dimensions == 3 else []
    return min((shape for shape in (*of.small, *cubes) if math.prod(shape) == chips), key=lambda shape: shape[-1])


def check(job: Job) -> None:
    """Refuse a job that can't run on GKE; `UserError` names the key."""
    config = job.config
    if bool(config.accelerator) == bool(config.machine):
        raise UserError(
            "accelerator: give a TPU slice by --accelerator, or machines by --machine and --nodes; not both"
        )
    jobs.check_cloud(job)
    text = job.verb in jobs.TEXT
    if config.accelerator:
        if text:
            raise UserError(f"{job.verb}: needs no TPU, and would leave one idle; give --machine n2-standard-8, say")
        generation, shape, hosts = slice_of(job)
        if config.slices > 1 and hosts == 1:
            raise UserError("slices: several slices need several hosts each; use a larger --accelerator")
        which = f"accelerator: {config.slices} x {config.accelerator}"
        devices = math.prod(shape) * CHIPS[generation].devices_per_chip * config.slices
        jobs.check_devices(job, devices, which)
        return
    if config.provisioning != "flex_start":
        machines.check_provisioning(job.machine, config.provisioning)
    if text and job.machine.gpus:
        raise UserError(f"machine: {job.verb} needs no GPU, and {config.machine} has some; use n2-standard-8, say")
    if not text:
        jobs.check_mesh(job)


def manifest(job: Job) -> dict[str, Any]:
    """The JobSet: one replicated job of all slices or hosts; of text the driver and the other nodes of Ray."""
    config = job.config
    if job.uses_ray:
        replicated = [_replicated_job(job, "driver", 1, 1), _replicated_job(job, "worker", 1, config.nodes - 1)]
    elif config.accelerator:
        replicated = [_replicated_job(job, "slice", config.slices, slice_of(job)[2])]
    else:
        replicated = [_replicated_job(job, "host", 1, config.nodes)]
    own = "cloud.google.com/gke-nodepool"  # a node pool is one slice
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": own} if config.accelerator else {}
    labels = job.labels(1) | ({"kueue.x-k8s.io/queue-name": config.queue} if config.queue else {})
    success = {"successPolicy": {"operator": "All", "targetReplicatedJobs": ["driver"]}} if job.uses_ray else {}
    rules = [
        {
            "name": "userError",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": ["with exit code 2 "],
        },
        {"name": "hours", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
        {
            "name": "disrupted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        },
    ]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "JobSet",
        "metadata": {"name": job.name, "labels": labels} | ({"annotations": annotations} if annotations else {}),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            **success,
            "failurePolicy": {"maxRestarts": config.max_restarts, "rules": rules},
            "replicatedJobs": replicated,
        },
    }


def _replicated_job(job: Job, name: str, replicas: int, hosts: int) -> dict[str, Any]:
    disrupted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    on_codes = {"containerName": "tpullm", "operator": "In"}
    spec = {
        "completions": hosts,
        "parallelism": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "activeDeadlineSeconds": job.config.max_seconds,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": on_codes | {"values": [2]}},
                {"action": "Ignore" if job.verb in jobs.TEXT else "FailJob"} | disrupted,
                {"action": "Ignore", "onExitCodes": on_codes | {"values": [TRY_AGAIN, 130]}},
            ]
        },
        "template": {"metadata": {"labels": job.labels(1)}, "spec": _pod(job, name, hosts)},
    }
    return {"name": name, "replicas": replicas, "template": {"spec": spec}}


def _pod(job: Job, name: str, hosts: int) -> dict[str, Any]:
    config = job.config
    account = {"serviceAccountName": config.service_account} if config.service_account else {}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    tolerations += [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if config.provisioning == "spot":
        tolerations += [{"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}]
    if config.provisioning == "flex_start":
        tolerations += [{"key": "cloud.google.com/gke-queued", "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        **account,
        "nodeSelector": _node_selector(job),
        "tolerations": tolerations,
        "containers": [_container(job, name, hosts)],
        "volumes": [{"name": SHARED["name"], "emptyDir": {"medium": "Memory"}}],
    }


def _node_selector(job: Job) -> dict[str, str]:
    config = job.config
    if config.accelerator:
        generation, shape, _ = slice_of(job)
        chosen = {
            "cloud.google.com/gke-tpu-accelerator": CHIPS[generation].gke.label,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, shape)),
        }
    else:
        chosen = {"node.kubernetes.io/instance-type": config.machine}
        label = job.machine.node_label
        chosen |= {"cloud.google.com/gke-accelerator": label} if label else {}
    kinds = {"spot": {"cloud.google.com/gke-spot": "true"}, "flex_start": {"cloud.google.com/gke-flex-start": "true"}}
    reserved = {"cloud.google.com/reservation-name": config.reservation}
    return chosen | kinds.get(config.provisioning, reserved if config.reservation else {})


def _container(job: Job, name: str, hosts: int) -> dict[str, Any]:
    """The container; `startup.sh` reads its settings from the variables, as in a task of Google Batch."""
    config = job.config
    attributes = job.metadata(1)
    text = attributes.pop("startup-script")
    variables = {key.upper().replace("-", "_"): value for key, value in attributes.items() if value}
    variables |= {"TPULLM_PYTHON": config.python or "python"} if config.image else {}
    variables |= {"LD_LIBRARY_PATH": DRIVER} if config.machine and job.machine.gpus else {}
    first = {"host": "host", "slice": "slice"}.get(name, "driver")
    own_index = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
    variables |= {
        "TPULLM_POD": name,
        "TPULLM_POD_HOSTS": str(hosts),
        "TPULLM_HOSTS": str(config.nodes if config.machine else hosts * config.slices),
        "TPULLM_COORDINATOR": f"{job.name}-{first}-0-0.{job.name}:{PORTS[0]}",
    }
    environment = [{"name": key, "value": value} for key, value in variables.items()]
    environment.append({"name": "TPULLM_JOB_INDEX", "valueFrom": {"fieldRef": own_index}})
    if config.accelerator:
        _, shape, of_slice = slice_of(job)
        resources = {"limits": {"google.com/tpu": str(math.prod(shape) // of_slice)}}
    elif job.machine.gpus:
        resources = {"limits": {"nvidia.com/gpu": str(job.machine.gpus)}}
    else:  # the whole machine but what the node itself needs
        resources = {"requests": {"cpu": str(max(job.machine.vcpus - 1, 1))}}
    return {
        "name": "tpullm",
        "image": config.image or IMAGE,
        "command": ["/bin/sh", "-c", text],
        "env": environment,
        "ports": [{"containerPort": PORTS[0]}],
        "resources": resources,
        "volumeMounts": [SHARED],
    }


def dry_run(job: Job) -> str:
    """The manifest, as YAML that `kubectl apply -f -` takes."""
    from tpullm.launch import show

    config, head = job.config, "What `tpullm launch gke` would apply; nothing was."
    if config.accelerator:
        generation, shape, _ = slice_of(job)
        each = CHIPS[generation].dollars_per_hour.get("on_demand")
        dollars = each and each * math.prod(shape) * config.slices
    else:
        dollars = job.dollars_an_hour
    ends = f"A pod ends after {config.max_hours:g} hours at the latest (max_hours). {show.most(config, dollars)}"
    return show.comment(head, ends) + show.as_yaml(manifest(job))


def owner(found: dict[str, Any]) -> str:
    """The hash of the run directory that a JobSet belongs to."""
    return found["metadata"].get("labels", {}).get(RUN_LABEL, "")
