"""How long attention's kernel takes at best: on a TPU by the compiler's own schedule of it, elsewhere at the peak.

A TPU's kernel goes over blocks of queries and of keys, a block a turn. Blocks on the diagonal are multiplied whole, so
that large blocks compute more for nothing, and small ones take more turns.
"""

from tpullm.hardware.chip import Chip
from tpullm.planning.setting import Setting

PRODUCTS = {"forward": 2, "queries": 3, "keys": 4, "all": 5}  # of the scores' size, in each kernel
UNIT = 128  # width of a matrix unit; a head that is narrower leaves the rest of it idle
# Seconds of a turn in which memory is waited for, which no schedule shows. A guess: with less, blocks of 2,048 would
# never pay on a v6e, and MaxText's tuned recipes for it have them.
TURN = 0.35e-6


def forward(setting: Setting) -> float:
    """Seconds of one layer's scores and of what they mix, for the tokens of a micro-batch on one device."""
    return _best(setting, ("forward",), 2)


def backward(setting: Setting) -> float:
    """The same of the gradients of queries, keys and values."""
    passes = ("all",) if setting.habits.fused else ("queries", "keys")
    return _best(setting, passes, setting.habits.passes)


def seen(length: int, block: int, windows: tuple[int, ...] = ()) -> float:
    """Keys that a query's kernel goes over, in the mean over layers: up to the diagonal or within the window."""
    block = min(block, length)
    of = [
        (length + block) / 2 if not window or window >= length else min(window + block, length)
        for window in windows or (0,)
    ]
    return sum(of) / len(of)


def scheduled(chip: Chip, kernel: str, block: int, rows: tuple[float, int, int], keys: float, width: int) -> float:
    """Seconds that one head adds to a kernel; the cores of a chip share the heads.

    Args:
        kernel: `forward`, `queries`, `keys` or `all`; that of all gradients takes a turn for each block, those beyond
            the diagonal included.
        rows: how many there are, with how many queries and how many keys.
        keys: that a query sees.
        width: of the head.
    """
    count, queries, length = rows
    of = chip.attention[block][kernel]
    # A schedule does not show where it waits for the unit of products, which nothing makes faster.
    a_cycle = chip.peak_flops / chip.clock / chip.cores
    body = max(of.body, 2 * PRODUCTS[kernel] * block**2 * UNIT / a_cycle)
    multiplied = count * queries * keys / block**2
    turns = count * queries * length / block**2 if kernel == "all" else multiplied
    edges = count * (length if kernel in ("keys", "all") else queries) / block
    cycles = (body * multiplied + of.edge * edges) * max(width, UNIT) / UNIT + of.turn * turns
    return (cycles / chip.clock + TURN * turns) / chip.cores


def largest(chip: Chip, block: int) -> int:
    """The largest block of the chip's table that is no larger."""
    return max(of for of in chip.attention if of <= block)


def _best(setting: Setting, passes: tuple[str, ...], products: int) -> float:
    """By the schedules of these passes, or by so many products at the peak."""
    model, sequence = setting.model, setting.along("sequence")
    keys, heads = seen(setting.length, setting.block, model.windows), model.heads / setting.along("tensor")
    if not setting.device.attention:
        return 2 * products * setting.tokens * keys * heads * model.head_width / setting.device.peak_flops
    rows = (setting.tokens * sequence / setting.length, setting.length // sequence, setting.length)
    one = (setting.block, rows, keys, model.head_width)
    return heads * sum(scheduled(setting.device, kernel, *one) for kernel in passes)
