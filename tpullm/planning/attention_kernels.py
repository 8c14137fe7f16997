"""The shortest time of the attention kernel: on a TPU by the compiler's schedule of it, elsewhere at the peak.

A TPU's kernel multiplies one block of queries by one block of keys in each turn of its loop. It multiplies the blocks
on the diagonal whole. Large blocks therefore waste more computation, and small blocks take more turns.
"""

from tpullm.hardware.chip import Chip
from tpullm.planning.setting import Setting

MATMULS = {"forward": 2, "queries": 3, "keys": 4, "all": 5}  # of the size of the scores, in each kernel
UNIT = 128  # width of a matrix unit; a narrower head leaves the rest of the unit idle
# Seconds that a turn waits for memory, which no schedule shows. A guess: with less, blocks of 2,048 would never pay on
# a v6e, and MaxText's tuned recipes for the v6e use them.
TURN = 0.35e-6


def forward(setting: Setting) -> float:
    """Seconds of one layer's forward kernel, for the tokens of a micro-batch on one device."""
    return _best(setting, ("forward",), 2)


def backward(setting: Setting) -> float:
    """Seconds of one layer's backward kernels: the gradients of queries, keys and values."""
    passes = ("all",) if setting.habits.fused else ("queries", "keys")
    return _best(setting, passes, setting.habits.passes)


def keys_per_query(length: int, block: int, windows: tuple[int, ...] = ()) -> float:
    """Keys that the kernel multiplies with a query, in the mean over queries and layers.

    These are the keys up to the diagonal or within the window, in whole blocks.

    Args:
        windows: of the layers; 0 is a layer without a window.
    """
    block = min(block, length)
    of = [
        (length + block) / 2 if not window or window >= length else min(window + block, length)
        for window in windows or (0,)
    ]
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


def _best(setting: Setting, passes: tuple[str, ...], matmuls: int) -> float:
    """Seconds of these passes by their schedules, or of so many matmuls at the peak."""
    model, sequence = setting.model, setting.along("sequence")
    keys, heads = keys_per_query(setting.length, setting.block, model.windows), model.heads / setting.along("tensor")
    if not setting.device.attention:
        return 2 * matmuls * setting.tokens * keys * heads * model.head_width / setting.device.peak_flops
    rows = (setting.tokens * sequence / setting.length, setting.length // sequence, setting.length)
    one = (setting.block, rows, keys, model.head_width)
    return heads * sum(kernel_seconds(setting.device, kernel, *one) for kernel in passes)
