"""How long attention's kernel takes at best: on a TPU by the compiler's own schedule of it, elsewhere at the peak.

A TPU's kernel goes over blocks of queries and of keys, a block a turn. Blocks on the diagonal are multiplied whole, so
that large blocks compute more for nothing, and small ones take more turns.
"""

from typing import NamedTuple

from tpullm.hardware.chips import CHIPS
from tpullm.planning.setting import Setting

# Cycles a second of a schedule, inferred from the products that the compiler expects to be at the peak; and the cores
# of a chip, which share the heads.
CLOCKS = {"v5e": 1.5e9, "v6e": 1.75e9, "v5p": 1.75e9}
CORES = {"v5e": 1, "v6e": 1, "v5p": 2}
PRODUCTS = {"forward": 2, "queries": 3, "keys": 4, "all": 5}  # of the scores' size, in each kernel
UNIT = 128  # width of a matrix unit; a head that is narrower leaves the rest of it idle
# Seconds of a turn in which memory is waited for, which no schedule shows. A guess: with less, blocks of 2,048 would
# never pay on a v6e, and MaxText's tuned recipes for it have them.
TURN = 0.35e-6


class Cycles(NamedTuple):
    """Of a turn that multiplies a block, of all that every turn does, and of what begins and ends a row of blocks."""

    body: int
    turn: int
    edge: int


# Of the splash kernels with segments and heads of 128, by benchmarks/kernels.py (libtpu 0.0.50). `queries` and `keys`
# are the gradients in two passes, `all` those in one. What is missing does not fit the memory on the chip.
TABLE = {
    ("v5e", 128): {"forward": (265, 101, 164), "queries": (263, 95, 56), "keys": (253, 126, 86), "all": (350, 129, 92)},
    ("v5e", 256): {
        "forward": (518, 112, 289),
        "queries": (518, 116, 74),
        "keys": (723, 110, 161),
        "all": (822, 106, 198),
    },
    ("v5e", 512): {
        "forward": (1184, 112, 533),
        "queries": (1493, 92, 147),
        "keys": (1927, 110, 258),
        "all": (2431, 106, 327),
    },
    ("v5e", 1024): {
        "forward": (4762, 107, 1021),
        "queries": (5776, 93, 243),
        "keys": (7456, 110, 449),
        "all": (9277, 106, 583),
    },
    ("v6e", 128): {
        "forward": (234, 120, 112),
        "queries": (204, 108, 48),
        "keys": (240, 143, 70),
        "all": (329, 144, 76),
    },
    ("v6e", 256): {
        "forward": (558, 131, 169),
        "queries": (460, 127, 58),
        "keys": (657, 131, 121),
        "all": (779, 141, 126),
    },
    ("v6e", 512): {
        "forward": (939, 137, 275),
        "queries": (1089, 107, 106),
        "keys": (1346, 131, 178),
        "all": (1597, 125, 215),
    },
    ("v6e", 1024): {
        "forward": (3799, 126, 504),
        "queries": (4066, 107, 163),
        "keys": (4769, 131, 290),
        "all": (5976, 125, 360),
    },
    ("v6e", 2048): {
        "forward": (15650, 126, 952),
        "queries": (14709, 107, 277),
        "keys": (17852, 131, 515),
        "all": (22970, 125, 649),
    },
    ("v5p", 128): {
        "forward": (259, 289, 164),
        "queries": (257, 192, 53),
        "keys": (249, 236, 83),
        "all": (341, 284, 87),
    },
    ("v5p", 256): {
        "forward": (521, 300, 288),
        "queries": (520, 215, 70),
        "keys": (726, 221, 159),
        "all": (832, 257, 195),
    },
    ("v5p", 512): {
        "forward": (1183, 300, 532),
        "queries": (1503, 192, 146),
        "keys": (1893, 221, 256),
        "all": (2439, 257, 324),
    },
    ("v5p", 1024): {
        "forward": (4717, 300, 1019),
        "queries": (5733, 192, 239),
        "keys": (7339, 220, 447),
        "all": (9360, 256, 578),
    },
}
SCHEDULES = {of: {name: Cycles(*values) for name, values in kernels.items()} for of, kernels in TABLE.items()}


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


def scheduled(generation: str, kernel: str, block: int, rows: tuple[float, int, int], keys: float, width: int) -> float:
    """Seconds that one head adds to a kernel; the cores of a chip share the heads.

    Args:
        kernel: `forward`, `queries`, `keys` or `all`; that of all gradients takes a turn for each block, those beyond
            the diagonal included.
        rows: how many there are, with how many queries and how many keys.
        keys: that a query sees.
        width: of the head.
    """
    count, queries, length = rows
    of = SCHEDULES[generation, block][kernel]
    # A schedule does not show where it waits for the unit of products, which nothing makes faster.
    a_cycle = CHIPS[generation].peak_flops / CLOCKS[generation] / CORES[generation]
    body = max(of.body, 2 * PRODUCTS[kernel] * block**2 * UNIT / a_cycle)
    multiplied = count * queries * keys / block**2
    turns = count * queries * length / block**2 if kernel == "all" else multiplied
    edges = count * (length if kernel in ("keys", "all") else queries) / block
    cycles = (body * multiplied + of.edge * edges) * max(width, UNIT) / UNIT + of.turn * turns
    return (cycles / CLOCKS[generation] + TURN * turns) / CORES[generation]


def largest(generation: str, block: int) -> int:
    """The largest block of the table that is no larger."""
    return max(of for where, of in SCHEDULES if where == generation and of <= block)


def _best(setting: Setting, passes: tuple[str, ...], products: int) -> float:
    """By the schedules of these passes, or by so many products at the peak."""
    model, sequence = setting.model, setting.along("sequence")
    keys, heads = seen(setting.length, setting.block, model.windows), model.heads / setting.along("tensor")
    if setting.topology.generation == "local":
        return 2 * products * setting.tokens * keys * heads * model.head_width / setting.device.peak_flops
    rows = (setting.tokens * sequence / setting.length, setting.length // sequence, setting.length)
    one = (setting.topology.generation, setting.block)
    return heads * sum(scheduled(one[0], of, one[1], rows, keys, model.head_width) for of in passes)
