"""Machine types agree with their names and with the chips' entries."""

import re

import pytest

from tpullm.hardware import machines
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.machines import MACHINES, RDMA
from tpullm.system.errors import UserError

WITH_GPUS = [name for name, machine in MACHINES.items() if machine.gpus]


@pytest.mark.parametrize("name", WITH_GPUS)
def test_a_machine_type_has_what_its_name_says(name):
    """The number in a name is that of the GPUs (`-8g`) or, of G2, of the vCPUs; whole machines alone have cards."""
    found = machines.find(name)
    number = int(re.search(r"-(\d+)g?$", name)[1])
    assert (found.gpus if name.endswith("g") else found.vcpus) == number and found.name == name
    assert found.gpu and (found.devices, found.extras) == (found.gpus, "cuda,gcp")
    assert found.gpu not in CHIPS or found.gpu_name in CHIPS[found.gpu].device_kinds
    # 11.3 GiB a vCPU in A2 mega, 17.7 in A4; 4 in G2: Google has no machine with GPUs outside of these.
    assert 4 <= found.memory_gib / found.vcpus <= 18
    assert set(found.provisioning) <= {"spot", "on_demand", "reserved"} and "spot" in found.provisioning
    if found.fabric:
        assert found.gpus == 8 and found.gpus % found.fabric.cards == 0
        assert (found.fabric.transport == RDMA) == (found.disk == "hyperdisk-balanced")
    assert found.reservation_bound == ("on_demand" not in found.provisioning)


def test_the_published_machines():
    """As Google's page of accelerator-optimized machines has them: GPUs, vCPUs, GiB."""
    published = {
        "a2-ultragpu-8g": (8, 96, 1360),
        "a3-highgpu-1g": (1, 26, 234),
        "a3-highgpu-8g": (8, 208, 1872),
        "a3-megagpu-8g": (8, 208, 1872),
        "a3-ultragpu-8g": (8, 224, 2952),
        "a4-highgpu-8g": (8, 224, 3968),
        "g2-standard-96": (8, 96, 384),
    }
    found = {name: machines.find(name) for name in published}
    assert {name: (each.gpus, each.vcpus, each.memory_gib) for name, each in found.items()} == published


@pytest.mark.parametrize(
    "name, says",
    [
        ("a3-highgpu-3g", "there is no a3-highgpu-3g; there are a3-highgpu-1g (1 GPU), a3-highgpu-2g (2 GPUs)"),
        ("a4-highgpu-4g", "there is no a4-highgpu-4g; there are a4-highgpu-8g (8 GPUs)"),
        ("h200", "there is no h200; machines with h200 are a3-ultragpu-8g"),
        ("a3-mega", "there is no a3-mega; the nearest are a3-megagpu-8g"),
    ],
)
def test_an_unknown_machine_type_names_the_nearest(name, says):
    with pytest.raises(UserError) as error:
        machines.find(name)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, provisioning, says",
    [
        ("a3-highgpu-4g", "on_demand", "does not offer a3-highgpu-4g on_demand; use spot"),
        ("a4-highgpu-8g", "on_demand", "does not offer a4-highgpu-8g on_demand; use spot or reserved"),
    ],
)
def test_a_way_to_pay_that_is_not_offered(name, provisioning, says):
    with pytest.raises(UserError, match=says):
        machines.check_provisioning(machines.find(name), provisioning)
    machines.check_provisioning(machines.find(name), "spot")
    machines.check_provisioning(machines.find("n2-standard-8"), provisioning)


def test_a_gpu_costs_as_much_as_its_share_of_a_machine():
    """Of the smallest machine per GPU: others of a G2 have more processors."""
    for key in (name for name, chip in CHIPS.items() if chip.gpu and chip.dollars_per_hour):
        of = [machine for machine in MACHINES.values() if machine.gpu == key]
        least = min(machine.dollars_an_hour / machine.gpus for machine in of)
        assert CHIPS[key].dollars_per_hour["on_demand"] == pytest.approx(least, rel=0.01)
