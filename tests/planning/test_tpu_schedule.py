"""What a program's instructions cost: on programs whose time can be counted by hand."""

import itertools
from types import SimpleNamespace

import pytest

from tests.planning.programs import CYCLES, GATHER, LINES, PRODUCT, TOPOLOGY, TORUS, looped
from tpullm.hardware.topologies import parse
from tpullm.planning.instructions import Collective
from tpullm.planning.step_work import kernel_seconds, keys_per_query
from tpullm.planning.tpu_schedule import GROUPED_SHARE, LINKS, OBSERVED, link_seconds, schedule_on_tpu

MILLISECOND = pytest.approx(1e-3, rel=1e-6)
RING = 2 * TOPOLOGY.chip.link_bandwidth * LINKS
GATHERING = 4096 * 4096 * 2 * 15 / 16 / RING + 8e-6  # both ways around a ring of 16, and 8 hops


def seconds(text: str) -> float:
    return sum(item.seconds for item in schedule_on_tpu(text, *TORUS)) / OBSERVED


def test_a_loops_products_count_once_a_turn():
    assert seconds(looped(PRODUCT, turns=1)) == MILLISECOND
    assert seconds(looped(PRODUCT, turns=32)) == pytest.approx(32e-3)
    items = schedule_on_tpu(looped(PRODUCT, turns=32), *TORUS)
    assert [(item.times, item.inside) for item in items] == [(32, "body")]
    items = {item.instruction.name: item for item in schedule_on_tpu(looped(GATHER, PRODUCT, turns=7), *TORUS)}
    assert items["gather"].times == items["product"].times == 7
    assert items["gather"].seconds == items["gather"].busy_seconds == pytest.approx(7 * GATHERING * OBSERVED)
    assert items["product"].busy_seconds == 0 and items["gather"].collective.kind == "all-gather"
    loop = looped(PRODUCT, turns=5).replace("%most = s32[] constant(5)", "%most = s32[] parameter(0)")
    assert seconds(loop) == MILLISECOND
    # And a kernel that does nothing takes no time, whatever it gives.
    loop = looped(PRODUCT, turns=1)
    further = loop.replace("body=%body\n", 'body=%body, metadata={op_name="jit(step)/jvp()/further_rounds/while"}\n')
    assert seconds(loop) == MILLISECOND and seconds(further) == 0
    kernel = '%unfilled.1 = bf16[4096,4096]{1,0} custom-call(%x), metadata={op_name="jvp(unfilled)/pallas_call"}'
    assert seconds(looped(kernel, PRODUCT, turns=1)) == MILLISECOND


