"""Each warning on a program that deserves it, and on one that does not."""

import pytest

from tests.planning.programs import CYCLES, GATHER, MESH, PRODUCT, TORUS, looped
from tpullm.planning.findings import KINDS, Look, axes_of, find
from tpullm.planning.schedule import schedule

KERNEL = '%splash_mha_fwd.1 = bf16[1,8,2048,128]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"'
EVERYWHERE = "replica_groups=[1,256]<=[256]"
COPIED = "%r.1 = bf16[8192,4096]{1,0:T(8,128)} parameter(1)"


def found(*lines: str, kernel: str = KERNEL, vocabulary: int = 32000, before: str = "") -> dict[str, str]:
    """The texts of the findings of a loop with these lines, by kind."""
    text = looped(PRODUCT, *lines, kernel, before=before)
    look = Look(schedule(text, TORUS), text, MESH, 4096 * 11008, tokens=8192, vocabulary=vocabulary)
    return {finding.kind: finding.text for finding in find(look)}


def named(opcode: str, shape: str, place: str, groups: str = EVERYWHERE) -> str:
    path = f"jit(step)/transpose(jvp())/while/body/{place}"
    return f'%one = {shape} {opcode}(%w), channel_id=3, {groups}, metadata={{op_name="{path}"}}'


def test_a_program_as_it_should_be_has_no_findings():
    assert found() == {}


def test_a_gather_that_nothing_hides():
    text = found(GATHER)["waited_for"]
    assert "all-gather along fsdp: of 12 ms nothing hides 12, in feed_forward/all_gather: more rows" in text


def test_parameters_gathered_whole():
    whole = named("all-gather", "bf16[32,4096,11008]{2,1,0}", "feed_forward/all_gather")
    assert "gathered at once (2.7 GiB" in found(whole)["gathered_whole"]
    assert "gathered_whole" not in found(whole.replace("[32,", "[1,"))


def test_a_gradient_summed_everywhere():
    summed = named("all-reduce", "bf16[4096,11008]{1,0}", "feed_forward/psum")
    text = found(summed)["summed_everywhere"]
    assert "86 MiB are summed on all devices along fsdp" in text and "in backward/feed_forward/psum" in text
    assert "summed_everywhere" not in found(summed.replace("bf16[4096,11008]", "f32[4096]"))  # a norm's
    scattered = named("reduce-scatter", "bf16[16,11008]{1,0}", "feed_forward/psum_scatter")
    assert "summed_everywhere" not in found(scattered)


def test_a_reshard_that_nobody_asked_for():
    assert (
        "all-to-all of 32 MiB"
        in found(named("all-to-all", "bf16[4096,4096]{1,0}", "attention/dot_general"))["resharded"]
    )
    assert "resharded" not in found(named("all-to-all", "bf16[4096,4096]{1,0}", "feed_forward/all_to_all"))
    resharded = named("all-gather", "bf16[4096,4096]{1,0}", "attention/reshard")
    assert "no line of ours asks for" in found(resharded)["resharded"]


@pytest.mark.parametrize(("layout", "kind"), [("{1,0}", "copied"), ("{0,1}", "transposed")])
def test_copies_of_large_arrays_and_other_layouts(layout, kind):
    source = "%y = bf16[8192,4096]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    copy = (
        f'%copy.1 = bf16[8192,4096]{layout} copy(%y), metadata={{op_name="jit(step)/jvp()/while/body/attention/mul"}}, '
    )
    of = found(source, copy + CYCLES % 500_000)
    assert set(of) == {kind} and "64 MiB" in of[kind] and "32 times a step, in attention/mul" in of[kind]
    assert found(source, copy + CYCLES % 50) == {}  # it costs next to nothing


def test_a_copy_outside_of_a_loop_is_a_copy():
    copy = "%copy.1 = bf16[81920,4096]{0,1} copy(%r), " + CYCLES % 50_000_000
    of = found(before=copy)
    assert set(of) == {"copied"} and "once a step" in of["copied"]


def test_the_scores_of_all_tokens():
    scores = "%scores = f32[4,2048,128256]{2,1,0} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1
    assert "[4, 2048, 128256], 3.9 GiB" in found(scores, vocabulary=128256)["all_scores"]
    assert "all_scores" not in found(scores.replace("4,2048", "1,512"), vocabulary=128256)
    assert "all_scores" not in found(scores, vocabulary=50257)  # not scores


def test_a_kernel_that_is_not_used():
    assert "multiple of 128" in found(kernel="")["no_kernel"]


DESERVED = {
    "gathered_whole": [named("all-gather", "bf16[32,4096,11008]{2,1,0}", "feed_forward/all_gather")],
    "summed_everywhere": [named("all-reduce", "bf16[4096,11008]{1,0}", "feed_forward/psum")],
    "resharded": [named("all-to-all", "bf16[4096,4096]{1,0}", "attention/dot_general")],
    "waited_for": [GATHER],
    "copied": [COPIED, "%copy.1 = bf16[8192,4096]{1,0} copy(%r.1), " + CYCLES % 500_000],
    "transposed": [COPIED, "%copy.1 = bf16[8192,4096]{0,1} copy(%r.1), " + CYCLES % 500_000],
    "all_scores": ["%scores = f32[4,2048,128256]{2,1,0} fusion(%x), kind=kLoop, calls=%fused, " + CYCLES % 1],
    "no_kernel": [],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_where_it_is_deserved(kind):
    kernel = "" if kind == "no_kernel" else KERNEL
    assert kind in found(*DESERVED[kind], kernel=kernel, vocabulary=128256)


def test_axes_of_groups():
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    assert axes_of([[0, 2, 4, 6]], mesh) == "fsdp"
    assert axes_of([[0, 1]], mesh) == "tensor" and axes_of([[0, 8]], mesh) == "data"
    assert axes_of([list(range(16))], mesh) == "data+fsdp+tensor"
    assert axes_of([], mesh) == ""
