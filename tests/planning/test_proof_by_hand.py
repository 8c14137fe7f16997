"""What a proof says of a program whose instructions can be counted."""

import dataclasses

import pytest

from tests.planning.by_hand import DENSE, EXPERTS, TABLE
from tests.planning.programs import GATHER, PRODUCT, TORUS, looped
from tpullm.hardware.topologies import parse
from tpullm.planning.compiling import Executable, Job
from tpullm.planning.memory import of_device, resting
from tpullm.planning.proof import by_part, look_at, proof_of, refusal, traffic_of
from tpullm.planning.tpu_schedule import OBSERVED, schedule
from tpullm.recipe.schema import OptimizerConfig, TrainConfig

GIB = 1 << 30
CONFIG = TrainConfig(batch_size=256, sequence_length=256)
JOB = Job(DENSE, CONFIG, {"fsdp": -1}, parse("v5e:16x16"))
SEND = "%sent = (bf16[1024,1024]{1,0}, u32[], token[]) send(%x, %token), channel_id=6"
EVERYWHERE = "%sum = f32[1024]{0} all-reduce(%x), channel_id=4, replica_groups=[1,256]<=[256]"


def executable(*lines: str, **fields) -> Executable:
    text = looped(*lines, turns=4)
    return Executable(**{"text": text, "peak_bytes": GIB, "limit_bytes": 0, "places": TORUS[1]} | SAID | fields)


