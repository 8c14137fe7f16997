"""Google Batch: an attempt is one Batch job, with one task a machine. They train together, or are a Ray cluster.

Batch restarts a task whose machine was taken back (50001), whose peer is gone (75) or that was stopped and saved (130);
such an end is not reported. Any other end is final, except 124 and 50005: its hours are over. Exit codes are read from
the events of tasks. The task that failed first is the cause. Batch offers GPUs and no TPUs
(cloud.google.com/batch/docs/create-run-job-gpus).
"""

from collections.abc import Sequence
from typing import Any

from tpullm.hardware import machines
from tpullm.launch import google_api
from tpullm.launch import job as jobs
from tpullm.launch.google_api import Collection, Request
from tpullm.launch.job import RUN_LABEL, Job
from tpullm.launch.record import OVERTIME
from tpullm.launch.watch import Resource, State, by_attempt
from tpullm.system.errors import TRY_AGAIN, UserError

JOBS, TASKS = (Collection("https://batch.googleapis.com/v1", name) for name in ("Job", "Task"))
HOSTS_FILE = "/etc/cloudbatch-taskgroup-hosts"  # Batch writes it on the machine; a container needs a mount of it
# Exit codes after which Batch restarts a task: its machine was taken back (50001), fell silent, was rebooted or
# recreated (50002, 50003, 50006); another host of the training is gone (75); the task was stopped, and saved (130).
# All other codes are final, above all 2: a user error comes again.
RETRIED = (50001, 50002, 50003, 50006, TRY_AGAIN, 130)
# Exit codes of a task whose hours are over (`max_hours`). Batch does not restart it, but another attempt may resume.
TIMED_OUT = (50005, OVERTIME)
MOST_RETRIES = 10  # Batch allows no more; after them `watch.py` begins another attempt
PROVISIONING = {"spot": "SPOT", "on_demand": "STANDARD", "reserved": "STANDARD"}
STATES = {
    "QUEUED": State.WAITING,
    "SCHEDULED": State.PROVISIONING,
    "RUNNING": State.ACTIVE,
    "SUCCEEDED": State.DONE,
    "FAILED": State.FAILED,
    "CANCELLATION_IN_PROGRESS": State.FAILED,
    "CANCELLED": State.FAILED,
    "DELETION_IN_PROGRESS": State.DELETING,
}


def check(job: Job) -> None:
    """Refuse a job that can't run on Batch; `UserError` names the key."""
    config = job.config
    if config.accelerator:
        name = config.accelerator
        raise UserError(f"accelerator: {name} is a TPU, and Google Batch has none; launch it on tpu-vm or gke")
    jobs.require(config, "batch", "project", "zone", "machine")
    machines.check_provisioning(job.machine, config.provisioning)
    for source, mount in config.volumes.items():
        if not source.startswith(("gs://", "nfs://")) or not mount.startswith("/mnt/disks/"):
            told = "is not gs://… or nfs://SERVER/FOLDER with a place in /mnt/disks/"
            raise UserError(f"volumes: {source}: {mount} {told}")
    jobs.check_cloud(job)
    if job.verb == "evaluate" and config.nodes > 1:
        raise UserError(f"nodes: {config.nodes} are too many, one machine does all of evaluate; use 1")
    if job.verb not in jobs.TEXT:
        jobs.check_mesh(job)
    elif job.machine.gpus:
        raise UserError(f"machine: {job.verb} needs no GPU, and {config.machine} has some; use n2-standard-8, say")


def requests(job: Job, attempt: int) -> Sequence[Request]:
    """One Batch job, with one task a machine; the service creates its machines. 64-bit numbers are strings in REST."""
    config, machine, nodes = job.config, job.machine, str(job.config.nodes)
    volumes = []
    for source, mount in config.volumes.items():  # a bucket's folder, or a file server's
        scheme, _, rest = source.partition("://")
        server, _, folder = rest.partition("/")
        files = {"nfs": {"server": server, "remotePath": f"/{folder}"}}
        volumes.append(({"gcs": {"remotePath": rest}} if scheme == "gs" else files) | {"mountPath": mount})
    task = {
        "runnables": [_batch_runnable(job, attempt)],
        "computeResource": {"cpuMilli": f"{machine.vcpus * 1000}", "memoryMib": f"{machine.memory_gib * 1024}"},
        "maxRunDuration": f"{config.max_seconds}s",
        "maxRetryCount": min(config.max_preemptions, MOST_RETRIES),
        "lifecyclePolicies": [{"action": "RETRY_TASK", "actionCondition": {"exitCodes": list(RETRIED)}}],
    } | ({"volumes": volumes} if volumes else {})
    group: dict[str, Any] = {
        "taskSpec": task,
        "taskCount": nodes,
        "parallelism": nodes,  # hosts wait for each other
        "taskCountPerNode": "1",
    }
    if config.nodes > 1:
        group["requireHostsFile"] = True
    body = {
        "taskGroups": [group],
        "allocationPolicy": _allocation_policy(job, attempt),
        "labels": job.labels(attempt),
        "logsPolicy": {"destination": "CLOUD_LOGGING"},
    }
    location = f"projects/{config.project}/locations/{config.region}"
    return [JOBS.create_request(location, job.attempt_name(attempt), job.run, body)]


