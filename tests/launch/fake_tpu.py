"""The parts of Google that `launch tpu-vm` needs: the Cloud TPU API in REST form, and the machines' metadata server.

A queued resource waits, is provisioned, and becomes active; then the start-up script of each of its machines runs here,
as a process group. What the API answers can be scripted: 429, 503, no quota, or an answer that is lost.
"""

import json
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from google.cloud import tpu_v2
from google.protobuf import json_format

TOKEN = "ya29.a-secret-that-is-never-shown"
ACTIVE, SUSPENDED, FAILED, DELETING = "ACTIVE", "SUSPENDED", "FAILED", "DELETING"
WAY = ("WAITING_FOR_RESOURCES", "PROVISIONING", ACTIVE)  # one step at each list request
HOSTS = {"v5litepod-4": 1, "v5litepod-16": 4}
LOST = "lost"  # the request is carried out, then the connection is closed
QUOTA = (429, "Quota limit 'TPUV5sPreemptiblePerProjectPerZone' has been exceeded. Limit: 0 in zone us-west4-a.")
BUSY = (429, "Too many requests; try again later.")
AWAY = (503, "The service is currently unavailable.")
NO_CAPACITY = {"code": 8, "message": "There is no more capacity in the zone us-west4-a; you can try in another zone"}


class Machine:
    """One host: its metadata, and the process group of its start-up script.

    Attributes:
        address: of the metadata server, as this machine sees it.
    """

    def __init__(self, address: str, attributes: dict[str, str], folder: Path, environment: dict[str, str]):
        self.address, self.attributes = address, attributes
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.folder, self._environment = folder, environment
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Run the start-up script, as a machine does when it boots."""
        self.folder.mkdir(parents=True, exist_ok=True)
        script = self.folder / "startup"
        script.write_text(self.attributes["startup-script"])
        script.chmod(0o700)
        own = {"GCE_METADATA_HOST": self.address, "TPULLM_HOME": str(self.folder / "home"), "HOME": str(self.folder)}
        with open(self.folder / "console", "ab") as console:
            self.process = subprocess.Popen(
                [script],
                cwd="/",
                env=self._environment | own,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the machine."""
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()


