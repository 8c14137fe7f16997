"""Each warning on a program that deserves it, and on one that does not."""

import pytest

from tests.planning.programs import CYCLES, GATHER, MESH, PRODUCT, TORUS, looped
from tpullm.planning.findings import Look, axes_of, find_faults
from tpullm.planning.instructions import as_collective, computations
from tpullm.planning.timeline import Item
from tpullm.planning.tpu_schedule import schedule_on_tpu

KERNEL = '%splash_mha_fwd.1 = bf16[1,8,2048,128]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"'
EVERYWHERE = "replica_groups=[1,256]<=[256]"


def found(*lines: str, kernel: str = KERNEL, vocabulary: int = 32000, before: str = "") -> dict[str, str]:
    text = looped(PRODUCT, *lines, kernel, before=before)
    look = Look(schedule_on_tpu(text, *TORUS), text, MESH, 4096 * 11008, tokens=8192, vocabulary=vocabulary)
    return {finding.kind: finding.text for finding in find_faults(look)}


def named(opcode: str, shape: str, place: str, groups: str = EVERYWHERE) -> str:
    path = f"jit(step)/transpose(jvp())/while/body/{place}"
    return f'%one = {shape} {opcode}(%w), channel_id=3, {groups}, metadata={{op_name="{path}"}}'


def test_parameters_gathered_whole_and_gathers_that_nothing_hides():
    assert found() == {}
    text = found(GATHER)["waited_for"]
    assert "all-gather along fsdp: 12 of 12 ms are exposed, in feed_forward/all_gather: more rows" in text
    whole = named("all-gather", "bf16[32,4096,11008]{2,1,0}", "feed_forward/all_gather")
    assert "gathered at once (2.7 GiB" in found(whole)["gathered_whole"]
    assert "gathered_whole" not in found(whole.replace("[32,", "[1,"))


def test_gradients_summed_everywhere_and_reshards_that_nobody_asked_for():
    summed = named("all-reduce", "bf16[4096,11008]{1,0}", "feed_forward/psum")
    text = found(summed)["summed_everywhere"]
    assert "86 MiB are all-reduced along fsdp" in text and "in backward/feed_forward/psum" in text
    assert "summed_everywhere" not in found(summed.replace("bf16[4096,11008]", "f32[4096]"))  # a norm's
    scattered = named("reduce-scatter", "bf16[16,11008]{1,0}", "feed_forward/psum_scatter")
    assert "summed_everywhere" not in found(scattered)
    exchanged = named("all-to-all", "bf16[4096,4096]{1,0}", "attention/dot_general")
    assert "all-to-all of 32 MiB" in found(exchanged)["resharded"]
    assert "resharded" not in found(named("all-to-all", "bf16[4096,4096]{1,0}", "feed_forward/all_to_all"))
    resharded = named("all-gather", "bf16[4096,4096]{1,0}", "attention/reshard")
    assert "our code does not ask for" in found(resharded)["resharded"]
    # Exactly as large is small; of a copy and of a collective.
    summed = named("all-reduce", "bf16[512,1024]{1,0}", "feed_forward/psum")
    assert "summed_everywhere" not in found(summed)
    assert "summed_everywhere" in found(summed.replace("[512,", "[513,"))
    source = "%y = bf16[512,1024]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    copy = "%copy.1 = bf16[512,1024]{1,0} copy(%y), " + CYCLES % 500_000
    assert found(source, copy) == {} and set(found(source, copy.replace("[512,", "[513,"))) == {"copied"}


@pytest.mark.parametrize(("layout", "kind"), [("{1,0}", "copied"), ("{0,1}", "transposed")])
def test_copies_of_large_arrays_and_other_layouts(layout, kind):
    source = "%y = bf16[8192,4096]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    place = 'metadata={op_name="jit(step)/jvp()/while/body/attention/mul"}'
    copy = f"%copy.1 = bf16[8192,4096]{layout} copy(%y), {place}, "
    of = found(source, copy + CYCLES % 500_000)
    assert set(of) == {kind} and "64 MiB" in of[kind] and "32 times a step, in attention/mul" in of[kind]
    assert found(source, copy + CYCLES % 50) == {}  # it costs next to nothing
    outside = found(before=copy.replace("(%y)", "(%r)") + CYCLES % 50_000_000)
    assert set(outside) == {"copied"} and "once a step" in outside["copied"]  # no loop, no matter which layout