def _batch_runnable(job: Job, attempt: int) -> dict[str, Any]:
    """The start-up script on the machine, or in an image. That has the machine's network: hosts files name machines."""
    attributes = job.metadata(attempt)
    text = attributes.pop("startup-script")
    variables = {key.upper().replace("-", "_"): value for key, value in attributes.items() if value}
    runnable: dict[str, Any] = {"displayName": f"tpullm {job.verb}", "environment": {"variables": variables}}
    if not job.config.image:
        return runnable | {"script": {"text": text}}
    variables |= {"TPULLM_PYTHON": job.config.python or "python"}
    options = f"--network host{' --gpus all' if job.machine.gpus else ''}"
    container = {"imageUri": job.config.image, "entrypoint": "/bin/sh", "commands": ["-c", text], "options": options}
    volumes = [f"{mount}:{mount}" for mount in job.config.volumes.values()]
    if job.config.nodes > 1:
        volumes.append(f"{HOSTS_FILE}:{HOSTS_FILE}:ro")
    return runnable | {"container": container | ({"volumes": volumes} if volumes else {})}


def _allocation_policy(job: Job, attempt: int) -> dict[str, Any]:
    config, machine = job.config, job.machine
    bound = config.provisioning == "reserved" and machine.reservation_bound
    policy = {
        "machineType": config.machine,
        "provisioningModel": "RESERVATION_BOUND" if bound else PROVISIONING[config.provisioning],
        "bootDisk": {"sizeGb": str(config.disk_gb)} | ({"type": machine.disk} if machine.disk else {}),
    } | ({"reservation": config.reservation} if config.reservation else {})
    email = {"email": config.service_account} if config.service_account else {}
    interface = config.network_paths | ({} if config.external_ip else {"noExternalIpAddress": True})
    return {
        "location": {"allowedLocations": [f"zones/{config.zone}"]},
        "instances": [{"policy": policy} | ({"installGpuDrivers": True} if machine.gpus else {})],
        "serviceAccount": email | {"scopes": job.scopes},
        "labels": job.labels(attempt),
    } | ({"network": {"networkInterfaces": [interface]}} if interface else {})


def observe(job: Job) -> Sequence[Resource]:
    """The Batch jobs of all attempts."""
    listed = JOBS.list(f"projects/{job.config.project}/locations/{job.config.region}")
    return by_attempt(job, listed, _batch_job_resource)


def _batch_job_resource(job: Job, attempt: int, found: dict[str, Any]) -> Resource:
    status = found.get("status", {})
    state = STATES[status.get("state", "QUEUED")]
    cause = _first_failed_event(found["name"]) if state is State.FAILED else {}
    code = _task_exit_code(cause)
    if code in RETRIED + TIMED_OUT:
        state = State.PREEMPTED
    counts = status.get("taskGroups", {}).get("group0", {}).get("counts", {})
    at_work = sum(int(counts.get(name, 0)) for name in ("ASSIGNED", "RUNNING")) if state is State.ACTIVE else 0
    # Why it failed, or why it waits (no quota, no machines): the last such event, in Batch's words.
    events = status.get("statusEvents", [])
    if state is State.FAILED:
        events = [cause] if cause else events
    elif state in (State.WAITING, State.PROVISIONING):
        events = [event for event in events if event.get("type") == "OPERATIONAL_INFO"]
    else:
        events = []
    return Resource(
        name=found["name"],
        attempt=attempt,
        state=state,
        run=found.get("labels", {}).get(RUN_LABEL, ""),
        reason=google_api.one_line(events[-1].get("description", "")) if events else "",
        permanent=state is State.FAILED and code != 0,
        dollars_an_hour=job.machine.dollars_of(at_work),
    )


def _first_failed_event(name: str) -> dict[str, Any]:
    """Why a job failed: the last event of the task that failed first; nothing if no task did.

    The API has exit codes in the events of tasks, not of jobs (`batch_v1.types.StatusEvent`). Tasks that fail later may
    have been stopped because of the first.
    """
    try:
        tasks = TASKS.list(f"{name}/taskGroups/group0")
    except google_api.Missing:  # the job was deleted a moment ago
        return {}
    statuses = [task.get("status", {}) for task in tasks]
    events = [status.get("statusEvents", []) for status in statuses if status.get("state") == "FAILED"]
    ended = [[event for event in each if _task_exit_code(event)] for each in events]
    # Times in UTC without their Z are in the order of their text, with a fraction of a second or without.
    return min((each[-1] for each in ended if each), key=lambda event: event["eventTime"].rstrip("Z"), default={})


def _task_exit_code(event: dict[str, Any]) -> int:
    return event.get("taskExecution", {}).get("exitCode", 0)


def delete(job: Job, resource: Resource) -> None:
    """Delete the Batch job. Batch stops its tasks."""
    JOBS.delete(resource.name)