class FakeTpu:
    """The service.

    Args:
        folder: where machines have their files.
        environment: all variables of the start-up scripts; None runs no machines.

    Attributes:
        resources: what is there: name to its JSON, with its state.
        calls: how often each call (`POST name`) came that was not turned away.
        faults: what the next calls of a method are answered, in order; `None` is nothing special.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None):
        self.resources: dict[str, dict] = {}
        self.calls: Counter[str] = Counter()
        self.requests: list[dict] = []
        self.faults: dict[str, list] = {"POST": [], "GET": [], "DELETE": []}
        self.machines: dict[str, list[Machine]] = {}
        self.lock = threading.RLock()
        self._folder, self._environment = folder, environment
        self._server = _serve(_Api, self)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._metadata = _serve(_Metadata, self, "0.0.0.0")

    def close(self) -> None:
        """End the service and all machines."""
        for server in (self._server, self._metadata):
            server.shutdown()
            server.server_close()
        for machines in self.machines.values():
            for machine in machines:
                machine.kill()

    def made(self) -> list[str]:
        """The names in all create requests."""
        return [name.split()[1] for name in self.calls if name.startswith("POST")]

    def set(self, name: str, state: str, error: dict | None = None) -> None:
        """Set the state of a resource; its machines end unless it is ACTIVE."""
        with self.lock:
            resource = self.resources[name]
            resource["state"] = {"state": state} | ({"failedData": {"error": error}} if error else {})
            if state == ACTIVE:
                self._boot(name, resource)
            else:
                for machine in self.machines.pop(name, []):
                    machine.kill()

    def preempt(self, name: str, seconds: float = 0.0) -> None:
        """Take the machines back: announce it, wait some seconds, end them and suspend the resource."""
        for machine in self.machines.get(name, []):
            machine.values["preempted"] = "TRUE"
        threading.Event().wait(seconds)
        with self.lock:
            if name in self.resources:
                self.set(name, SUSPENDED)

    def advance(self) -> None:
        """Move each resource one step on to ACTIVE, or out of DELETING."""
        for name, resource in list(self.resources.items()):
            state = resource["state"]["state"]
            if state == DELETING:
                del self.resources[name]
            elif state in WAY[:-1]:
                self.set(name, WAY[WAY.index(state) + 1])

    def _boot(self, name: str, resource: dict) -> None:
        if self._environment is None:
            return
        spec = resource["tpu"]["nodeSpec"][0]
        slices = spec.get("multisliceParams", {}).get("nodeCount", 1)
        count, node = HOSTS[spec["node"]["acceleratorType"]], spec["node"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        made = []
        for number in range(slices * count):
            env = f"MEGASCALE_NUM_SLICES: '{slices}'\nMEGASCALE_SLICE_ID: '{number // count}'\n" if slices > 1 else ""
            attributes = node["metadata"] | {
                "agent-worker-number": str(number % count),
                "worker-network-endpoints": ",".join(f"worker-{other}:{other}:127.0.0.1" for other in range(count)),
                "tpu-env": env + "ACCELERATOR_TYPE: 'x'\n",
            }
            address = f"127.0.0.{10 + number}:{self._metadata.server_port}"
            folder = self._folder / name / str(number)
            made.append(Machine(address, attributes, folder, self._environment | {"TPULLM_PORT": port}))
        self.machines[name] = made
        for machine in made:
            machine.start()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeTpu

    def log_message(self, *_) -> None:
        """Silent."""

    def answer(self, value, code: int = 200) -> None:
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Api(_Handler):
    def _handle(self) -> None:
        address = urlsplit(self.path)
        self._path, self._query = unquote(address.path), parse_qs(address.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with self.fake.lock:
            faults = self.fake.faults[self.command]
            fault = faults.pop(0) if faults else None
            if fault and fault != LOST:
                code, message = fault
                status = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 403: "PERMISSION_DENIED"}[code]
                return self.answer({"error": {"code": code, "message": message, "status": status}}, code)
            value, code = getattr(self, f"_{self.command.lower()}")(body)
        if fault == LOST:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.answer(value, code)

    do_GET = do_POST = do_DELETE = _handle

    def _post(self, body: str):
        name = self._query["queuedResourceId"][0]
        self.fake.calls[f"POST {name}"] += 1
        parsed = tpu_v2.QueuedResource()
        json_format.Parse(body, tpu_v2.QueuedResource.pb(parsed))  # refuses unknown fields
        resource = json_format.MessageToDict(tpu_v2.QueuedResource.pb(parsed))
        query = {key: values[0] for key, values in self._query.items() if not key.startswith("$")}
        self.fake.requests.append({"path": self._path, "query": query, "body": dict(resource)})
        if name in self.fake.resources:
            error = {"code": 409, "message": f"{name} already exists", "status": "ALREADY_EXISTS"}
            return {"error": error}, 409
        resource |= {"name": f"{self._path.removeprefix('/v2/')}/{name}", "state": {"state": WAY[0]}}
        self.fake.resources[name] = resource
        return {"name": self._path.removeprefix("/v2/").replace("queuedResources", "operations/op")}, 200

    def _get(self, body: str):
        assert self._path.endswith("/queuedResources"), self._path
        listed = json.loads(json.dumps(list(self.fake.resources.values())))
        self.fake.advance()
        return {"queuedResources": listed}, 200

    def _delete(self, body: str):
        name = self._path.rpartition("/")[2]
        self.fake.calls[f"DELETE {name}"] += 1
        if name not in self.fake.resources:
            return {"error": {"code": 404, "message": f"{name} not found", "status": "NOT_FOUND"}}, 404
        if self._query.get("force") != ["true"]:  # the API needs it while there are nodes
            error = {"code": 400, "message": f"{name} has nodes; delete them first", "status": "FAILED_PRECONDITION"}
            return {"error": error}, 400
        self.fake.set(name, DELETING)
        return {"name": "projects/p/locations/z/operations/op"}, 200


class _Metadata(_Handler):
    def do_GET(self) -> None:  # noqa: N802
        """A value of the machine to whose address the request came."""
        own = self.connection.getsockname()[0]
        machines = [machine for machines in self.fake.machines.values() for machine in machines]
        machine = next((machine for machine in machines if machine.address.startswith(f"{own}:")), None)
        key = self.path.removeprefix("/computeMetadata/v1/instance/")
        if machine is None or self.headers.get("Metadata-Flavor") != "Google":
            return self.answer("", 403)
        if key == "service-accounts/default/token":
            return self.answer({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})
        values = machine.values | {f"attributes/{name}": value for name, value in machine.attributes.items()}
        self.answer(values.get(key, ""), 200 if key in values else 404)


def _serve(handler: type, fake: FakeTpu, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    server = ThreadingHTTPServer((host, 0), type("Handler", (handler,), {"fake": fake}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server
