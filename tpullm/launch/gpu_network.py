"""Networks between the GPUs of several Compute Engine machines; `launch compute networks` makes them once a project.

`--gpu_network NAME` then gives each machine its cards (`machines.Fabric`). They are not a part of an
attempt: they cost nothing, and all launches of a project share them.

    tcpxo   networks NAME-0, NAME-1, ..., one a card, each with a subnetwork of its name
    rdma    network NAME with the subnetworks NAME-0, NAME-1, ..., one a card, and network NAME-host for the second
            ordinary card

Sources: GoogleCloudPlatform/cluster-toolkit, examples/machine-learning (a3-megagpu-8g, a3-ultragpu-8g, a4-highgpu-8g);
cloud.google.com/vpc/docs/rdma-network-profiles.
"""

from collections.abc import Sequence
from typing import Any

from tpullm.hardware import machines
from tpullm.hardware.machines import RDMA, Fabric
from tpullm.launch import google_api, job
from tpullm.launch.google_api import FIREWALL, NETWORK, SUBNETWORK, ComputeKind, Request
from tpullm.launch.job import LaunchConfig
from tpullm.launch.watch import with_retries
from tpullm.system.errors import UserError
from tpullm.system.log import say

# Private addresses that the project's default network (10.128.0.0/9) does not have; 4,096 a subnetwork.
ADDRESSES = "192.168.0.0/16"
PROTOCOLS = ("tcp", "udp", "icmp")


def check(config: LaunchConfig) -> None:
    """Refuse a network for machines that have no cards for it; `UserError` names the key."""
    if config.gpu_network and not machines.find(config.machine).fabric:
        raise UserError(f"gpu_network: {config.machine} has no network cards for its GPUs; leave it out")


def used(config: LaunchConfig) -> Fabric | None:
    """The cards that each machine gets. A machine alone needs none."""
    return machines.find(config.machine).fabric if config.gpu_network and config.nodes > 1 else None


def create(requests: Sequence[Request]) -> None:
    """Make the networks. One that exists already is left as it is."""
    for request in requests:
        with_retries(lambda request=request: google_api.create(request))
        say(f"{request.url.partition('?')[0].rpartition('/')[2]}/{request.body['name']}: is there")


def interfaces(config: LaunchConfig) -> list[dict[str, Any]]:
    """The network interfaces of a machine for its cards, after its own."""
    fabric = used(config)
    if not fabric:
        return []
    kinds = {"host": "GVNIC"} if fabric.transport == RDMA else {}
    kinds |= dict.fromkeys(range(fabric.cards), "MRDMA" if fabric.transport == RDMA else "GVNIC")
    subnetwork = f"regions/{config.region}/subnetworks/{config.gpu_network}"
    return [{"nicType": kind, "subnetwork": f"{subnetwork}-{card}"} for card, kind in kinds.items()]


def requests(config: LaunchConfig) -> Sequence[Request]:
    """All requests that make the networks, in order.

    Raises:
        UserError: a key is missing, or the machines have no cards for such networks.
    """
    job.require(config, "compute", "project", "zone", "machine", "gpu_network")
    check(config)
    fabric, name = machines.find(config.machine).fabric, config.gpu_network
    cards = [f"{name}-{card}" for card in range(fabric.cards)]
    if fabric.transport != RDMA:
        return [request for card, each in enumerate(cards) for request in _ordinary_network(config, fabric, each, card)]
    # The name of a profile: cloud.google.com/vpc/docs/rdma-network-profiles. Its networks have no firewall.
    profile = f"projects/{config.project}/global/networkProfiles/{config.zone}-vpc-roce"
    return [
        *_ordinary_network(config, fabric, f"{name}-host", fabric.cards),
        _network_request(config, name, {"mtu": fabric.mtu, "networkProfile": profile}),
        *(_subnetwork_request(config, each, name, card) for card, each in enumerate(cards)),
    ]


def _ordinary_network(config: LaunchConfig, fabric: Fabric, name: str, number: int) -> list[Request]:
    """A network with one subnetwork, whose machines reach each other."""
    allowed = [{"IPProtocol": protocol} for protocol in PROTOCOLS]
    rule = {"network": _network_path(config, name), "sourceRanges": [ADDRESSES], "allowed": allowed}
    return [
        _network_request(config, name, {"mtu": fabric.mtu}),
        _subnetwork_request(config, name, name, number),
        _insert_request(config, FIREWALL, "global", {"name": name, **rule}),
    ]


def _network_request(config: LaunchConfig, name: str, fields: dict[str, Any]) -> Request:
    routing = {"routingMode": "REGIONAL"}
    body = {"name": name, "autoCreateSubnetworks": False, "routingConfig": routing, **fields}
    return _insert_request(config, NETWORK, "global", body)


def _subnetwork_request(config: LaunchConfig, name: str, network: str, number: int) -> Request:
    body = {"name": name, "network": _network_path(config, network), "ipCidrRange": f"192.168.{16 * number}.0/20"}
    return _insert_request(config, SUBNETWORK, f"regions/{config.region}", body)


def _network_path(config: LaunchConfig, network: str) -> str:
    return f"projects/{config.project}/global/networks/{network}"


def _insert_request(config: LaunchConfig, kind: ComputeKind, place: str, body: dict[str, Any]) -> Request:
    identifier = google_api.request_id(config.project, config.region, kind.name, body["name"])
    return kind.insert(f"projects/{config.project}/{place}", identifier, body)