def test_the_scores_of_all_tokens():
    scores = "%scores = f32[4,2048,128256]{2,1,0} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    assert "[4, 2048, 128256], 3.9 GiB" in found(scores, vocabulary=128256)["all_scores"]
    assert "all_scores" not in found(scores.replace("4,2048", "1,512"), vocabulary=128256)
    assert "all_scores" not in found(scores, vocabulary=50257)  # not scores
    scores = "%scores = f32[2048,131072]{1,0} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    assert "all_scores" not in found(scores, vocabulary=131072)  # 1 GiB, and a quarter of 8,192 tokens
    assert "all_scores" in found(scores.replace("2048", "2049"), vocabulary=131072)
    text = looped(PRODUCT, scores.replace("2048", "3000"), KERNEL)
    for tokens, largest, number in ((12_000, 1, 0), (8192, 3000 * 131072, 0), (11_000, 1, 1)):
        look = Look(schedule_on_tpu(text, *TORUS), text, MESH, largest, tokens=tokens, vocabulary=131072)
        assert sum(finding.kind == "all_scores" for finding in find_faults(look)) == number


def test_axes_of_groups():
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    assert axes_of([[0, 2, 4, 6]], mesh) == "fsdp"
    assert axes_of([[0, 1]], mesh) == "tensor" and axes_of([[0, 8]], mesh) == "data"
    assert axes_of([list(range(16))], mesh) == "data+fsdp+tensor"
    assert axes_of([], mesh) == "" == axes_of([[0, 16]], mesh)  # the second is not of this mesh


def test_a_copy_in_a_loop_of_two_turns_is_in_a_loop():
    source = "%y = bf16[8192,4096]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    copy = "%copy.1 = bf16[8192,4096]{0,1} copy(%y), " + CYCLES % 500_000
    text = looped(PRODUCT, source, copy, KERNEL, turns=2)
    look = Look(schedule_on_tpu(text, *TORUS), text, MESH, 4096 * 11008, tokens=8192, vocabulary=32000)
    (finding,) = find_faults(look)
    assert finding.kind == "transposed" and "2 times a step" in finding.text
    assert finding.bytes == 2 * 2 * 8192 * 4096 and finding.seconds == pytest.approx(2 * 500_000 / 1.5e9 * 0.82)


def test_findings_are_told_by_their_cost():
    text = looped(GATHER, PRODUCT, named("all-reduce", "bf16[4096,11008]{1,0}", "feed_forward/psum"), KERNEL)
    look = Look(schedule_on_tpu(text, *TORUS), text, MESH, 4096 * 11008, tokens=8192, vocabulary=32000)
    costs = [finding.seconds for finding in find_faults(look)]
    assert len(costs) > 2 and costs == sorted(costs, reverse=True)
    assert look.seconds == pytest.approx(sum(item.seconds for item in look.items))
    cheap = named("all-reduce", "bf16[8]{0}", "feed_forward/psum")
    assert "waited_for" in found(cheap) and "waited_for" not in found(cheap, PRODUCT.replace("1500000", "150000000"))
    text = looped(PRODUCT)
    (finding,) = find_faults(Look(schedule_on_tpu(text, *TORUS), text, MESH, 1 << 30, tokens=8192, vocabulary=32000))
    assert (finding.kind, finding.bytes, finding.seconds) == ("no_kernel", 0, 0.0)


def test_half_a_percent_of_a_step_is_not_worth_a_line():
    """200 s, in which a collective is waited for 1 s: not more than the share. A copy counts from half of it on."""
    instructions = {one.opcode: one for one in computations(looped(GATHER, PRODUCT, COPY))["body"]}
    gather = as_collective(instructions["all-gather"], "body")

    def kinds(waited: float, copied: float) -> set[str]:
        items = [
            Item(instructions["all-gather"], 1, waited, waited, gather, "body"),
            Item(instructions["copy"], 1, copied, 0.0, None, "body"),
            Item(instructions["fusion"], 1, 200 - waited - copied, 0.0, None, "body"),
        ]
        return {one.kind for one in find_faults(Look(items, KERNEL, MESH, 1 << 30, tokens=8192, vocabulary=32000))}

    assert kinds(1.0, 0.5) == set() and kinds(1.001, 0.5) == {"waited_for"} and kinds(1.0, 0.501) == {"copied"}


COPY = "%copy.1 = bf16[8192,4096]{1,0} copy(%y), " + CYCLES % 1
