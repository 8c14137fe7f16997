"""The networks between GPUs: the requests that make them, and the interfaces of machines that use them."""

from ipaddress import ip_network
from itertools import combinations

import pytest
import yaml
from google.cloud import compute_v1

from tests.launch.conftest import CLOUD, job_of
from tests.launch.fake_compute import FakeCompute
from tpullm.cli.main import main
from tpullm.hardware.machines import MACHINES
from tpullm.launch import compute_engine, gpu_network, show
from tpullm.launch.job import LaunchConfig
from tpullm.system.errors import UserError

WITH_CARDS = [name for name, machine in MACHINES.items() if machine.fabric]
DEFAULT = ip_network("10.128.0.0/9")  # cloud.google.com/vpc/docs/subnets: of networks that make subnetworks themselves
PAIR = {"nodes": 2, "gpu_network": "gpus"}


def config(machine, **settings):
    return LaunchConfig(**CLOUD | PAIR | {"machine": machine} | settings)


def bodies(machine, collection):
    made = [request for request in gpu_network.requests(config(machine)) if f"/{collection}?" in request.url]
    return {request.body["name"]: request.body for request in made}


@pytest.mark.parametrize("machine", WITH_CARDS)
def test_every_interface_has_a_subnetwork_of_its_own_that_was_made(machine):
    subnetworks, networks = bodies(machine, "subnetworks"), bodies(machine, "networks")
    interfaces = gpu_network.interfaces(config(machine))
    used = [each["subnetwork"].removeprefix("regions/us-central1/subnetworks/") for each in interfaces]
    assert sorted(used) == sorted(subnetworks) and len(set(used)) == len(used)
    assert {each["network"].rpartition("/")[2] for each in subnetworks.values()} == set(networks)
    assert all(each["nicType"] in compute_v1.NetworkInterface.NicType.__members__ for each in interfaces)
    # Compute Engine refuses a machine with overlapping subnetworks; and all are within what the firewall lets in.
    ranges = [ip_network(each["ipCidrRange"]) for each in subnetworks.values()]
    assert not any(one.overlaps(other) for one, other in combinations([*ranges, DEFAULT], 2))
    assert all(each.subnet_of(ip_network(gpu_network.ADDRESSES)) for each in ranges)


def test_cards_by_transport():
    """TCPXO has a network a card; RDMA has one for all cards, and a second ordinary card."""
    kinds = {machine: [each["nicType"] for each in gpu_network.interfaces(config(machine))] for machine in WITH_CARDS}
    assert kinds == {
        "a3-highgpu-8g": ["GVNIC"] * 4,
        "a3-megagpu-8g": ["GVNIC"] * 8,
        "a3-ultragpu-8g": ["GVNIC"] + ["MRDMA"] * 8,
        "a4-highgpu-8g": ["GVNIC"] + ["MRDMA"] * 8,
    }
    assert [len(bodies(machine, "networks")) for machine in kinds] == [4, 8, 2, 2]
    assert {each["mtu"] for each in bodies("a3-megagpu-8g", "networks").values()} == {8244}
    rdma = bodies("a4-highgpu-8g", "networks")
    assert rdma["gpus"]["networkProfile"] == "projects/my-project/global/networkProfiles/us-central1-a-vpc-roce"
    assert "networkProfile" not in rdma["gpus-host"] and list(bodies("a4-highgpu-8g", "firewalls")) == ["gpus-host"]


@pytest.mark.parametrize("machine", WITH_CARDS)
def test_machines_are_told_to_set_gpudirect_up_only_with_their_cards(machine):
    """A machine alone, or without the networks, has its own card only, and several are told what they miss."""
    for settings, cards in ((PAIR, True), (PAIR | {"nodes": 1}, False), ({"nodes": 2}, False)):
        work = job_of("compute", "pretrain", machine=machine, **settings)
        compute_engine.check(work)
        template = next(r for r in compute_engine.requests(work, 1) if "Template" in r.call)
        asked = template.body["properties"]
        told = {item["key"]: item["value"] for item in asked["metadata"]["items"]}
        assert ("tpullm-gpudirect" in told) is (len(asked["networkInterfaces"]) > 1) is cards
        if cards:
            transport, count = told["tpullm-gpudirect"].split()
            kinds = [each["nicType"] for each in asked["networkInterfaces"][1:]]
            assert kinds.count({"tcpxo": "GVNIC", "rdma": "MRDMA"}[transport]) == int(count)
        missed = any("talk over one network card" in line for line in show.terms(work))
        assert missed is (settings == {"nodes": 2})


def test_what_can_not_have_such_networks_is_refused():
    with pytest.raises(UserError, match="gpu_network: a2-ultragpu-8g has no network cards for its GPUs; leave it out"):
        gpu_network.requests(config("a2-ultragpu-8g"))
    with pytest.raises(UserError, match="gpu_network: n2-standard-8 has no network cards"):
        compute_engine.check(job_of("compute", "pretrain", machine="n2-standard-8", gpu_network="gpus"))
    with pytest.raises(UserError, match="gpu_network: is needed"):
        gpu_network.requests(config("a4-highgpu-8g", gpu_network=""))


WORDS = ["launch", "compute", "networks", "--machine=a4-highgpu-8g", "--gpu_network=gpus"]
WORDS += [f"--{key}={value}" for key, value in CLOUD.items()]


def test_networks_are_made_once_as_a_dry_run_shows(capsys, address):
    assert main([*WORDS, "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["requests"]
    assert shown == [request.rest() for request in gpu_network.requests(config("a4-highgpu-8g"))]
    # Networks before their subnetworks; again, what is there is left as it is.
    with FakeCompute() as service:
        address("COMPUTE", service)
        assert main(WORDS) == 0
        made = list(service.made)
        service.by_request.clear()  # Compute Engine forgets them after an hour
        assert main(WORDS) == 0
    assert service.made == made and len(made) == 2 + 9 + 1
    assert made.index("networks/gpus") < made.index("subnetworks/gpus-0")
    assert "networks/gpus: is there" in capsys.readouterr().err