@pytest.mark.parametrize(
    ("groups", "kind", "seconds"),
    [
        # Lines of 8 devices, 4 chips with both: a ring carries the 7/8 both ways, and each chip needs them once.
        ([[*range(8)]], "all-gather", 7 / 8 / 2),
        # Lines of 4 devices of 4 chips: the other devices of these chips use the links too.
        ([[0, 2, 4, 6], [1, 3, 5, 7]], "all-gather", 3 / 4 / 2 * 2),
        ([[0, 2, 4, 6], [1, 3, 5, 7]], "all-reduce", 2 * 3 / 4 / 2 * 2),
        ([[0, 1], [2, 3]], "all-gather", 1 / 2 / 6),  # within chips, at six times a link
        ([[0, 1]], "collective-permute", 1 / 6),
        ([[0, 2]], "collective-permute", 2),
        ([[*range(8)]], "all-to-all", 4 / 8 * 2),  # each device has its own rows
    ],
)
def test_the_devices_of_a_chip_share_its_links(groups, kind, seconds):
    topology = parse("tpu7x:4x4x4")
    places = tuple((0, 0, n // 2, n % 2) for n in range(8))
    one = SimpleNamespace(kind=kind, bytes=1e9, devices=lambda: groups)
    assert link_seconds(one, topology, places)[1] == pytest.approx(seconds * 1e9 / (100e9 * LINKS), rel=1e-2)


def test_gathers_begin_with_their_start_or_their_operands_and_end_by_their_done():
    # A gather of 0.4 ms on another core: hidden by a product of 1 ms, waited for without one.
    start = '%started = ((), (), s32[1]) call-start(), async_execution_thread="sparsecore", to_apply=%gathering'
    done = "%done = bf16[4096,4096]{1,0} call-done(%started), to_apply=%gathering"
    for products in range(3):
        beside = [PRODUCT.replace("%product", f"%product.{n}") for n in range(products)]
        assert seconds(looped(start, *beside, done, turns=1)) == pytest.approx(max(products * 1e-3, GATHERING))
    # As on a v5e: the product beside it has a part of the gather in itself, and is no gather.
    start = "%async-collective-start.1 = (bf16[4096,4096]{1,0}, u32[]) fusion(%w), kind=kCustom, calls=%gathering"
    beside = PRODUCT.replace("calls=%fused", "calls=%gathering")
    done = "%async-collective-done.1 = bf16[4096,4096]{1,0} fusion(%t), kind=kCustom, calls=%gathering"
    assert seconds(looped(start, beside, done, turns=1)) == MILLISECOND
    assert seconds(looped(start, done, beside, turns=1)) == pytest.approx(1e-3 + GATHERING)
    # The product before `call-update` hides nothing, one after it does.
    start = '%started = ((), (), s32[1]) call-start(), async_execution_thread="sparsecore", to_apply=%gathering'
    given = "%given = ((bf16[256,4096]{1,0}), bf16[4096,4096]{1,0}) call-update(%started, %w)"
    done = "%done = bf16[4096,4096]{1,0} call-done(%given)"
    assert seconds(looped(start, PRODUCT, given, done, turns=1)) == pytest.approx(1e-3 + GATHERING)
    assert seconds(looped(start, given, PRODUCT, done, turns=1)) == MILLISECOND
    rows = "%rows (r: bf16[16384,4096], i: s32[32768]) -> bf16[32768,4096] {\n"
    rows += "  ROOT %found = bf16[32768,4096]{1,0} gather(%r, %i)\n}\n"
    start = '%started = ((), (), s32[1]) call-start(), async_execution_thread="sparsecore", to_apply=%rows'
    given = "%given = ((bf16[16384,4096]{1,0}, s32[32768]{0}), bf16[32768,4096]{1,0}) call-update(%started, %r, %i)"
    done = "%done = bf16[32768,4096]{1,0} call-done(%given)"
    program = looped(start, given, done, turns=1).replace("%body (p", f"{rows}\n%body (p")
    assert seconds(program) == pytest.approx(2 * 2 * 32768 * 4096 / (0.8 * 819e9))


def test_attentions_kernel_is_counted_by_its_schedule():
    """Of each kernel by its own blocks, for all rows and heads; heads of 64 take as long as heads of 128."""
    q = "%q = bf16[4,32,2048,{H}]{{3,2,1,0}} parameter(1)"
    k = "%k = bf16[4,8,2048,{H}]{{3,2,1,0}} parameter(2)"
    call = 'custom-call(%q, %k), custom_call_target="tpu_custom_call", kernel_metadata={{ "xprof_metadata":"{{'
    forward = "%splash_mha_fwd.1 = (bf16[4,32,2048,{H}]{{3,2,1,0}}, f32[4,32,2048]) " + call
    forward += '\\"block_q\\": 512, \\"block_kv\\": 512, \\"block_q_dkv\\": 1024}}'
    gradient = "bf16[4,8,2048,{H}]{{3,2,1,0}}"
    blocks = '\\"block_q\\": 512, \\"block_q_dkv\\": 1024, \\"block_kv_dkv\\": 1024}}'
    keys = f"%splash_mha_dkv.1 = ({gradient}, {gradient}) {call}{blocks}"
    every = f"%splash_mha_dkv.1 = (bf16[4,2,32,2048,{{H}}]{{{{4,3,2,1,0}}}}, {gradient}, {gradient}) {call}{blocks}"

    def of(kernel, width):
        return seconds(looped(*(text.format(H=width) for text in (q, k, kernel)), turns=1))

    def expected(name, block):
        one = kernel_seconds(TOPOLOGY.chip, name, block, (1, 2048, 2048), keys_per_query(2048, block), 128)
        return pytest.approx(4 * 32 * one / TOPOLOGY.chip.attention_efficiency)

    assert of(forward, 128) == of(forward, 64) == expected("forward", 512)
    assert of(keys, 128) == expected("keys", 1024)
    assert of(every, 128) == expected("all", 1024)


def test_what_has_no_cycles_is_counted_by_its_bytes_and_what_is_small_costs_nothing():
    scatter = "%scatter = f32[32000,4096]{1,0} fusion(%x), kind=kCustom, calls=%fused"
    assert seconds(looped(scatter, turns=1)) == pytest.approx(2 * 4 * 32000 * 4096 / 819e9)
    assert seconds(looped(scatter + ", " + CYCLES % 1500, turns=1)) == pytest.approx(1e-6)
    on_the_chip = scatter.replace("{1,0}", "{1,0:T(8,128)S(1)}")
    assert seconds(looped(on_the_chip, turns=1)) == 0
    # Without cycles: up to 1,024 bytes read and written, and whatever only names memory.
    small = "%small = bf16[256]{0} add(%x, %y)"
    assert seconds(looped(small, turns=1)) == 0
    assert seconds(looped(small.replace("256", "257"), turns=1)) == pytest.approx(4 * 257 / 819e9)
    assert seconds(looped("%b = bf16[4096,4096]{1,0} bitcast(%x)", turns=1)) == 0
    named = '%b = bf16[4096,4096]{1,0} custom-call(%x), custom_call_target="AllocateBuffer"'
    assert seconds(looped(named, turns=1)) == 0


def test_products_with_a_matrix_for_each_expert_are_counted_by_their_rows():
    """Rows `[M, K]` by matrices `[E, K, N]` give `[M, N]`; the matrices' gradient is from `[M, K]` and `[M, N]`."""
    rows = "%rows = bf16[4096,1024]{1,0} parameter(1)"
    wide = "%wide = bf16[4096,2048]{1,0} parameter(2)"
    matrices = "%matrices = bf16[8,1024,2048]{2,1,0} parameter(3)"
    forward = '%ragged-dot-none.1 = bf16[4096,2048]{1,0} custom-call(%rows, %matrices), custom_call_target="x"'
    backward = '%ragged-dot-contracting = bf16[8,1024,2048]{2,1,0} custom-call(%rows, %wide), custom_call_target="x"'
    expected = 2 * 4096 * 1024 * 2048 / (197e12 * GROUPED_SHARE)
    assert seconds(looped(rows, matrices, forward, turns=1)) == pytest.approx(expected)
    assert seconds(looped(rows, wide, backward, turns=1)) == pytest.approx(expected)
    half = schedule_on_tpu(looped(rows, wide, backward, turns=1), *TORUS, filled=0.5)
    assert sum(item.seconds for item in half) == pytest.approx(expected * OBSERVED / 2)
    rows, wide = "%rows = bf16[4096,1024]{1,0} parameter(1)", "%wide = bf16[4096,2048]{1,0} parameter(2)"
    for name in ("other.1", "ragged-dot-metadata.1"):
        kernel = f'%{name} = bf16[4096,2048]{{1,0}} custom-call(%rows, %wide), custom_call_target="x"'
        assert seconds(looped(rows, wide, kernel, turns=1)) == pytest.approx(2 * 2 * 4096 * 2048 / 819e9)


def along(kind: str, groups: str, topology: str = "v5e:16x16", size: int = 1 << 30):
    of = parse(topology)
    places = tuple(itertools.product(*map(range, of.shape)))
    return link_seconds(Collective(kind, size, groups, ""), of, places)


@pytest.mark.parametrize(
    ("kind", "groups", "topology", "dimensions", "times", "hops"),
    [
        ("all-gather", "[16,16]<=[256]", "v5e:16x16", (1,), 15 / 16 / 2, 8),  # around a ring, both ways
        ("all-gather", "[16,16]<=[16,16]T(1,0)", "v5e:16x16", (0,), 15 / 16 / 2, 8),
        ("all-gather", "[8,8]<=[64]", "v5e:8x8", (1,), 7 / 8, 7),  # along a line
        ("all-gather", "[1,128]<=[128]", "v5e:8x16", (0, 1), 127 / 128 / 3, 7 + 8),  # a line and a ring
        ("reduce-scatter", "[16,16]<=[256]", "v5e:16x16", (1,), 15 / 16 / 2, 8),
        ("all-reduce", "[16,16]<=[256]", "v5e:16x16", (1,), 2 * 15 / 16 / 2, 16),
        ("all-to-all", "[16,16]<=[256]", "v5e:16x16", (1,), 16 / 8, 8),  # an eighth of a ring's data crosses each link
        ("all-to-all", "[8,8]<=[64]", "v5e:8x8", (1,), 8 / 4, 7),  # of a line a quarter
        ("ragged-all-to-all", "[1,32]<=[32]", "v5e:4x8", (0, 1), 8 / 4, 3 + 7),  # the longer line
        ("all-to-all", "[8,16]<=[128]", "v5e:8x16", (1,), 16 / 8, 8),
        # A ring of 4 and half of a ring of 8, which is a line: the line takes longer.
        ("all-to-all", "{{0,1,2,3,8,9,10,11,16,17,18,19,24,25,26,27}}", "v5p:4x4x8", (1, 2), 4 / 4, 2 + 3),
        ("collective-permute", "{{0,1},{1,0}}", "v5e:16x16", (1,), 1, 1),
        ("collective-permute", "{{0,15}}", "v5e:16x16", (1,), 1, 1),  # around
        ("collective-permute", "{{0,16},{0,5}}", "v5e:16x16", (0,), 5, 5),
        ("collective-permute", "{{0,7}}", "v5e:8x8", (1,), 7, 7),  # a line has no way around
    ],
)
def test_seconds_of_a_collective_by_hand(kind, groups, topology, dimensions, times, hops):
    """`times` its bytes go over one link; each hop takes a microsecond. What goes nowhere takes no link."""
    assert along("all-gather", "{{0},{1}}") == ((), 0.0) == along("all-gather", "")
    found = along(kind, groups, topology)
    assert found[0] == dimensions
    assert found[1] == pytest.approx(times * (1 << 30) / (parse(topology).chip.link_bandwidth * LINKS) + hops * 1e-6)


def test_transfers_by_the_memory_that_they_go_to_and_rows_in_use_of_a_ragged_exchange():
    """One that is started and ended at once is waited for."""
    to_host = "%start = (bf16[1024,1024]{1,0:S(5)}, bf16[1024,1024]{1,0}, u32[]) copy-start(%x)"
    here = "%start = (bf16[1024,1024]{1,0:S(1)}, bf16[1024,1024]{1,0}, s64[]) copy-start(%x)"
    done = "%done = bf16[1024,1024]{1,0} copy-done(%start)"
    assert seconds(looped(to_host, done, turns=1)) == pytest.approx(2 * (1 << 20) / 8e9)
    assert seconds(looped(here, done, turns=1)) == pytest.approx(2 * (1 << 20) / 819e9)
    send = "%sent = (bf16[1024,1024]{1,0}, u32[], token[]) send(%x, %token), channel_id=6"
    done = "%done = token[] send-done(%sent)"
    assert seconds(looped(send, done, turns=1)) == 0  # nothing ever waits for what is sent
    received = "%recv-done = (bf16[8,8]{1,0}, token[]) recv-done(%sent)"
    assert seconds(looped(send, received, turns=1)) == pytest.approx(2 * (1 << 20) / 3.1e9)
    exchange = f"%x.1 = bf16[4096,4096]{{1,0}} ragged-all-to-all(%a, %b, %c), channel_id=1, {LINES}"
    alone = looped(exchange, turns=1)
    whole, half = (schedule_on_tpu(alone, *TORUS, filled)[0].seconds / OBSERVED for filled in (1, 0.5))
    assert whole == 2 * half == pytest.approx(2 * 4096 * 4096 * 16 / 8 / (50e9 * LINKS) + 8e-6)
    gather = schedule_on_tpu(looped(GATHER, turns=1), *TORUS, 0.5)[0].seconds / OBSERVED
    assert gather == pytest.approx(GATHERING)


def test_of_branches_the_longest_counts():
    body = "%{name} (z: bf16[8,8]) -> bf16[8,8] {{\n  {line}\n}}\n\n"
    branches = body.format(name="short", line=PRODUCT) + body.format(name="long", line=PRODUCT + "\n  " + GATHER)
    choice = "%choice = bf16[8,8]{1,0} conditional(%i, %a, %b), branch_computations={%short, %long}"
    program = looped(choice, turns=1).replace("%body (p", branches + "%body (p")
    assert seconds(program) == pytest.approx(1e-3 + GATHERING)
    call = "%called = bf16[8,8]{1,0} call(%a), to_apply=%short"
    assert seconds(looped(call, turns=1).replace("%body (p", branches + "%body (p")) == MILLISECOND


def test_a_wait_is_shared_by_the_transfers_that_made_it():
    """Two gathers on one line, the second begun after 1 ms of matmul: it waits for what is left of the first."""
    starts = [f"%started.{n} = ((), (), s32[1]) call-start(), to_apply=%gathering" for n in range(4)]
    done = "%done = bf16[4096,4096]{1,0} call-done(%started.3)"
    items = {item.instruction.name: item for item in schedule_on_tpu(looped(*starts, PRODUCT, done, turns=1), *TORUS)}
    assert sum(item.seconds for item in items.values()) == pytest.approx(4 * GATHERING * OBSERVED)
    assert items["started.3"].seconds == pytest.approx(GATHERING * OBSERVED)
    assert items["started.0"].seconds == items["started.1"].seconds == 0
    assert items["started.2"].seconds == pytest.approx((3 * GATHERING - 1e-3) * OBSERVED)
