"""The work of a step, counted by hand: FLOPs, bytes and the kernel's seconds of each part, and the time of all."""

import dataclasses

import pytest

from tests.planning.by_hand import ATTENTION, DENSE, EXPERTS, MLP, TABLE, setting, shipped
from tpullm.hardware.chips import CHIPS
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import matrix_parameters
from tpullm.model.attention.kernels import largest_block
from tpullm.planning import step_work
from tpullm.planning.economics import estimate_step
from tpullm.planning.setting import CPU, MAXTEXT, ProgramTraits
from tpullm.planning.step_work import Part, attention_seconds, kernel_seconds, keys_per_query, step_parts, useful_flops
from tpullm.recipe.schema import OptimizerConfig

M = 256  # tokens of a device
DENSE_TIED = dataclasses.replace(DENSE, tied_embeddings=True)


def matmul(rows: float, inputs: float, outputs: float, times: int = 1) -> Part:
    moved = 2 * (rows * inputs + inputs * outputs + rows * outputs)
    return Part(flops=times * 2 * rows * inputs * outputs, moved_bytes=times * moved)


def added(*parts: Part) -> Part:
    return Part(*map(sum, zip(*parts, strict=True)))


def test_three_layers_and_their_gradients_and_what_tensor_splits():
    """Each matmul runs forward, and for the gradients of its input and of its parameter."""
    of = setting(fsdp=16)
    assert of.tokens == M
    found = step_parts(of)
    assert found["attention"] == added(matmul(M, 512, 512 + 2 * 256, 9), matmul(M, 512, 512, 9))
    assert found["feed-forward"] == added(matmul(M, 512, 2 * 1024, 9), matmul(M, 1024, 512, 9))
    plain = dataclasses.replace(of, model=dataclasses.replace(DENSE, gated=False))
    assert step_parts(plain)["feed-forward"] == added(matmul(M, 512, 1024, 9), matmul(M, 1024, 512, 9))
    twice = step_parts(dataclasses.replace(of, accumulation=2))
    assert twice["attention"].flops == found["attention"].flops
    assert twice["attention"] == added(matmul(M / 2, 512, 1024, 18), matmul(M / 2, 512, 512, 18))
    found = step_parts(setting(fsdp=8, tensor=2))
    assert found["attention"] == added(matmul(512, 512, 512, 9), matmul(512, 256, 512, 9))
    assert found["feed-forward"] == added(matmul(512, 512, 1024, 9), matmul(512, 512, 512, 9))
    assert found["loss"] == added(matmul(512, 512, 512, 3), Part(moved_bytes=16 * 512 * 512))
    once = step_parts(setting(fsdp=16, loss_chunks=1))["loss"]
    assert once == added(matmul(M, 512, 1024, 3), Part(moved_bytes=16 * M * 1024))
    chunked = step_parts(setting(fsdp=16, loss_chunks=4))["loss"]
    assert chunked.flops == once.flops
    assert chunked.moved_bytes - once.moved_bytes == 3 * 12 * TABLE * 0.5  # at the full bandwidth, not at half of it
    half = step_parts(setting(fsdp=16, loss_chunks=1, accumulation=2))["loss"]
    assert half == added(matmul(M / 2, 512, 1024, 6), Part(moved_bytes=16 * M * 1024))


def test_matmuls_in_fp8_are_at_twice_the_peak_and_write_and_read_their_codes():
    """Three passes of each matrix of a layer; the output layer and the experts' own matrices are as ever."""
    in_fp8 = dataclasses.replace(DENSE, matmuls="fp8")
    plain, found = step_parts(setting(fsdp=16)), step_parts(setting(in_fp8, chip={"fp8": True}, fsdp=16))
    inputs = {"attention": (512 * (M + 1024) + 512 * (M + 512)), "feed-forward": 512 * (M + 2048) + 1024 * (M + 512)}
    for name, codes in inputs.items():
        assert found[name].flops == plain[name].flops / 2
        assert found[name].moved_bytes - plain[name].moved_bytes == 9 * 2 * codes
    assert all(found[name] == plain[name] for name in plain.keys() - inputs.keys())
    emulated = step_parts(setting(in_fp8, fsdp=16))
    assert all(emulated[name].flops == plain[name].flops for name in inputs)
    experts = dataclasses.replace(EXPERTS, matmuls="fp8")
    plain, experts = (step_parts(setting(of, chip={"fp8": True}, fsdp=4, expert=4)) for of in (EXPERTS, experts))
    assert experts["experts"] == plain["experts"] and experts["attention"].flops == plain["attention"].flops / 2


