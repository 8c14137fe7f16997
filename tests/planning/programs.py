"""Small programs as the TPU compiler writes them, and the slice that they are for."""

# ruff: noqa: E501 (lines of a program are as long as they are)

import itertools

from tpullm.hardware.topologies import parse

TOPOLOGY = parse("v5e:16x16")
TORUS = TOPOLOGY, tuple(itertools.product(range(16), range(16)))
MESH = {"data": 1, "fsdp": 256, "expert": 1, "sequence": 1, "tensor": 1}
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
LINES = "replica_groups={{" + ",".join(str(n) for n in range(16)) + "}}"
PRODUCT = f'%product = bf16[8192,4096]{{1,0}} fusion(%x, %w), kind=kOutput, calls=%fused, metadata={{op_name="jit(step)/jvp()/while/body/feed_forward/dot_general"}}, {CYCLES % 1_500_000}'
GATHER = f'%gather = bf16[4096,4096]{{1,0}} all-gather(%w), channel_id=1, {LINES}, dimensions={{0}}, metadata={{op_name="jit(step)/jvp()/while/body/feed_forward/all_gather"}}'


def looped(*lines: str, turns: int = 32, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"""HloModule jit_step, is_scheduled=true

%fused (a: bf16[8,8]) -> bf16[8,8] {{
  ROOT %a = bf16[8,8]{{1,0}} parameter(0)
}}

%gathering (b: bf16[256,4096]) -> bf16[4096,4096] {{
  %b = bf16[256,4096]{{1,0}} parameter(0)
  ROOT %all-gather.9 = bf16[4096,4096]{{1,0}} all-gather(%b), channel_id=9, {LINES}, dimensions={{0}}
}}, execution_thread="sparsecore"

%body (p: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
{body}
  ROOT %out = (s32[], bf16[8,8]) tuple(%i, %x)
}}

%condition (q: (s32[], bf16[8,8])) -> pred[] {{
  %most = s32[] constant({turns})
  ROOT %less = pred[] compare(%i, %most), direction=LT
}}

ENTRY %main (r: bf16[8,8]) -> bf16[8,8] {{
  %r = bf16[8,8]{{1,0}} parameter(0){before and chr(10) + "  " + before}
  ROOT %while = (s32[], bf16[8,8]) while(%start), condition=%condition, body=%body
}}
"""
