"""The time of a small GPU program, counted by hand."""

# ruff: noqa: E501 (lines of a program are as long as they are)

import pytest

from tpullm.hardware.topologies import parse
from tpullm.planning.gpu_schedule import LAUNCH, schedule_on_gpu

KNOWN = ', backend_config={"known_trip_count":{"n":"%d"}}'


def program(turns: str = "", most: int = 6) -> str:
    return f"""HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[1024,1024])) -> (s32[], bf16[1024,1024]) {{
  %x = bf16[1024,1024]{{1,0}} parameter(0)
  %copied = bf16[1024,1024]{{1,0}} copy(%x)
  ROOT %out = (s32[], bf16[1024,1024]) tuple(%i, %copied)
}}

%compared (c: s32[]) -> pred[] {{
  %c = s32[] parameter(0)
  %most = s32[] constant({most})
  ROOT %less = pred[] compare(%c, %most), direction=LT
}}

%condition (q: (s32[], bf16[1024,1024])) -> pred[] {{
  %i = s32[] get-tuple-element(%q), index=0
  ROOT %is_less = pred[] fusion(%i), kind=kLoop, calls=%compared
}}

ENTRY %main (r: bf16[1024,1024]) -> bf16[1024,1024] {{
  %r = bf16[1024,1024]{{1,0}} parameter(0)
  ROOT %while = (s32[], bf16[1024,1024]) while(%start), condition=%condition, body=%body{turns}
}}
"""


@pytest.mark.parametrize(("turns", "count"), [(KNOWN % 4, 4), ("", 6)])
def test_a_loop_runs_as_often_as_xla_knows_or_as_its_condition_says(turns, count):
    topology = parse("h100:1")
    (item,) = schedule_on_gpu(program(turns), topology)
    each = 2 * 2 * 1024**2 / (topology.chip.hbm_bandwidth * topology.chip.hbm_efficiency) + LAUNCH
    assert item.times == count and item.seconds == pytest.approx(count * each)


ENTRY = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[4096,2048], w: bf16[8,2048,1024], d: bf16[4096,1024]) -> bf16[4096,1024] {{
  %groups = s32[39]{{0}} parameter(0)
  %x = bf16[4096,2048]{{1,0}} parameter(1)
  %w = bf16[8,2048,1024]{{2,1,0}} parameter(2)
  %d = bf16[4096,1024]{{1,0}} parameter(3)
  ROOT %one = {}
}}
"""
FORWARD = 'bf16[4096,1024]{1,0} custom-call(%groups, %x, %w), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="shard_map/grouped_matmul/pallas_call"}'
WEIGHTS = 'bf16[8,2048,1024]{2,1,0} custom-call(%groups, %x, %d), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="shard_map/transpose(jvp(grouped_matmul_weights))/pallas_call"}'
UNFILLED = 'bf16[4096,1024]{1,0} custom-call(%x), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="shard_map/jvp(unfilled)/pallas_call"}'
EXCHANGE = "bf16[4096,1024]{1,0} ragged-all-to-all(%x, %d), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}"


@pytest.mark.parametrize("kernel", [FORWARD, WEIGHTS])
@pytest.mark.parametrize("filled", [1.0, 0.5])
def test_a_grouped_matmul_takes_as_long_as_its_rows_in_use(kernel, filled):
    """Two FLOPs for each of them and each number of a matrix, not of all matrices; and the gradient alike."""
    topology = parse("h100:1")
    (item,) = schedule_on_gpu(ENTRY.format(kernel), topology, filled)
    chip = topology.chip
    speed = chip.peak_flops * chip.matmul_efficiency * chip.grouped_efficiency
    assert item.seconds == pytest.approx(2 * 4096 * filled * 2048 * 1024 / speed + LAUNCH)


def test_few_rows_and_buffers_that_nobody_fills():
    topology = parse("h100:1")
    program = ENTRY.format(FORWARD).replace("4096", "16")
    (item,) = schedule_on_gpu(program, topology)
    moved = 2 * (16 * 2048 + 8 * 2048 * 1024 + 16 * 1024) + 4 * 39
    assert item.seconds == pytest.approx(moved / (topology.chip.hbm_bandwidth * topology.chip.hbm_efficiency) + LAUNCH)
    (item,) = schedule_on_gpu(ENTRY.format(UNFILLED), parse("h100:1"))
    assert item.seconds == LAUNCH
    whole, half = (schedule_on_gpu(ENTRY.format(EXCHANGE), parse("h100:8"), filled)[0] for filled in (1.0, 0.5))
    assert whole.collective.bytes == 4096 * 1024 * 2 and half.busy_seconds == whole.busy_seconds / 2 > 0