def test_the_kernel_at_the_peak_and_what_is_recomputed_once_the_forward_pass():
    """Two matmuls of the scores forward and five backward, `[tokens, 256 keys]` of 8 heads of 64."""
    one = 2 * M * 256 * 8 * 64 / 1e12
    assert step_parts(setting(fsdp=16))["attention kernel"].kernel_seconds == pytest.approx(3 * 7 * one)
    assert step_parts(setting(fsdp=16, traits=CPU))["attention kernel"].kernel_seconds == pytest.approx(3 * 6 * one)
    shared = step_parts(setting(fsdp=8, tensor=2))["attention kernel"].kernel_seconds
    assert shared == pytest.approx(3 * 7 * one)  # twice the tokens, half of the heads
    of = setting(fsdp=16)
    assert step_parts(of)["recomputed"] == Part()
    parts = {
        "qkv": matmul(M, 512, 1024, 3),
        "out": matmul(M, 512, 512, 3),
        "up": matmul(M, 512, 2048, 3),
        "scores": Part(kernel_seconds=3 * 2 * 2 * M * 256 * 8 * 64 / 1e12),
    }
    for name, part in parts.items():
        assert step_parts(dataclasses.replace(of, recompute=(name,)))["recomputed"] == pytest.approx(part)
    every = step_parts(dataclasses.replace(of, recompute=tuple(parts)))["recomputed"]
    assert every == pytest.approx(added(*parts.values()))


def test_norms_and_activations_are_read_and_written_once_forward_and_twice_backward():
    """In attention four arrays of D and twice queries, keys and values; in the MLP four of D and 2.5 of F."""
    of, attention, mlp = setting(fsdp=16), 4 * 512 + 2 * 1024, 4 * 512 + 2.5 * 1024
    moved = lambda of: step_parts(of)["norms and activations"].moved_bytes  # noqa: E731
    assert moved(of) == 3 * 2 * M * 3 * (attention + mlp)
    assert moved(dataclasses.replace(of, recompute=("qkv",))) == moved(of) + 3 * 2 * M * attention
    assert moved(dataclasses.replace(of, recompute=("up",))) == moved(of) + 3 * 2 * M * mlp
    plain = dataclasses.replace(of, model=dataclasses.replace(DENSE, gated=False))
    assert moved(plain) == moved(of) - 3 * 2 * M * 3 * 1024
    fused = dataclasses.replace(of, traits=ProgramTraits(fused=True, block=64))
    assert moved(fused) == moved(of) + 3 * 2 * M * 4 * 512  # the queries' gradient of each of four blocks of keys
    half = setting(fsdp=8, tensor=2)
    assert moved(half) == 3 * 2 * 512 * 3 * (4 * 512 + 1024 + 4 * 512 + 2.5 * 512)


