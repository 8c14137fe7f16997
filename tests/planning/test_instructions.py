"""Reading a compiled program: its lines are as the TPU compiler writes them."""

# ruff: noqa: E501 (lines of a program are as long as they are)

from tests.planning.hlo_text import collectives
from tpullm.planning.instructions import Collective

PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=4

%called_computation (param_0: bf16[8,64]) -> bf16[32,64] {
  %param_0 = bf16[8,64]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[32,64]{1,0:T(8,128)} all-gather(%param_0), replica_groups={{0,1},{2,3}}, metadata={op_name="jit(step)/while/body/gather"}
}, execution_thread="sparsecore"

%all-reduce-scatter.1 (param_1: bf16[32,64]) -> bf16[8,64] {
  %all-reduce.2 = bf16[40,64]{1,0} all-reduce(%param_1), channel_id=2, replica_groups=mesh['data'=2,'fsdp'=2] {'data'}
  ROOT %slice = bf16[8,64]{1,0} slice(%all-reduce.2), slice={[0:8], [0:64]}
}

%body (param_2: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %call-start = ((), (), (s32[1])) call-start(), async_execution_thread="sparsecore", to_apply=%called_computation
  %fusion = bf16[8,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %kernel = bf16[8,64]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="splash
}} and more of a kernel's own lines"}
  %reduce-scatter.3 = bf16[8,64]{1,0} reduce-scatter(%x), channel_id=3, replica_groups=[2,2]<=[2,2]T(1,0)
}

ENTRY %main (param_3: f32[16,16]) -> f32[] {
  %while = (s32[], bf16[8,64]) while(%tuple), condition=%condition, body=%body
  %start = (f32[4], f32[4]) collective-permute-start(%y), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce.5 = (f32[], f32[16]) all-reduce(%a, %b), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


def test_each_collective_is_found_with_what_it_is_and_its_groups_of_devices():
    found = {(one.kind, one.bytes): one for one in collectives(PROGRAM)}
    assert set(found) == {
        ("all-gather", 32 * 64 * 2),
        ("reduce-scatter", 40 * 64 * 2),  # with the padding of the fused form
        ("reduce-scatter", 16 * 64 * 2),
        ("collective-permute", 16),
        ("all-reduce", 4 + 64),
    }
    in_loop = {kind for (kind, _), one in found.items() if one.in_loop}
    assert in_loop == {"all-gather", "reduce-scatter"}
    waits = {key: not one.asynchronous for key, one in found.items()}
    assert not waits["all-gather", 32 * 64 * 2] and not waits["collective-permute", 16]
    assert waits["reduce-scatter", 16 * 64 * 2] and waits["all-reduce", 68]
    assert found["all-gather", 32 * 64 * 2].operation == "jit(step)/while/body/gather"
    groups = {(one.kind, one.bytes): one.devices() for one in collectives(PROGRAM)}
    assert groups["all-gather", 32 * 64 * 2] == [[0, 1], [2, 3]]
    assert groups["reduce-scatter", 40 * 64 * 2] == [[0, 2], [1, 3]]
    assert groups["reduce-scatter", 16 * 64 * 2] == [[0, 2], [1, 3]]
    assert groups["collective-permute", 16] == [[0, 1], [1, 0]]
    assert groups["all-reduce", 68] == [[0, 1, 2, 3]]
    whole = Collective("all-reduce", 4, "[1,4]<=[4]", "")
    assert whole.devices() == [[0, 1, 2, 3]]
    (one,) = collectives(
        "ENTRY %main (p: f32[16]) -> f32[4] {\n"
        "  ROOT %r = f32[4]{0} reduce-scatter(%p), channel_id=3, replica_groups={{0,1,2,3}}\n}\n"
    )
    assert one.bytes == 4 * 4 * 4 and one.devices() == [[0, 1, 2, 3]]


def test_a_ragged_exchange_counts_what_comes_out():
    """On a GPU its start names, among the inputs, the buffer that it writes and the sizes of chunks."""
    inputs = "(bf16[8,4]{1,0}, bf16[10,4]{1,0}, s64[2]{0}, s64[2]{0}, s64[2]{0}, /*index=5*/s64[2]{0})"
    (one,) = collectives(
        f"ENTRY %main (p: f32[16]) -> f32[4] {{\n  %start = ({inputs}, bf16[10,4]{{1,0}}) ragged-all-to-all-start(%p), "
        "channel_id=3, replica_groups={{0,1}}\n}\n"
    )
    assert one.kind == "ragged-all-to-all" and one.bytes == 10 * 4 * 2 and one.asynchronous
