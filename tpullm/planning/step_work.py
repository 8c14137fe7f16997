"""The work of a step on one device, by part: FLOPs of matmuls, seconds of attention kernels, bytes of memory traffic.

A matmul of `[M, D]` by `[D, F]` is 2 M D F FLOPs; its two gradients are twice that. The attention kernel of a TPU takes
the time of the compiler's schedule of it, any other the time of its matmuls at the peak. A TPU's kernel multiplies one
block of queries by one block of keys in each turn of its loop, and the blocks on the diagonal whole. Large blocks
therefore waste more computation, and small blocks take more turns.
"""

from typing import NamedTuple

from tpullm.hardware.chips import Chip
from tpullm.model.architecture import training_flops_per_token
from tpullm.planning.setting import Setting

MATMULS = {"forward": 2, "queries": 3, "keys": 4, "all": 5}  # of the size of the scores, in each kernel
UNIT = 128  # width of a matrix unit; a narrower head leaves the rest of the unit idle
# Seconds that a turn waits for memory, which no schedule shows. A guess: with less, blocks of 2,048 would never pay on
# a v6e, and MaxText's tuned recipes for the v6e use them.
TURN = 0.35e-6


def keys_per_query(length: int, block: int, windows: tuple[int, ...] = ()) -> float:
    """Keys that the kernel multiplies with a query, in the mean over queries and layers.

    These are the keys up to the diagonal or within the window, in whole blocks.

    Args:
        windows: of the layers; 0 is a layer without a window.
    """
    block = min(block, length)
    of = [(length + block) / 2 if not w or w >= length else min(w + block, length) for w in windows or (0,)]
    return sum(of) / len(of)


def kernel_seconds(chip: Chip, kernel: str, block: int, rows: tuple[float, int, int], keys: float, width: int) -> float:
    """Seconds that one head adds to a kernel; the cores of a chip share the heads.

    Args:
        kernel: `forward`, `queries`, `keys` or `all`. The loop of `all` also has a turn for each block beyond the
            diagonal.
        rows: number of rows, queries of a row, keys of a row.
        keys: see `keys_per_query`.
        width: of the head.
    """
    count, queries, length = rows
    of = chip.attention[block][kernel]
    # A schedule does not show the time that it waits for the matrix unit.
    flops_per_cycle = chip.peak_flops / chip.clock / chip.cores
    body = max(of.body, 2 * MATMULS[kernel] * block**2 * UNIT / flops_per_cycle)
    multiplied = count * queries * keys / block**2
    turns = count * queries * length / block**2 if kernel == "all" else multiplied
    edges = count * (length if kernel in ("keys", "all") else queries) / block
    cycles = (body * multiplied + of.edge * edges) * max(width, UNIT) / UNIT + of.turn * turns
    return (cycles / chip.clock + TURN * turns) / chip.cores


def table_block(chip: Chip, block: int) -> int:
    """The largest block in the chip's table that is at most `block`."""
    return max(of for of in chip.attention if of <= block)


