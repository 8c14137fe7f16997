"""What one entry says agrees with itself and with the others."""

from itertools import chain

import pytest

from tpullm.hardware import machines
from tpullm.hardware.chips import CHIPS, of_kind
from tpullm.hardware.topologies import parse
from tpullm.system.errors import UserError


def test_no_two_chips_have_a_name_in_common():
    kinds = [*chain(*(chip.device_kinds for chip in CHIPS.values()))]
    families = [chip.cloud_tpu.name for chip in CHIPS.values() if chip.cloud_tpu]
    assert len(kinds) == len(set(kinds)) and len(families) == len(set(families))
    assert all(of_kind(kind) is chip for chip in CHIPS.values() for kind in chip.device_kinds)
    unknown = of_kind("a chip of tomorrow")
    assert unknown.peak_flops == 0 and unknown.slices is None and unknown.ragged_exchange


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.compute_engine])
def test_machines_form_slices_that_exist(name):
    engine = CHIPS[name].compute_engine
    for shape in engine.topologies.values():
        assert CHIPS[name].chips_per_host < parse(f"{name}:{shape}").chips
    for machine in engine.machines:
        assert machine.startswith(engine.family)
        of_slice = machines.find(machine)
        assert of_slice.dollars_an_hour == of_slice.devices * CHIPS[name].dollars_per_hour["on_demand"]
    if not engine.machines:
        with pytest.raises(UserError, match=f"launch {name} on tpu-vm, as {CHIPS[name].cloud_tpu.name}-N"):
            machines.find(f"{engine.family}hightpu-4t")


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.cloud_tpu])
def test_every_accelerator_is_whole_chips_of_whole_hosts(name):
    cloud = CHIPS[name].cloud_tpu
    for size in cloud.sizes:
        found = machines.find_slice(f"{cloud.name}-{size}")
        assert found.chips * cloud.cores == size and found.chips % found.hosts == 0
        assert found.hosts == 1 or found.chips == found.hosts * CHIPS[name].chips_per_host
        assert found.dollars_an_hour == found.chips * CHIPS[name].dollars_per_hour["on_demand"]


@pytest.mark.parametrize("name", CHIPS)
def test_what_can_be_planned_has_all_figures(name):
    chip = CHIPS[name]
    assert chip.peak_flops > 0
    if chip.slices:
        assert chip.dollars_per_hour["spot"] <= chip.dollars_per_hour["on_demand"]
        bandwidths = (chip.host_bandwidth, chip.dcn_bandwidth, chip.link_bandwidth, chip.hbm_bandwidth)
        assert 0 < bandwidths[1] <= bandwidths[2] <= bandwidths[3] and bandwidths[0] > 0
        assert 0 < chip.matmul_efficiency <= 1 and 0 < chip.attention_efficiency <= 1
        assert chip.hbm_bytes / 2**30 == pytest.approx(chip.memory_gib, rel=0.05) and chip.attention