def test_experts_multiply_their_own_rows_which_are_sorted_and_a_router_all_tokens():
    """Two of eight experts are here; 256 tokens have two rows each. The router is in float32: six matmuls."""
    found = step_parts(setting(EXPERTS, fsdp=4, expert=4))["experts"]
    assert found.flops == 9 * 6 * 2 * M * 512 * 8
    assert found.grouped_flops == 9 * 2 * 512 * (512 * 2048 + 1024 * 512)
    matrices = 2 * (2 * 512 * 2048 + 2 * 1024 * 512)
    tokens = 2 * M * 512 * 2  # read by the router, and the sum of experts written
    assert found.moved_bytes == 9 * (2 * 512 * (512 + 2048) + 2 * 512 * (1024 + 512) + matrices + tokens)
    padded = step_parts(setting(EXPERTS, fsdp=4, expert=4, padding=1.5))["experts"]
    assert padded.grouped_flops == 0 and padded.flops == found.flops + 1.5 * found.grouped_flops
    masked = step_parts(setting(EXPERTS, fsdp=4, expert=4, traits=CPU))["experts"]
    assert masked.grouped_flops == 2 * found.grouped_flops
    shared = step_parts(setting(dataclasses.replace(EXPERTS, shared_experts=2), fsdp=4, expert=4))["experts"]
    assert shared.flops == found.flops + 9 * 2 * M * (512 * 4096 + 2048 * 512)
    more = shared.moved_bytes - found.moved_bytes
    assert more == 9 * 2 * (512 * 4096 + 2048 * 512 + M * (4096 + 2048))
    # Beside the activations of two experts, four arrays of D for each of a token's two rows.
    of = setting(EXPERTS, fsdp=4, expert=4, traits=MAXTEXT)
    moved = lambda of: step_parts(of)["norms and activations"].moved_bytes  # noqa: E731
    hidden = 2 * (2.5 * 1024 + 4 * 512)
    assert moved(of) == 3 * 2 * M * 3 * (4 * 512 + 2 * 1024 + 4 * 512 + hidden)
    shared = dataclasses.replace(of, model=dataclasses.replace(EXPERTS, shared_experts=1))
    assert moved(shared) - moved(of) == 3 * 2 * M * 3 * 2.5 * 1024
    padded = dataclasses.replace(of, padding=1.5)
    assert moved(padded) - moved(of) == 3 * 2 * M * 3 * hidden / 2
    of = setting(EXPERTS, fsdp=4, expert=4, recompute=("qkv", "up"))
    assert step_work.recomputed_parts(of) == ("qkv", "up") and step_work.recomputed_parts(
        dataclasses.replace(of, recompute=())
    ) == ("up",)
    assert (
        step_work.recomputed_parts(setting(EXPERTS, fsdp=16))
        == ()
        == step_work.recomputed_parts(setting(fsdp=4, expert=4))
    )
    assert step_work.recomputed_parts(dataclasses.replace(of, recompute=(), traits=MAXTEXT)) == ()


@pytest.mark.parametrize(
    ("kind", "moments", "bytes_each"),
    [
        ("adamw", "float32", 7 * 4 + 4),  # parameter and two moments read and written, the gradient read twice
        ("adamw", "bfloat16", 4 * 4 + 4 * 2),
        ("muon", "float32", 24),
        ("muon", "bfloat16", 20),
        ("adafactor", "float32", 20),
    ],
)
def test_an_update_moves_each_parameter_of_a_device(kind, moments, bytes_each):
    of = setting(DENSE_TIED, fsdp=8, tensor=2, optimizer=OptimizerConfig(kind=kind, moments=moments))
    parameters = (3 * (ATTENTION + MLP) + TABLE) / 16
    assert step_parts(of)["optimizer"].moved_bytes == bytes_each * parameters
    often = step_parts(dataclasses.replace(of, accumulation=3))["optimizer"]
    assert often.moved_bytes == (bytes_each + 2 * 12) * parameters


def test_muon_takes_five_steps_of_three_matmuls_a_matrix():
    """X X^T of the short side, its square, and that times X; the chips of a slice share the matrices."""
    of = setting(fsdp=16, optimizer=OptimizerConfig(kind="muon"))
    step = lambda short, long: 2 * short * short * long + 2 * short**3 + 2 * short * short * long  # noqa: E731
    matrices = 2 * step(512, 512) + 2 * step(256, 512) + 3 * step(512, 1024)
    assert step_parts(of)["optimizer"].flops == 3 * 5 * matrices / 16
    assert step_parts(setting(fsdp=16))["optimizer"].flops == 0
    plain = dataclasses.replace(of, model=dataclasses.replace(DENSE, gated=False))
    assert step_parts(plain)["optimizer"].flops == 3 * 5 * (matrices - step(512, 1024)) / 16
    experts = dataclasses.replace(of, model=EXPERTS)
    assert step_parts(experts)["optimizer"].flops == 3 * 5 * (matrices + 7 * 3 * step(512, 1024)) / 16
    every = dataclasses.replace(of, model=dataclasses.replace(DENSE, kv_heads=8))
    assert step_parts(every)["optimizer"].flops == 3 * 5 * (matrices - 2 * step(256, 512) + 2 * step(512, 512)) / 16
    slices = dataclasses.replace(of, topology=parse("2 x v6e:4x4"))
    assert step_parts(slices)["optimizer"].flops == step_parts(of)["optimizer"].flops


