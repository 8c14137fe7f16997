"""Compute Engine on this machine: templates, policies, networks and managed groups; machines run as processes.

It follows the documentation. Names are checked. Each call is an operation that is done a moment later. A request whose
identifier came before does nothing. A group needs its template, which can't be deleted before the group. A machine is
provisioning, staging, running; the group repairs none (`DO_NOTHING`). A machine runs its start-up script as a process
group, which finds its metadata by `GCE_METADATA_HOST`.
"""

import itertools
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from google.cloud import compute_v1
from google.protobuf import json_format

from tests.launch import machines
from tests.launch.fake_metadata import Metadata
from tests.launch.rest import Call, Refused, Rest

PROJECT = "/compute/v1/(projects/[^/]+)"
PLACE = PROJECT + "/((?:zones|regions)/[^/]+|global)"
TYPES = {
    "instanceTemplates": compute_v1.InstanceTemplate,
    "resourcePolicies": compute_v1.ResourcePolicy,
    "instanceGroupManagers": compute_v1.InstanceGroupManager,
    "networks": compute_v1.Network,
    "subnetworks": compute_v1.Subnetwork,
    "firewalls": compute_v1.Firewall,
}
SECONDS_IN_A_STATE = 0.05


@dataclass
class Machine:
    """One machine of a group."""

    name: str
    metadata: Metadata
    status: str = "PROVISIONING"
    process: object = None


@dataclass
class Group:
    """A group with its machines."""

    body: dict
    machines: dict[str, Machine] = field(default_factory=dict)