SAID = {"seconds": 60.0, "date": "2026-01-01T00:00:00", "evaluation_bytes": GIB // 2}


def test_a_proof_sums_a_programs_instructions():
    said = executable(PRODUCT, GATHER, EVERYWHERE)
    found = proof_of("mine", JOB, "hash", {"jax": "1"}, said)
    items = schedule(said.text, *TORUS)
    assert (found.recipe, found.topology, found.program, found.refused) == ("mine", "v5e:16x16", "hash", "")
    assert (found.peak_bytes, found.tokens, found.compile_seconds) == (GIB, 256 * 256, 60.0)
    assert found.step_seconds == pytest.approx(sum(item.seconds for item in items))
    assert found.seconds["feed-forward"] == pytest.approx(4e-3 * OBSERVED)
    assert found.seconds["waiting"] == pytest.approx(found.step_seconds - 4e-3 * OBSERVED)
    assert list(found.seconds.values()) == sorted(found.seconds.values(), reverse=True)
    assert found.limit_bytes == round(parse("v5e:16x16").chip.hbm_bytes)
    assert proof_of("mine", JOB, "hash", {}, dataclasses.replace(said, limit_bytes=5)).limit_bytes == 5
    rests = resting(DENSE, CONFIG.optimizer)
    state = of_device(rests.parameters + rests.optimizer, (1, 256, 1, 1, 1))
    assert found.state_bytes == pytest.approx(state, abs=1)


def test_an_evaluation_that_does_not_fit_is_refused():
    """Beside it lies the optimizer's state, which no evaluation has as its input."""
    sizes, rests = (1, 256, 1, 1, 1), resting(DENSE, CONFIG.optimizer)
    limit, optimizer = round(parse("v5e:16x16").chip.hbm_bytes), round(of_device(rests.optimizer, sizes))
    fits, not_ = (executable(PRODUCT, evaluation_bytes=limit - optimizer + more) for more in (0, 1))
    found = proof_of("mine", JOB, "hash", {}, fits)
    assert found.evaluation_bytes == limit and not found.refused and found.step_seconds
    found = proof_of("mine", JOB, "hash", {}, not_)
    assert found.peak_bytes == found.evaluation_bytes == limit + 1 and found.refused and not found.step_seconds


def test_traffic_by_axes_and_kind_the_dearest_first():
    look = look_at(JOB, executable(PRODUCT, GATHER, GATHER.replace("%gather", "%other"), EVERYWHERE))
    gathers, sums = traffic_of(look)
    assert (gathers.axes, gathers.kind, gathers.bytes) == ("fsdp", "all-gather", 2 * 4 * 2 * 4096 * 4096)
    assert (sums.axes, sums.kind, sums.bytes) == ("fsdp", "all-reduce", 4 * 4 * 1024)
    items = [item for item in look.items if item.collective and item.collective.kind == "all-gather"]
    assert gathers.exposed_seconds == pytest.approx(sum(item.seconds for item in items))
    assert gathers.seconds == pytest.approx(sum(item.busy_seconds for item in items))
    assert gathers.exposed_seconds > sums.exposed_seconds > 0
    alone = EVERYWHERE.replace("[1,256]<=[256]", "[256,1]<=[256]")
    assert len(traffic_of(look_at(JOB, executable(GATHER, alone)))) == 1  # a device alone exchanges nothing


def test_what_crosses_slices_is_traffic_between_slices():
    job = dataclasses.replace(JOB, mesh={"data": 2, "fsdp": 256}, topology=parse("2 x v5e:16x16"))
    look = look_at(job, executable(SEND))
    assert look.mesh == {"data": 1, "fsdp": 256, "expert": 1, "sequence": 1, "tensor": 1}
    (one,) = traffic_of(look)
    assert (one.axes, one.kind, one.bytes) == ("slices", "all-reduce", 4 * 2 * 1024 * 1024)
    assert one.seconds == pytest.approx(4 * 2 * 1024 * 1024 / 3.1e9 * OBSERVED) and one.exposed_seconds == 0


def test_parts_are_summed_by_their_place():
    named = PRODUCT.replace("feed_forward", "attention").replace("%product", "%scores")
    items = schedule(looped(PRODUCT, named, named.replace("%scores", "%out"), turns=1), *TORUS)
    assert by_part(items) == pytest.approx({"attention": 2e-3 * OBSERVED, "feed-forward": 1e-3 * OBSERVED})


def test_what_is_expected_of_a_program():
    """The largest parameter is the table, or one layer's largest, with all its experts; `tensor` splits it."""
    look = look_at(JOB, executable(PRODUCT))
    assert (look.tokens, look.vocabulary, look.largest_parameter) == (256, 1024, TABLE) and TABLE == 512 * 1024
    large = dataclasses.replace(JOB, model=dataclasses.replace(DENSE, vocabulary_size=1 << 16))
    assert look_at(large, executable(PRODUCT)).largest_parameter == 512 << 16
    experts = dataclasses.replace(JOB, model=EXPERTS)
    assert look_at(experts, executable(PRODUCT)).largest_parameter == 8 * 512 * 1024
    split = dataclasses.replace(JOB, mesh={"fsdp": 128, "tensor": 2})
    look = look_at(split, executable(PRODUCT))
    assert (look.tokens, look.vocabulary, look.largest_parameter) == (512, 512, TABLE // 2)


def refused(peak: int, state: int, model=DENSE, mesh=None, **config) -> str:
    job = Job(model, dataclasses.replace(CONFIG, **config), mesh or {"fsdp": -1}, parse("v5e:4x4"))
    return refusal(job, dataclasses.replace(executable(), peak_bytes=peak), state, 16 * GIB)


def test_a_refusal_names_what_is_largest_and_the_key_to_change():
    assert "20.0 GiB a chip of 16.0" in refused(20 * GIB, 5 * GIB)
    assert "activations and gathered parameters (15.0): set pretrain.accumulation to 2" in refused(20 * GIB, 5 * GIB)
    assert "activations and gathered parameters (10.0)" in refused(20 * GIB, 10 * GIB)  # as much is not more
    state = refused(20 * GIB, 11 * GIB)
    assert "parameters and optimizer (11.0): set pretrain.optimizer.moments to bfloat16, or take more chips" in state
    for optimizer in (OptimizerConfig(kind="adafactor"), OptimizerConfig(moments="bfloat16")):
        assert refused(20 * GIB, 11 * GIB, optimizer=optimizer).endswith("(11.0): take more chips (topology)")


def test_rows_are_cut_until_a_device_has_one():
    more = refused(20 * GIB, GIB, accumulation=8)
    assert more.endswith("set pretrain.accumulation to 16")
    least = refused(20 * GIB, GIB, accumulation=16, model=dataclasses.replace(DENSE, remat="none"))
    assert least.endswith("set model.remat to full")
    full = dataclasses.replace(DENSE, remat="full")
    assert "give mesh.sequence or mesh.tensor more devices" in refused(20 * GIB, GIB, accumulation=16, model=full)
    shared = refused(20 * GIB, GIB, accumulation=16, model=full, mesh={"fsdp": 8, "tensor": 2})
    assert shared.endswith("set pretrain.accumulation to 32")
