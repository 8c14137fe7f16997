"""The Cloud TPU API on this machine, in REST form, and the machines of its queued resources as processes.

A queued resource waits, is provisioned, and becomes active; then the start-up script of each of its machines runs. What
the API answers can be scripted: 429, 503, no quota, or an answer that is lost.
"""

import json
import socket
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from tests.launch import machines
from tests.launch.fake_metadata import Metadata
from tests.launch.rest import Call, Fault, Refused, Rest

TOKEN = "ya29.a-secret-that-is-never-shown"
ACTIVE, SUSPENDED, DELETING = "ACTIVE", "SUSPENDED", "DELETING"
WAY = ("WAITING_FOR_RESOURCES", "PROVISIONING", ACTIVE)  # one step at each list request
HOSTS = {"v5litepod-4": 1, "v5litepod-16": 4}
LOST = Fault("POST", "", done=True)  # the request is carried out, then the connection is closed
BUSY = Refused(429, "RESOURCE_EXHAUSTED", "Too many requests; try again later.")
RESOURCES = r"/v2/(projects/[^/]+/locations/[^/]+)/queuedResources"


class FakeTpu(Rest):
    """The service; a context manager.

    Args:
        folder: where machines have their files.
        environment: all variables of the start-up scripts; None runs no machines.

    Attributes:
        resources: what is there: name to its JSON, with its state.
        counts: how often each call (`POST name`) came that was not turned away.
        requests: path, query and body of each request that creates.
        machines: of each active resource: the metadata server and the process of each machine.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None):
        routes = [("POST", RESOURCES, self.create), ("GET", RESOURCES, self.list_all)]
        super().__init__([*routes, ("DELETE", RESOURCES + "/([^/]+)", self.delete)])
        self.resources: dict[str, dict] = {}
        self.counts: Counter[str] = Counter()
        self.requests: list[dict] = []
        self.machines: dict[str, list[tuple]] = {}
        self._folder, self._environment = folder, environment

    def __exit__(self, *_):
        super().__exit__()
        for name in list(self.machines):
            self._end(name)

    def create(self, call: Call, parent: str) -> dict:
        name = call.query["queuedResourceId"]
        self.counts[f"POST {name}"] += 1
        self.requests.append({"path": unquote(call.path), "query": call.query, "body": call.body})
        if name in self.resources:
            raise Refused(409, "ALREADY_EXISTS", f"{name} already exists")
        full = f"{parent}/queuedResources/{name}"
        self.resources[name] = call.body | {"name": full, "state": {"state": WAY[0]}}
        return {"name": f"{parent}/operations/op"}

    def list_all(self, call: Call, parent: str) -> dict:
        """`queuedResources.list`; then each resource moves one step on to ACTIVE, or out of DELETING."""
        listed = json.loads(json.dumps(list(self.resources.values())))
        for name, resource in list(self.resources.items()):
            state = resource["state"]["state"]
            if state == DELETING:
                del self.resources[name]
            elif state in WAY[:-1]:
                self.set(name, WAY[WAY.index(state) + 1])
        return {"queuedResources": listed}

    def delete(self, call: Call, parent: str, name: str) -> dict:
        self.counts[f"DELETE {name}"] += 1
        if name not in self.resources:
            raise Refused(404, "NOT_FOUND", f"{name} not found")
        if call.query.get("force") != "true":  # the API needs it while there are nodes
            raise Refused(400, "FAILED_PRECONDITION", f"{name} has nodes; delete them first")
        self.set(name, DELETING)
        return {"name": f"{parent}/operations/op"}

    def set(self, name: str, state: str) -> None:
        """Set the state of a resource; its machines end unless it is ACTIVE."""
        with self.lock:
            resource = self.resources[name]
            resource["state"] = {"state": state}
            if state != ACTIVE:
                self._end(name)
            elif self._environment is not None:
                self._boot(name, resource)

    def preempt(self, name: str, seconds: float = 0.0) -> None:
        """Take the machines back: announce it, wait some seconds, end them and suspend the resource."""
        for metadata, _ in self.machines.get(name, []):
            metadata.warn()
        threading.Event().wait(seconds)
        with self.lock:
            if name in self.resources:
                self.set(name, SUSPENDED)

    def _end(self, name: str) -> None:
        for metadata, process in self.machines.pop(name, []):
            machines.kill(process)
            metadata.close()

    def _boot(self, name: str, resource: dict) -> None:
        spec = resource["tpu"]["nodeSpec"][0]
        slices = spec.get("multisliceParams", {}).get("nodeCount", 1)
        count, node = HOSTS[spec["node"]["acceleratorType"]], spec["node"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        self.machines[name] = []
        for number in range(slices * count):
            env = f"MEGASCALE_NUM_SLICES: '{slices}'\nMEGASCALE_SLICE_ID: '{number // count}'\n" if slices > 1 else ""
            attributes = node["metadata"] | {
                "agent-worker-number": str(number % count),
                "worker-network-endpoints": ",".join(f"worker-{other}:{other}:127.0.0.1" for other in range(count)),
                "tpu-env": env + "ACCELERATOR_TYPE: 'x'\n",
            }
            metadata, folder = Metadata(name, attributes, TOKEN), self._folder / name / str(number)
            own = {"GCE_METADATA_HOST": metadata.address, "TPULLM_HOME": str(folder / "home"), "TPULLM_PORT": port}
            process = machines.start(attributes["startup-script"], folder, self._environment | own)
            self.machines[name].append((metadata, process))
