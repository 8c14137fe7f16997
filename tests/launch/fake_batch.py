"""Google Batch on this machine: the API in REST form, with the states of jobs and no machines.

It follows the documentation. Exit codes are in the events of tasks; those of a job have words alone. A job is kept
until it is deleted.
"""

import re
from dataclasses import dataclass, field

from tests.launch.rest import Call, Refused, Rest

JOBS = r"/v1/(projects/[^/]+/locations/[^/]+)/jobs"
WAY = ("QUEUED", "SCHEDULED", "RUNNING")  # one step at each list request


@dataclass
class Job:
    """The service's copy of a job: as it was asked for, its state, the states of its tasks, and their exit codes."""

    name: str
    body: dict
    count: int
    status: str = WAY[0]
    codes: dict[int, int] = field(default_factory=dict)

    def shown(self) -> dict:
        state = "RUNNING" if self.status == "RUNNING" else "PENDING"
        counts = {state: str(self.count - len(self.codes)), "FAILED": str(len(self.codes))}
        events = [{"type": "STATUS_CHANGED", "description": f"Job state is set to {self.status}"}]
        status = {"state": self.status, "statusEvents": events, "taskGroups": {"group0": {"counts": counts}}}
        return self.body | {"name": self.name, "status": status}


class FakeBatch(Rest):
    def __init__(self):
        one = JOBS + "/([^/:]+)"
        routes = [("POST", JOBS, self.create), ("GET", JOBS, self.list_jobs), ("DELETE", one, self.delete)]
        super().__init__([*routes, ("GET", one + "/taskGroups/group0/tasks", self.list_tasks)])
        self.jobs: dict[str, Job] = {}
        self.made: list[str] = []

    def create(self, call: Call, parent: str) -> dict:
        name = call.query["jobId"]
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise Refused(400, "INVALID_ARGUMENT", f"Job name {name} is invalid")
        if name in self.jobs:
            raise Refused(409, "ALREADY_EXISTS", f"Resource '{parent}/jobs/{name}' already exists")
        count = int(call.body["taskGroups"][0].get("taskCount", 1))
        self.jobs[name] = Job(f"{parent}/jobs/{name}", call.body, count)
        self.made.append(name)
        return self.jobs[name].shown()

    def list_jobs(self, call: Call, parent: str) -> dict:
        """`jobs.list`, one a page; after the last page each job is one state further."""
        names = sorted(self.jobs)
        number = int(call.query.get("pageToken") or 0)
        if number + 1 < len(names):
            return {"jobs": [self.jobs[names[number]].shown()], "nextPageToken": str(number + 1)}
        found = [self.jobs[name].shown() for name in names[number : number + 1]]
        for name, job in list(self.jobs.items()):
            if job.status == "DELETION_IN_PROGRESS":
                del self.jobs[name]
            elif job.status in WAY[:-1]:
                job.status = WAY[WAY.index(job.status) + 1]
        return {"jobs": found}

    def delete(self, call: Call, parent: str, name: str) -> dict:
        self._found(parent, name).status = "DELETION_IN_PROGRESS"
        return {"name": f"{parent}/operations/delete-{name}", "done": False}

    def list_tasks(self, call: Call, parent: str, name: str) -> dict:
        job, index = self._found(parent, name), int(call.query.get("pageToken") or 0)
        code = job.codes.get(index)
        words = f"Task {index} is updated from RUNNING to FAILED with exit code {code}."
        event = {"type": "STATUS_CHANGED", "eventTime": "2026-01-01T00:00:00.123Z", "taskState": "FAILED"}
        events = [event | {"taskExecution": {"exitCode": code}, "description": words}] if code else []
        status = {"state": "FAILED" if events else "RUNNING", "statusEvents": events}
        more = {"nextPageToken": str(index + 1)} if index + 1 < job.count else {}
        return {"tasks": [{"name": f"{job.name}/taskGroups/group0/tasks/{index}", "status": status}]} | more

    def fail(self, name: str, index: int, code: int) -> None:
        self.jobs[name].status = "FAILED"
        self.jobs[name].codes[index] = code

    def _found(self, parent: str, name: str) -> Job:
        if name not in self.jobs:
            raise Refused(404, "NOT_FOUND", f"Resource '{parent}/jobs/{name}' was not found")
        return self.jobs[name]