class FakeCompute(Rest):
    """The service.

    Args:
        folder: for what the machines write.
        environment: of all machines.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None):
        kind = f"/({'|'.join(TYPES)})"
        super().__init__(
            [
                ("POST", PLACE + kind, self.insert),
                ("GET", PLACE + kind, self.list_things),
                ("DELETE", PLACE + kind + "/([^/]+)", self.delete),
                ("POST", PLACE + "/instanceGroupManagers/([^/]+)/createInstances", self.create_instances),
                ("POST", PLACE + "/instanceGroupManagers/([^/]+)/listManagedInstances", self.list_instances),
                ("POST", PLACE + "/operations/([^/]+)/wait", self.wait_operation),
            ]
        )
        self.folder, self.environment = folder, environment or {}
        self.things: dict[str, dict[str, dict]] = {collection: {} for collection in TYPES}
        self.groups: dict[str, Group] = {}
        self.made: list[str] = []
        self.operations: dict[str, dict] = {}
        self.by_request: dict[str, dict] = {}
        self._numbers = itertools.count(1)

    def __exit__(self, *_):
        with self.lock:
            for group in self.groups.values():
                self._close(group)
        super().__exit__()

    def insert(self, call: Call, project: str, place: str, collection: str) -> dict:
        """`insert` of a template, a policy or a group."""
        self._check(collection, call.body)
        name = call.body["name"]

        def make():
            if name in self.things[collection]:
                raise Refused(
                    409, "ALREADY_EXISTS", f"The resource '{project}/{place}/{collection}/{name}' already exists"
                )
            if "network" in call.body:
                self._need(call.body["network"], "networks")
            if collection == "instanceGroupManagers":
                self._need(call.body["instanceTemplate"], "instanceTemplates")
                self.groups[name] = Group(call.body)
                self._start(name, [f"{name}-{number:04x}" for number in range(call.body.get("targetSize", 0))])
            self.things[collection][name] = call.body
            self.made.append(f"{collection}/{name}")

        return self._operation(call, place, make)

    def create_instances(self, call: Call, project: str, place: str, name: str) -> dict:
        """`createInstances`: machines with the names of the request."""
        json_format.ParseDict(call.body, compute_v1.InstanceGroupManagersCreateInstancesRequest.pb()())

        def make():
            self._found("instanceGroupManagers", name)
            names = [instance["name"] for instance in call.body["instances"]]
            if taken := set(names) & set(self.groups[name].machines):
                raise Refused(409, "ALREADY_EXISTS", f"instances {sorted(taken)} already exist")
            self._start(name, names)

        return self._operation(call, place, make)

    def list_things(self, call: Call, project: str, place: str, collection: str) -> dict:
        """`list`, with the one form of a filter that is used."""
        pattern = re.fullmatch(r"name eq (.*)", call.query["filter"])[1]
        found = [body for name, body in self.things[collection].items() if re.fullmatch(pattern, name)]
        return {"items": found} if found else {}

    def list_instances(self, call: Call, project: str, place: str, name: str) -> dict:
        """`listManagedInstances`."""
        self._found("instanceGroupManagers", name)
        return {"managedInstances": [self._shown(machine) for machine in self.groups[name].machines.values()]}

    def delete(self, call: Call, project: str, place: str, collection: str, name: str) -> dict:
        """`delete`; of a group, with its machines."""
        self._found(collection, name)

        def remove():
            users = [
                g["name"]
                for g in self.things["instanceGroupManagers"].values()
                if g["instanceTemplate"].endswith("/" + name)
            ]
            if collection != "instanceGroupManagers" and users:
                raise Refused(400, "INVALID_ARGUMENT", f"'{name}' is already being used by '{users[0]}'")
            if collection == "instanceGroupManagers":
                self._close(self.groups.pop(name))
            del self.things[collection][name]

        return self._operation(call, place, remove)

    def wait_operation(self, call: Call, project: str, place: str, name: str) -> dict:
        """`wait`: done by now."""
        time.sleep(SECONDS_IN_A_STATE)
        self.operations[name]["status"] = "DONE"
        return self.operations[name]

    def warn(self, name: str) -> None:
        """Announce that a machine will be taken back."""
        self._machine(name).metadata.warn()

    def preempt(self, name: str) -> None:
        """Take a machine back, or end its hours: delete it, as its `instanceTerminationAction` says."""
        with self.lock:
            group = name.rpartition("-")[0]
            scheduling = self.things["instanceTemplates"][group]["properties"]["scheduling"]
            assert scheduling["instanceTerminationAction"] == "DELETE", scheduling
            machine = self.groups[group].machines.pop(name)
            machines.kill(machine.process)
            machine.metadata.close()

    def left(self) -> list[str]:
        """All resources that exist."""
        return [f"{collection}/{name}" for collection, things in self.things.items() for name in things]

    def _machine(self, name: str) -> Machine:
        return self.groups[name.rpartition("-")[0]].machines[name]

    def _check(self, collection: str, body: dict) -> None:
        kind = TYPES[collection]
        try:
            json_format.ParseDict(body, kind.pb(kind()))
        except json_format.ParseError as error:
            raise Refused(400, "INVALID_ARGUMENT", str(error)) from None
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", body["name"]):
            raise Refused(400, "INVALID_ARGUMENT", f"Invalid value for field 'resource.name': '{body['name']}'")

    def _need(self, url: str, collection: str) -> None:
        if url.rpartition("/")[2] not in self.things[collection]:
            raise Refused(404, "NOT_FOUND", f"The resource '{url}' was not found")

    def _found(self, collection: str, name: str) -> dict:
        if name not in self.things[collection]:
            raise Refused(404, "NOT_FOUND", f"The resource '{collection}/{name}' was not found")
        return self.things[collection][name]

    def _operation(self, call: Call, place: str, act) -> dict:
        """Carry out a request, once for each request identifier; the answer is an operation that is not done yet."""
        if known := self.by_request.get(call.query.get("requestId", "")):
            return known
        act()
        name = f"operation-{next(self._numbers)}"
        operation = {"name": name, "status": "RUNNING", "targetLink": call.path}
        self.operations[name] = operation
        if "requestId" in call.query:
            self.by_request[call.query["requestId"]] = operation
        return operation

    def _start(self, group: str, names: list[str]) -> None:
        template = self._found("instanceTemplates", self.groups[group].body["instanceTemplate"].rpartition("/")[2])
        attributes = {item["key"]: item.get("value", "") for item in template["properties"]["metadata"]["items"]}
        for name in names:
            machine = Machine(name, Metadata(name, attributes))
            self.groups[group].machines[name] = machine
            threading.Thread(target=self._boot, args=(group, machine, attributes), daemon=True).start()

    def _boot(self, group: str, machine: Machine, attributes: dict[str, str]) -> None:
        for status in ("STAGING", "RUNNING"):
            time.sleep(SECONDS_IN_A_STATE)
            machine.status = status
        with self.lock:
            if group not in self.groups:
                return
            environment = {"GCE_METADATA_HOST": machine.metadata.address, **self.environment}
            environment["TPULLM_HOME"] = str(self.folder / machine.name / "home")
            machine.process = machines.start(attributes["startup-script"], self.folder / machine.name, environment)

    def _shown(self, machine: Machine) -> dict:
        shown = {"name": machine.name, "instanceStatus": machine.status, "currentAction": "NONE"}
        if machine.status in ("PROVISIONING", "STAGING"):
            shown["currentAction"] = "CREATING"
        return shown

    def _close(self, group: Group) -> None:
        for machine in group.machines.values():
            if machine.process:
                machines.kill(machine.process)
            machine.metadata.close()