def test_a_part_takes_as_long_as_its_matmuls_or_its_memory():
    expected = 6 * (3 * (ATTENTION + MLP) + TABLE) + 6 * 3 * 256 * 8 * 64
    assert useful_flops(setting(fsdp=16)) == expected * 16 * 256 / 16
    # At the efficiencies of the chip: 0.8 of 1e12 FLOP/s, half of that for experts, half of 1e10 bytes a second.
    of = setting(EXPERTS, fsdp=4, expert=4)
    parts, found = step_parts(of), estimate_step(of)
    for name, part in parts.items():
        computing = part.flops / 0.8e12 + part.grouped_flops / 0.4e12 + part.kernel_seconds / 0.25
        assert found.computing[name] == pytest.approx(max(computing, part.moved_bytes / 0.5e10))
    assert found.computing["optimizer"] == pytest.approx(parts["optimizer"].moved_bytes / 0.5e10)
    assert found.step_seconds == pytest.approx(sum(found.computing.values()) + sum(found.exposed.values()))
    assert found.step_seconds == pytest.approx(sum(found.parts.values()))
    assert found.tokens_per_second == pytest.approx(16 * 256 / 16 / found.step_seconds)
    assert found.mfu == pytest.approx(useful_flops(of) / found.step_seconds / 1e12)


def test_what_overlaps_or_is_offloaded_costs_what_is_longer_than_the_matmuls():
    of = setting(DENSE_TIED, fsdp=16)
    fast = dataclasses.replace(of, device=dataclasses.replace(of.device, link_bandwidth=1e15, latency_seconds=0))
    found = estimate_step(fast)
    assert found.exposed["fsdp"] == pytest.approx(0.25 * sum(one.seconds for one in found.transfers))
    slow = estimate_step(dataclasses.replace(of, device=dataclasses.replace(of.device, link_bandwidth=1e5)))
    compute, links = sum(slow.computing.values()), sum(one.seconds for one in slow.transfers)
    assert links > compute
    assert slow.exposed["fsdp"] == pytest.approx(0.25 * compute + links - compute)
    waits = dataclasses.replace(fast, device=dataclasses.replace(fast.device, offloads_collectives=False))
    gathers, sums = estimate_step(waits).transfers
    assert estimate_step(waits).exposed["fsdp"] == pytest.approx(0.25 * gathers.seconds + sums.seconds)
    # There and back, 2 bytes each, of each token and layer; devices along `tensor` share them.
    of = setting(DENSE_TIED, fsdp=16, offloaded=1000)
    found = estimate_step(of)
    assert found.exposed["host"] == pytest.approx(4 * 1000 * 3 * M / 1e7 - sum(found.computing.values()))
    twice = estimate_step(dataclasses.replace(of, accumulation=2))
    assert twice.exposed["host"] + sum(twice.computing.values()) == pytest.approx(4 * 1000 * 3 * M / 1e7)
    shared = estimate_step(setting(DENSE_TIED, fsdp=8, tensor=2, offloaded=1000))
    assert shared.exposed["host"] + sum(shared.computing.values()) == pytest.approx(4 * 1000 * 3 * M / 1e7)
    assert "host" not in estimate_step(dataclasses.replace(of, offloaded=1)).exposed


