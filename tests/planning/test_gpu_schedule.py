"""The time of a small GPU program, counted by hand."""

import pytest

from tpullm.hardware.topologies import parse
from tpullm.planning.gpu_schedule import LAUNCH, schedule

KNOWN = ', backend_config={"known_trip_count":{"n":"%d"}}'


def program(turns: str = "", most: int = 6) -> str:
    """A loop that copies 2 MiB each turn."""
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
    (item,) = schedule(program(turns), topology)
    each = 2 * 2 * 1024**2 / (topology.chip.hbm_bandwidth * topology.chip.hbm_efficiency) + LAUNCH
    assert item.times == count and item.seconds == pytest.approx(count * each)
