"""Google Batch on this machine: the API in REST form, and jobs whose tasks run as processes.

It follows the documentation. A job is checked on arrival, strictly, by the client's own types. It has the states of the
service, and its tasks the variables and the hosts file. The task's policy decides about retries. A failed task fails
the job, and its other tasks are stopped. Exit codes are in the events of tasks; those of a job have words alone. A job
is kept until it is deleted.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from google.cloud import batch_v1
from google.protobuf import json_format

from tests.launch import machines
from tests.launch.rest import Call, Refused, Rest

JOBS = r"/v1/(projects/[^/]+/locations/[^/]+)/jobs"
PREEMPTED = 50001
SECONDS_IN_A_STATE = 0.05


@dataclass
class Job:
    """The service's copy of a job.

    Args:
        body: as it was asked for.
        status, tasks: of the job and of each task, in the API's words.
        events, task_events: the same.
        attempts: how often each task was started.
        processes: of the tasks that run.
    """

    name: str
    body: dict
    folder: Path
    status: str = "QUEUED"
    tasks: list[str] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    task_events: list[list[dict]] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    codes: list[list[int]] = field(default_factory=list)
    processes: dict[int, object] = field(default_factory=dict)
    preempted: set[int] = field(default_factory=set)
    deleted: bool = False


class FakeBatch(Rest):
    """The service.

    Args:
        folder: for what the machines write.
        machine: a function of a task's index to the variables that its machine has (where its metadata are, say).
    """

    def __init__(self, folder: Path, machine: Callable[[int], dict[str, str]] = lambda index: {}):
        super().__init__(
            [
                ("POST", JOBS, self.create),
                ("GET", JOBS, self.list_jobs),
                ("DELETE", JOBS + "/([^/:]+)", self.delete),
                ("GET", JOBS + "/([^/:]+)/taskGroups/group0/tasks", self.list_tasks),
            ]
        )
        self.folder, self.machine = folder, machine
        self.jobs: dict[str, Job] = {}
        self.made: list[str] = []

    def __exit__(self, *_):
        with self.lock:
            for job in self.jobs.values():
                self._stop(job, "CANCELLED")
        super().__exit__()

    def create(self, call: Call, parent: str) -> dict:
        """`jobs.create`."""
        name = call.query["jobId"]
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise Refused(400, "INVALID_ARGUMENT", f"Job name {name} is invalid")
        if name in self.jobs:
            raise Refused(409, "ALREADY_EXISTS", f"Resource '{parent}/jobs/{name}' already exists")
        body = checked(call.body)
        group = body["taskGroups"][0]
        count = int(group.get("taskCount", 1))
        job = Job(f"{parent}/jobs/{name}", body, self.folder / f"{name}-{len(self.made)}")
        job.tasks, job.attempts = ["PENDING"] * count, [0] * count
        job.codes, job.task_events = [[] for _ in range(count)], [[] for _ in range(count)]
        self.jobs[name] = job
        self.made.append(name)
        threading.Thread(target=self._live, args=(job,), daemon=True).start()
        return self._shown(job)

    def list_jobs(self, call: Call, parent: str) -> dict:
        """`jobs.list`, one a page."""
        names = sorted(self.jobs)
        number = int(call.query.get("pageToken") or 0)
        more = {"nextPageToken": str(number + 1)} if number + 1 < len(names) else {}
        return {"jobs": [self._shown(self.jobs[name]) for name in names[number : number + 1]]} | more

    def delete(self, call: Call, parent: str, name: str) -> dict:
        """`jobs.delete`: an operation; the job stays visible for a moment."""
        job = self._found(parent, name)
        self._stop(job, "DELETION_IN_PROGRESS")
        job.deleted = True
        threading.Timer(SECONDS_IN_A_STATE, self.jobs.pop, (name, None)).start()
        return {"name": f"{parent}/operations/delete-{name}", "done": False}

    def list_tasks(self, call: Call, parent: str, name: str) -> dict:
        """`jobs.taskGroups.tasks.list`, one a page."""
        job = self._found(parent, name)
        index = int(call.query.get("pageToken") or 0)
        status = {"state": job.tasks[index], "statusEvents": job.task_events[index]}
        more = {"nextPageToken": str(index + 1)} if index + 1 < len(job.tasks) else {}
        return {"tasks": [{"name": f"{job.name}/taskGroups/group0/tasks/{index}", "status": status}]} | more

    def preempt(self, name: str, index: int) -> None:
        """Take the machine of a task back, without a notice."""
        with self.lock:
            job = self.jobs[name]
            job.preempted.add(index)
            machines.kill(job.processes[index])

    def wait(self, name: str, *states: str, seconds: float = 60) -> Job:
        """Wait until the job is in one of the states.

        Raises:
            TimeoutError: it is not, by then.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if name in self.jobs and self.jobs[name].status in states:
                return self.jobs[name]
            time.sleep(0.02)
        raise TimeoutError(f"{name} is {self.jobs[name].status if name in self.jobs else 'absent'}, not {states}")

    def _found(self, parent: str, name: str) -> Job:
        if name not in self.jobs:
            raise Refused(404, "NOT_FOUND", f"Resource '{parent}/jobs/{name}' was not found")
        return self.jobs[name]

    def _shown(self, job: Job) -> dict:
        counts = {state: str(job.tasks.count(state)) for state in sorted(set(job.tasks))}
        status = {
            "state": job.status,
            "statusEvents": job.events,
            "taskGroups": {"group0": {"counts": counts}},
        }
        return job.body | {"name": job.name, "uid": f"uid-{len(self.made)}", "status": status}

    def _live(self, job: Job) -> None:
        """A job from the queue to its end."""
        group = job.body["taskGroups"][0]
        time.sleep(SECONDS_IN_A_STATE)
        self._advance(job, "SCHEDULED")
        time.sleep(SECONDS_IN_A_STATE)
        places = int(group.get("parallelism", len(job.tasks)))
        with self.lock:  # a job that runs has tasks that are at work
            job.tasks[:places] = ["ASSIGNED"] * len(job.tasks[:places])
            self._advance(job, "RUNNING")
        free = threading.Semaphore(places)
        threads = [threading.Thread(target=self._task, args=(job, index, free)) for index in range(len(job.tasks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._advance(job, "SUCCEEDED")

    def _advance(self, job: Job, status: str) -> None:
        with self.lock:
            if job.status in ("QUEUED", "SCHEDULED", "RUNNING"):
                job.status = status
                job.events.append({"type": "STATUS_CHANGED", "description": f"Job state is set to {status}"})

    def _task(self, job: Job, index: int, free: threading.Semaphore) -> None:
        spec = job.body["taskGroups"][0]["taskSpec"]
        with free:
            while job.status == "RUNNING":
                code = self._attempt(job, index)
                if code == 0:
                    job.tasks[index] = "SUCCEEDED"
                    return
                self._note(job, index, code)
                if job.status != "RUNNING":  # stopped, because another task failed
                    job.tasks[index] = "FAILED"
                    return
                if job.attempts[index] > int(spec.get("maxRetryCount", 0)) or not retried(spec, code):
                    job.tasks[index] = "FAILED"
                    return self._stop(job, "FAILED")

    def _attempt(self, job: Job, index: int) -> int:
        """Start the task, and wait for its exit code: 50001 if its machine was taken back."""
        with self.lock:
            if job.status != "RUNNING":
                return 130
            job.attempts[index] += 1
            job.tasks[index] = "RUNNING"
            job.processes[index] = process = self._start(job, index)
        process.wait()
        with self.lock:
            job.processes.pop(index, None)
            returned = process.returncode
            code = PREEMPTED if index in job.preempted else returned % 256 if returned >= 0 else 128 - returned
            job.preempted.discard(index)
            job.codes[index].append(code)
            return code

    def _start(self, job: Job, index: int):
        group = job.body["taskGroups"][0]
        (runnable,) = group["taskSpec"]["runnables"]
        count = len(job.tasks)
        environment = {
            **group["taskSpec"].get("environment", {}).get("variables", {}),
            **runnable.get("environment", {}).get("variables", {}),
            **{"BATCH_TASK_INDEX": str(index), "BATCH_TASK_COUNT": str(count), "BATCH_JOB_UID": "uid"},
            **self.machine(index),
        }
        if group.get("requireHostsFile"):
            environment["BATCH_HOSTS_FILE"] = str(job.folder / "hosts")
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "hosts").write_text("".join(f"127.0.0.{number + 1}\n" for number in range(count)))
        name = f"127.0.0.{index + 1}" if group.get("requireHostsFile") else ""
        return machines.start(runnable["script"]["text"], job.folder / f"task-{index}", environment, name)

    def _note(self, job: Job, index: int, code: int) -> None:
        """A task's end, among the events of the task."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        words = f"Task state is updated from RUNNING to FAILED on zones/z/instances/{index} with exit code {code}."
        job.task_events[index].append(
            {
                "type": "STATUS_CHANGED",
                "eventTime": now,
                "taskState": "FAILED",
                "taskExecution": {"exitCode": code},
                "description": words,
            }
        )

    def _stop(self, job: Job, status: str) -> None:
        with self.lock:
            if job.status not in ("SUCCEEDED", "FAILED", "CANCELLED") or status == "DELETION_IN_PROGRESS":
                job.status = status
                words = "Job failed due to task failure." if status == "FAILED" else f"Job state is set to {status}."
                job.events.append({"type": "STATUS_CHANGED", "description": words})
            for process in list(job.processes.values()):
                machines.kill(process)


def retried(spec: dict, code: int) -> bool:
    """Whether Batch restarts a task after an exit code: by the policy, of which it accepts one; without one, always."""
    policies = spec.get("lifecyclePolicies", [])
    if not policies:
        return True
    met = code in policies[0]["actionCondition"]["exitCodes"]
    return met == (policies[0]["action"] == "RETRY_TASK")


def checked(sent: dict) -> dict:
    """The job with enumeration names (the client sends numbers). Refused if the reference of the service says so."""
    try:
        body = json_format.MessageToDict(json_format.ParseDict(sent, batch_v1.Job.pb(batch_v1.Job())))
    except json_format.ParseError as error:
        raise Refused(400, "INVALID_ARGUMENT", str(error)) from None
    groups = body.get("taskGroups", [])
    if len(groups) != 1 or len(body["allocationPolicy"]["instances"]) != 1:
        raise Refused(400, "INVALID_ARGUMENT", "one task group and one instance policy are supported")
    spec = groups[0]["taskSpec"]
    if not 0 <= spec.get("maxRetryCount", 0) <= 10 or len(spec.get("lifecyclePolicies", [])) > 1:
        raise Refused(400, "INVALID_ARGUMENT", "maxRetryCount is 0 to 10, with at most one lifecycle policy")
    (place, *others) = body["allocationPolicy"]["location"]["allowedLocations"]
    if not place.startswith(("regions/", "zones/")) or any(other.startswith("regions/") for other in others):
        raise Refused(400, "INVALID_ARGUMENT", f"allowedLocations: {place}")
    return body