@pytest.mark.parametrize("name", ["125m", "1b", "8b", "175b", "8x7b"])
def test_products_are_six_for_each_parameter_and_token(name):
    """Forward and two gradients, 2 FLOPs each; a router's float32 products count as what they cost.

    Where experts are spread, their first products are computed again, whatever else is kept.
    """
    of = dataclasses.replace(shipped(name), recompute=())
    once = {part: one for part, one in step_parts(of).items() if part != "recomputed"}
    assert (step_parts(of)["recomputed"].grouped_flops > 0) == (of.along("expert") > 1)
    flops = sum(part.flops + part.grouped_flops for part in once.values())
    router = of.model.layers * of.model.width * of.model.experts
    expected = 6 * (matrix_parameters(of.model) - router) * of.global_tokens / of.topology.chips
    assert flops == pytest.approx(expected + 36 * router * of.global_tokens / of.topology.chips, rel=1e-9)
    kernels = sum(part.kernel_seconds for part in step_parts(of).values())
    assert useful_flops(of) < flops + kernels * of.device.peak_flops


SCHEDULED = {name: chip.attention for name, chip in CHIPS.items() if chip.attention}


@pytest.mark.parametrize(("generation", "block"), [(name, block) for name in SCHEDULED for block in SCHEDULED[name]])
def test_no_kernel_is_faster_than_its_products(generation, block):
    chip, keys = CHIPS[generation], keys_per_query(8192, block)
    for kernel, of in chip.attention[block].items():
        products = step_work.MATMULS[kernel]
        turns = 8192 * (8192 if kernel == "all" else keys) / block**2
        besides = (
            turns * of.turn + 8192 / block * of.edge
        ) / chip.clock / chip.cores + turns * step_work.TURN / chip.cores
        found = kernel_seconds(chip, kernel, block, (1, 8192, 8192), keys, step_work.UNIT) - besides
        assert found >= 2 * products * 8192 * keys * step_work.UNIT / chip.peak_flops * (1 - 1e-9)


def test_turns_are_those_up_to_the_diagonal_and_of_all_gradients_every_one():
    """Of 4 x 4 blocks 10 are multiplied."""
    chip = CHIPS["v5p"]
    of = chip.attention[256]
    rows = (1, 1024, 1024), keys_per_query(1024, 256), step_work.UNIT
    keys, every = (kernel_seconds(chip, name, 256, *rows) * chip.cores for name in ("keys", "all"))
    a_turn = lambda name: of[name].turn / chip.clock + step_work.TURN  # noqa: E731
    body = lambda name: of[name].body / chip.clock  # noqa: E731
    edge = lambda name: of[name].edge / chip.clock  # noqa: E731
    assert keys == pytest.approx(10 * (body("keys") + a_turn("keys")) + 4 * edge("keys"))
    assert every == pytest.approx(10 * body("all") + 16 * a_turn("all") + 4 * edge("all"))


def test_windows_shared_rows_and_blocks_that_are_not_in_the_table():
    assert [keys_per_query(8192, 1024, windows) for windows in ((), (1024,), (0, 1024))] == [4608, 2048, 3328]
    whole, shared = shipped("8b", "v6e:4x4", mesh="{fsdp: 16}"), shipped("8b", "v6e:4x4", mesh="{fsdp: 8, sequence: 2}")
    assert whole.tokens == shared.tokens  # rows are longer there, in parts
    assert attention_seconds(shared) == pytest.approx(attention_seconds(whole))
    # Each of the devices begins every block of keys.
    assert attention_seconds(shared, backward=True) > attention_seconds(whole, backward=True)
    base = shipped("8b")
    fused = dataclasses.replace(base, traits=ProgramTraits(fused=True))
    assert 0.6 < attention_seconds(fused, backward=True) / attention_seconds(base, backward=True) < 0.8
    small = dataclasses.replace(base, attention_block=256)
    assert small.block == 256 and attention_seconds(small) > 2 * attention_seconds(base)
    assert step_work.table_block(CHIPS["v5e"], 2048) == 1024
    assert step_work.table_block(CHIPS["v6e"], 2048) == 2048 and step_work.table_block(CHIPS["v6e"], 724) == 512
    largest = {kind: max(blocks) for name, blocks in SCHEDULED.items() for kind in CHIPS[name].device_kinds}
    assert {kind: largest_block(kind) for kind in largest} == largest and largest_block("a chip of tomorrow") == 1024
