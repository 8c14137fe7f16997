"""Compute Engine on this machine: templates, policies, networks and managed groups with the states of machines.

It follows the documentation. Each call is an operation that is done when it is waited for. A request
whose identifier came before does nothing. A group needs its template, which can't be deleted before the group.
"""

import itertools
import re

from tests.launch.rest import Call, Refused, Rest

PROJECT = "/compute/v1/(projects/[^/]+)"
PLACE = PROJECT + "/((?:zones|regions)/[^/]+|global)"
COLLECTIONS = ("instanceTemplates", "resourcePolicies", "instanceGroupManagers", "networks", "subnetworks", "firewalls")
STATES = ("PROVISIONING", "STAGING", "RUNNING")


class FakeCompute(Rest):
    """The service.

    Attributes:
        machines: the state of each machine, by group and name.
    """

    def __init__(self):
        kind = f"/({'|'.join(COLLECTIONS)})"
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
        self.things: dict[str, dict[str, dict]] = {collection: {} for collection in COLLECTIONS}
        self.machines: dict[str, dict[str, str]] = {}
        self.made: list[str] = []
        self.operations: dict[str, dict] = {}
        self.by_request: dict[str, dict] = {}
        self._numbers = itertools.count(1)

    def insert(self, call: Call, project: str, place: str, collection: str) -> dict:
        name = call.body["name"]

        def make():
            if name in self.things[collection]:
                full = f"{project}/{place}/{collection}/{name}"
                raise Refused(409, "ALREADY_EXISTS", f"The resource '{full}' already exists")
            if "network" in call.body:
                self._need(call.body["network"], "networks")
            if collection == "instanceGroupManagers":
                self._need(call.body["instanceTemplate"], "instanceTemplates")
                names = [f"{name}-{number:04x}" for number in range(call.body.get("targetSize", 0))]
                self.machines[name] = dict.fromkeys(names, STATES[0])
            self.things[collection][name] = call.body
            self.made.append(f"{collection}/{name}")

        return self._operation(call, place, make)

    def create_instances(self, call: Call, project: str, place: str, name: str) -> dict:
        def make():
            self._found("instanceGroupManagers", name)
            names = [instance["name"] for instance in call.body["instances"]]
            if taken := set(names) & set(self.machines[name]):
                raise Refused(409, "ALREADY_EXISTS", f"instances {sorted(taken)} already exist")
            self.machines[name] |= dict.fromkeys(names, STATES[0])

        return self._operation(call, place, make)

    def list_things(self, call: Call, project: str, place: str, collection: str) -> dict:
        """`list`, with the one form of a filter that is used."""
        pattern = re.fullmatch(r"name eq (.*)", call.query["filter"])[1]
        found = [body for name, body in self.things[collection].items() if re.fullmatch(pattern, name)]
        return {"items": found} if found else {}

    def list_instances(self, call: Call, project: str, place: str, name: str) -> dict:
        """`listManagedInstances`; then each machine is one state further."""
        self._found("instanceGroupManagers", name)
        shown = [{"name": each, "instanceStatus": state} for each, state in self.machines[name].items()]
        for each, state in self.machines[name].items():
            self.machines[name][each] = STATES[min(STATES.index(state) + 1, len(STATES) - 1)]
        return {"managedInstances": shown}

    def delete(self, call: Call, project: str, place: str, collection: str, name: str) -> dict:
        self._found(collection, name)

        def remove():
            groups = self.things["instanceGroupManagers"].values()
            users = [group["name"] for group in groups if group["instanceTemplate"].endswith("/" + name)]
            if collection != "instanceGroupManagers" and users:
                raise Refused(400, "INVALID_ARGUMENT", f"'{name}' is already being used by '{users[0]}'")
            if collection == "instanceGroupManagers":
                del self.machines[name]
            del self.things[collection][name]

        return self._operation(call, place, remove)

    def wait_operation(self, call: Call, project: str, place: str, name: str) -> dict:
        self.operations[name]["status"] = "DONE"
        return self.operations[name]

    def left(self) -> list[str]:
        return [f"{collection}/{name}" for collection, things in self.things.items() for name in things]

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
