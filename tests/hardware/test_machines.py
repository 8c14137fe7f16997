"""Machine types agree with their names and with the chips' entries."""

import re

import pytest

from tpullm.hardware import machines
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.machines import MACHINES
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
    assert not found.cards or found.gpus == 8 and found.gpus % found.cards == 0
    assert found.node_label.startswith("nvidia-")
    assert found.reservation_bound == ("on_demand" not in found.provisioning)


def test_the_published_machines_their_price_and_the_ways_to_pay():
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
    # Of the smallest machine per GPU: others of a G2 have more processors.
    for key in (name for name, chip in CHIPS.items() if chip.gpu and chip.dollars_per_hour):
        of = [machine for machine in MACHINES.values() if machine.gpu == key]
        least = min(machine.dollars_an_hour / machine.gpus for machine in of)
        assert CHIPS[key].dollars_per_hour["on_demand"] == pytest.approx(least, rel=0.01)
    for name, others in (("a3-highgpu-4g", "spot"), ("a4-highgpu-8g", "spot or reserved")):
        with pytest.raises(UserError, match=f"does not offer {name} on_demand; use {others}"):
            machines.check_provisioning(machines.find(name), "on_demand")
        machines.check_provisioning(machines.find(name), "spot")
    machines.check_provisioning(machines.find("n2-standard-8"), "on_demand")


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