def attention_seconds(setting: Setting, backward: bool = False) -> float:
    """Seconds of one layer's forward kernel, or of the backward kernels: the gradients of queries, keys and values.

    For the tokens of a micro-batch on one device, by the schedules of the kernels, or of so many matmuls at the peak.
    """
    passes = ("forward",) if not backward else ("all",) if setting.traits.fused else ("queries", "keys")
    matmuls = setting.traits.passes if backward else 2
    model, sequence = setting.model, setting.along("sequence")
    keys, heads = keys_per_query(setting.length, setting.block, model.windows), model.heads / setting.along("tensor")
    if not setting.device.attention:
        return 2 * matmuls * setting.tokens * keys * heads * model.head_width / setting.device.peak_flops
    rows = (setting.tokens * sequence / setting.length, setting.length // sequence, setting.length)
    one = (setting.block, rows, keys, model.head_width)
    return heads * sum(kernel_seconds(setting.device, kernel, *one) for kernel in passes)


ROUTER_PASSES = 6  # bfloat16 matmuls in one float32 matmul on a TPU

MUON_STEPS = 5
DEQUANTIZED = 6  # bytes of memory traffic that take as long as to make one number of its nf4 code, in compiled programs
# Bytes of memory traffic of an update, per parameter.
UPDATE = {
    ("adamw", "float32"): 32,
    ("adamw", "bfloat16"): 24,
    ("muon", "float32"): 24,
    ("muon", "bfloat16"): 20,
    ("adafactor", "float32"): 20,
}


class Part(NamedTuple):
    """One part of a step, on one device and for the whole step.

    Args:
        flops: of matmuls.
        grouped_flops: of matmuls with one matrix for each expert.
        kernel_seconds: of attention kernels at best.
        moved_bytes: read from memory or written to it.
    """

    flops: float = 0.0
    grouped_flops: float = 0.0
    kernel_seconds: float = 0.0
    moved_bytes: float = 0.0


def step_parts(setting: Setting) -> dict[str, Part]:
    """The parts of a step: forward and backward pass, recomputation, and the update."""
    found = {"loss": _output_work(setting)}
    found["optimizer"] = Part(flops=_muon_flops(setting), moved_bytes=_update_bytes(setting))
    for of, count in setting.stacks:
        for name, part in _parts_of_layers(of, setting.accumulation * count).items():
            found[name] = _sum_work(found.get(name, Part()), part)
    return found


def _parts_of_layers(setting: Setting, times: int) -> dict[str, Part]:
    """The parts of a layer, so many times."""
    once, again = _layer_work(setting), recomputed_parts(setting)
    passes = 2 if setting.adapter else 3  # a frozen matrix has no gradient
    attention, mlp = _sum_work(once["qkv"], once["out"]), _sum_work(once["up"], once["down"])
    kernels = once["scores"].kernel_seconds + attention_seconds(setting, backward=True)
    parts = {
        "attention": _scaled_work(attention, passes * times),
        "attention kernel": Part(kernel_seconds=times * kernels),
        "experts" if setting.model.experts else "feed-forward": _scaled_work(mlp, passes * times),
        "recomputed": _scaled_work(_sum_work(*(once[name] for name in again), Part()), times),
        "norms and activations": Part(moved_bytes=times * _element_wise_bytes(setting)),
    }
    return parts | ({"adapter": _scaled_work(_adapter_work(setting), times)} if setting.adapter else {})


def recomputed_parts(setting: Setting) -> tuple[str, ...]:
    """The parts of a layer that the backward pass recomputes. Our experts always recompute `up` if they are spread."""
    spread = setting.model.experts and setting.along("expert") > 1 and setting.traits.halves
    return tuple(dict.fromkeys((*setting.recompute, "up"))) if spread else setting.recompute


def useful_flops(setting: Setting) -> float:
    """FLOPs of a device's share of a step for the MFU: without recomputation, with half of the scores."""
    each = training_flops_per_token(setting.model, setting.length, frozen=setting.adapter is not None)
    return each * setting.global_tokens / setting.topology.devices


def _layer_work(setting: Setting) -> dict[str, Part]:
    """The forward pass of one layer, by the names in model/block.py."""
    model, M, tensor = setting.model, setting.tokens, setting.along("tensor")
    D, N, K, H = model.width, model.heads, model.kv_heads, model.head_width

    def matmul(inputs: float, outputs: float) -> Part:
        """One that `model.matmuls` concerns: in fp8 at twice the peak. The codes are written and read beside it."""
        part = _matmul_work(M, inputs, outputs)
        if model.matmuls != "fp8" or not inputs * outputs:  # there may be no shared experts
            return part
        codes = 2 * (M * inputs + inputs * outputs)
        return Part(flops=part.flops / (2 if setting.device.fp8 else 1), moved_bytes=part.moved_bytes + codes)

    layer = {
        "qkv": matmul(D, (N + 2 * K) * H / tensor),
        "scores": Part(kernel_seconds=attention_seconds(setting)),
        "out": matmul(N * H / tensor, D),
    }
    ups, F = (2 if model.gated else 1), model.mlp_width / tensor
    if not model.experts:
        return layer | {"up": matmul(D, ups * F), "down": matmul(F, D)}
    rows, here = M * model.experts_per_token * setting.padding, model.experts / setting.along("expert")
    rows *= here if setting.traits.every_expert else 1
    router = Part(flops=2 * M * D * model.experts * ROUTER_PASSES)
    shared = model.shared_experts * F

    def grouped(inputs: float, outputs: float) -> Part:
        """Rows by the matrix of their own expert. With padding, each expert has as many rows: an ordinary matmul."""
        moved, flops = 2 * (rows * (inputs + outputs) + here * inputs * outputs), 2 * rows * inputs * outputs
        return Part(moved_bytes=moved, **{"flops" if setting.padding > 1 else "grouped_flops": flops})

    up = _sum_work(router, grouped(D, ups * F), matmul(D, ups * shared))
    return layer | {"up": up, "down": _sum_work(grouped(F, D), matmul(shared, D))}


def _matmul_work(rows: float, inputs: float, outputs: float) -> Part:
    moved = 2 * (rows * (inputs + outputs) + inputs * outputs)
    return Part(flops=2 * rows * inputs * outputs, moved_bytes=moved)


def _output_work(setting: Setting) -> Part:
    """The logits of all tokens, their gradient, and the table's gradient: three matmuls; logits are read four times.

    Each chunk reads the table twice and adds to its gradient in float32. This memory traffic has the full bandwidth.
    """
    model, M = setting.model, setting.tokens
    V = model.vocabulary_size / setting.along("tensor")
    again = 12 * (setting.chunks - 1) * model.width * V * setting.device.hbm_efficiency
    passes, again = (2, 0.0) if setting.adapter else (3, again)  # of a frozen table there is no gradient
    matmuls = _scaled_work(_matmul_work(M, model.width, V), passes)
    return _scaled_work(matmuls._replace(moved_bytes=matmuls.moved_bytes + 16 * M * V + again), setting.accumulation)


def _adapter_work(setting: Setting) -> Part:
    """The adapter's matmuls of one layer, which wait for memory: each reads what its matrix reads, and adds to what
    that writes. Forward, recomputed, and twice in the backward pass.

    Then the numbers of a quantized base, which each pass makes of its codes.
    """
    model, M, rank = setting.model, setting.tokens, setting.adapter.rank
    passes, share = 3 + bool(setting.recompute), (model.experts + model.shared_experts) or 1
    rows = M * (model.experts_per_token + model.shared_experts if model.experts else 1)
    low = [_matmul_work(rows, inputs, rank) for inputs, _ in setting.targets]
    high = [_matmul_work(rows, rank, to)._replace(moved_bytes=4 * rows * to) for _, to in setting.targets]
    matmuls = _scaled_work(_sum_work(*low, *high), passes / share / setting.along("tensor"))
    written = DEQUANTIZED * setting.layer_parameters * (2 + bool(setting.recompute))
    return matmuls._replace(moved_bytes=matmuls.moved_bytes + written * bool(setting.adapter.quantize_base))


def _element_wise_bytes(setting: Setting) -> float:
    """Bytes of norms, RoPE, residuals and activations of one layer: forward, backward and recomputed.

    The compiler fuses much of it into matmuls. One read and one write of each array are counted.
    """
    model, M, tensor = setting.model, setting.tokens, setting.along("tensor")
    heads = (model.heads + 2 * model.kv_heads) * model.head_width / tensor
    hidden = (2.5 if model.gated else 1.5) * model.mlp_width / tensor
    if model.experts:
        # Rows are also sorted, dispatched and combined.
        k = model.experts_per_token * setting.padding
        hidden = k * (hidden + 4 * model.width) + model.shared_experts * hidden
    attention, mlp = 4 * model.width + 2 * heads, 4 * model.width + hidden
    parts = setting.length / setting.block if setting.traits.fused else 0  # of the queries' gradient
    summed = parts * model.heads * model.head_width / tensor
    again = (attention if "qkv" in setting.recompute else 0) + (mlp if "up" in recomputed_parts(setting) else 0)
    return 2 * M * (3 * (attention + mlp) + again + summed)


def _update_bytes(setting: Setting) -> float:
    """Bytes to read each parameter, its gradient (twice: once for the norm) and its moments, and to write all but the
    gradient."""
    layers = setting.parameters_of_layers
    parameters = (layers + setting.tables * setting.table) / setting.along("fsdp")
    if setting.adapter:
        parameters = setting.adapters_of_layers / setting.along("fsdp", "expert")
    accumulated = 12 * (setting.accumulation - 1)
    return parameters * (UPDATE[setting.optimizer.kind, setting.optimizer.moments] + accumulated)


def _muon_flops(setting: Setting) -> float:
    """FLOPs of Muon: five steps of three matmuls for each hidden matrix; the devices of a slice share the matrices."""
    if setting.optimizer.kind != "muon" or setting.adapter:
        return 0.0
    found, of = 0, lambda i, o: 2 * min(i, o) ** 2 * (2 * max(i, o) + min(i, o))
    for model, numbers in setting.model.stacks.values():
        D, NH, KH, F = model.width, model.heads * model.head_width, model.kv_heads * model.head_width, model.mlp_width
        matrices = [(2, D, NH), (2, D, KH), ((3 if model.gated else 2) * max(model.experts, 1), D, F)]
        found += len(numbers) * sum(count * MUON_STEPS * of(inputs, outputs) for count, inputs, outputs in matrices)
    return found * setting.topology.slices / setting.topology.devices


def _sum_work(*parts: Part) -> Part:
    return Part(*map(sum, zip(*parts, strict=True)))


def _scaled_work(part: Part, times: float) -> Part:
    return Part(*(times * value for value in part))
