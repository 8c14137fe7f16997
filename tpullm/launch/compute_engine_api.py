"""Compute Engine's API: create, list and delete the kinds of resources of a launch, and wait for the operations."""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from tpullm.launch import google_api
from tpullm.launch.google_api import Request
from tpullm.system.errors import TryAgain, UserError

HOST = "compute.googleapis.com"
SECONDS_FOR_OPERATION = 240.0


@dataclass(frozen=True)
class Kind:
    """One kind of resource.

    Args:
        name: name of the kind in calls, such as `InstanceTemplate`.
        collection: name of the kind in paths, such as `instanceTemplates`.
    """

    name: str
    collection: str

    @property
    def client(self) -> str:
        """Class of the client library."""
        return f"compute_v1.{self.collection[0].upper()}{self.collection[1:]}Client"

    @property
    def key(self) -> str:
        """The field of a message that names a resource."""
        return google_api.lower_first(self.name)


TEMPLATE = Kind("InstanceTemplate", "instanceTemplates")
GROUP = Kind("InstanceGroupManager", "instanceGroupManagers")
POLICY = Kind("ResourcePolicy", "resourcePolicies")
NETWORK = Kind("Network", "networks")
SUBNETWORK = Kind("Subnetwork", "subnetworks")
FIREWALL = Kind("Firewall", "firewalls")


@dataclass(frozen=True)
class Scope:
    """Where a resource is: in a zone, in a region, or global."""

    project: str
    zone: str = ""
    region: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a message."""
        place = {"zone": self.zone, "region": self.region}
        return {"project": self.project} | {key: value for key, value in place.items() if value}

    @property
    def path(self) -> str:
        """The beginning of a path."""
        place = "zones/{zone}" if self.zone else "regions/{region}" if self.region else "global"
        return f"compute/v1/projects/{{project}}/{place}"


def insert(kind: Kind, scope: Scope, request_id: str, body: dict[str, Any]) -> Request:
    """Create a resource."""
    field = f"{kind.key}Resource"
    message = scope.fields | {"requestId": request_id, field: body}
    path = f"{scope.path}/{kind.collection}"
    return Request(kind.client, f"Insert{kind.name}", "POST", path, HOST, message, field, function="insert_unary")


def create_instances(scope: Scope, group: str, request_id: str, names: list[str]) -> Request:
    """Create machines of a group, with these names."""
    field = "instanceGroupManagersCreateInstancesRequestResource"
    body = {"instances": [{"name": name} for name in names]}
    message = scope.fields | {GROUP.key: group, "requestId": request_id, field: body}
    path = f"{scope.path}/{GROUP.collection}/{{{GROUP.key}}}/createInstances"
    kind, function = "CreateInstancesInstanceGroupManagerRequest", "create_instances_unary"
    return Request(GROUP.client, "CreateInstances", "POST", path, HOST, message, field, kind, function)


def list_all(kind: Kind, scope: Scope, pattern: str) -> list[dict[str, Any]]:
    """All resources whose whole name matches the pattern."""
    plural = {"ResourcePolicy": "ResourcePolicies"}.get(kind.name, f"{kind.name}s")
    message = scope.fields | {"filter": f"name eq {pattern}"}
    path = f"{scope.path}/{kind.collection}"
    return google_api.send(Request(kind.client, f"List{plural}", "GET", path, HOST, message, function="list"))


def instances(scope: Scope, group: str) -> list[dict[str, Any]]:
    """The machines of a group, with their states."""
    path = f"{scope.path}/{GROUP.collection}/{{{GROUP.key}}}/listManagedInstances"
    kind, function = "ListManagedInstancesInstanceGroupManagersRequest", "list_managed_instances"
    message = scope.fields | {GROUP.key: group}
    return google_api.send(
        Request(GROUP.client, "ListManagedInstances", "POST", path, HOST, message, kind=kind, function=function)
    )


def create(request: Request) -> None:
    """Send a request that creates a resource, and wait until it is done. The resource may exist already."""
    with contextlib.suppress(google_api.Exists):
        _finish(request)


def delete(kind: Kind, scope: Scope, name: str) -> None:
    """Delete a resource, and wait until it is gone. It may be gone already."""
    path = f"{scope.path}/{kind.collection}/{{{kind.key}}}"
    message = scope.fields | {kind.key: name}
    with contextlib.suppress(google_api.Missing):
        _finish(Request(kind.client, f"Delete{kind.name}", "DELETE", path, HOST, message, function="delete_unary"))


def _finish(request: Request) -> None:
    """Send a request and wait for its operation; an error of the operation is raised."""
    scope = Scope(**{key: request.message.get(key, "") for key in ("project", "zone", "region")})
    operation = google_api.send(request)
    until = time.monotonic() + SECONDS_FOR_OPERATION
    while operation.get("status") != "DONE":
        if time.monotonic() > until:
            raise TryAgain(f"{HOST}: {operation['name']} is not done after {SECONDS_FOR_OPERATION:.0f} s")
        operation = google_api.send(_wait(scope, operation["name"]))
    for error in operation.get("error", {}).get("errors", []):
        raise refusal(error)


def _wait(scope: Scope, name: str) -> Request:
    """Ask for an operation. The answer comes when it is done, or after two minutes at the latest."""
    place = "Zone" if scope.zone else "Region" if scope.region else "Global"
    path = f"{scope.path}/operations/{{operation}}/wait"
    message = scope.fields | {"operation": name}
    call = f"Wait{place}Operation"
    return Request(f"compute_v1.{place}OperationsClient", call, "POST", path, HOST, message, function="wait")


def refusal(error: dict[str, Any]) -> Exception:
    """The exception for an error of an operation."""
    code, message = error.get("code", ""), google_api.one_line(error.get("message", ""))
    if code == "RESOURCE_ALREADY_EXISTS":
        return google_api.Exists(message)
    if "QUOTA" in code:
        return google_api.quota_error(message)
    if code in ("RESOURCE_NOT_READY", "INTERNAL_ERROR", "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE"):
        return TryAgain(f"{HOST}: {message}")
    return UserError(f"compute: refused ({code}: {message})")
