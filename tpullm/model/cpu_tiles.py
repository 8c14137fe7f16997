"""Rows times a packed matrix by the tiles of AMX, for `cpu_kernels.py` on processors that have them.

A unit of a packed matrix, 32 inputs of 16 outputs, stands in the order that one instruction multiplies with these
inputs of up to 16 rows. bfloat16: a unit fills a register. Two groups of rows and two tiles of the matrix are
multiplied at a time, so that what is loaded is used twice. Integers: the products of a block go through memory, for
each block has a scale of its own; they are exact, so the numbers are those of other instructions.
"""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache

from tpullm.model import cpu_code
from tpullm.model.cpu_code import Text
from tpullm.model.platform import LANES

GROUPS = {2 * LANES: LANES + 1, LANES: 1}  # of bfloat16: rows that a function takes at most, and at least
ROWS = {8: (16, 8, 4, 2), 4: (16, 8)}  # of integers of so many bits; fewer are multiplied faster without tiles
ROWS_OF_PAIRS = 8  # of integers: so many rows, or fewer, take two tiles of the matrix at a time
_UNIT_BYTES, _ROW_BYTES = 1024, 64  # of a register
_SUMS, _INPUTS, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)  # registers; sums by group of rows and tile of the matrix
DECLARED = """
declare i64 @llvm.umax.i64(i64, i64)
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tileloadd64(i8, ptr, i64)
declare void @llvm.x86.tilestored64(i8, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8, i8, i8)
declare void @llvm.x86.tdpbsud(i8, i8, i8)"""


def can_use(bits: int) -> bool:
    """Whether this process may use tiles of bfloat16 (16 bits), or of integers."""
    return cpu_code.has("amx-bf16" if bits == 16 else "amx-int8") and _may_use()


@cache
def _may_use() -> bool:
    """Linux keeps 8 kB more of a process that asks: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`."""
    return ctypes.CDLL(None).syscall(*map(ctypes.c_long, (158, 0x1023, 18))) == 0


def functions(arguments: str) -> list[str]:
    """Of bfloat16, the functions of `GROUPS`, with these arguments."""
    return [_rows(most, arguments) for most in GROUPS]


def _configure(text: Text, rows: dict[int, int | str], widths: dict[int, int]) -> None:
    """Tells the processor how many rows each register has, of 64 bytes or as `widths` says: see LDTILECFG."""
    text("%settings = alloca [64 x i8]")
    text("call void @llvm.memset.p0.i64(ptr %settings, i8 0, i64 64, i1 false)\nstore i8 1, ptr %settings")
    for register, count in rows.items():
        text(f"store i16 {widths.get(register, _ROW_BYTES)}, ptr {text.at('i16', '%settings', 8 + register)}")
        text(f"store i8 {count}, ptr {text.at('i8', '%settings', 48 + register)}")
    text("call void @llvm.x86.ldtilecfg(ptr %settings)")


def prepare(text: Text, count: int, block: int, pair: int) -> None:
    """At the begin of a function of so many rows of integers, with a scale for so many inputs; `pair`: how many tiles
    of the matrix it multiplies at a time.
    """
    rows = dict.fromkeys((*_SUMS[0], _INPUTS[0]), count) | dict.fromkeys(_WEIGHTS, block // 4)
    _configure(text, rows, {_INPUTS[0]: block})
    for p in range(pair):
        text(f"%products{p} = alloca [{_UNIT_BYTES} x i8], align 64")
        text(f"%bytes{p} = alloca [{LANES * block} x i8], align 64")


def products(text: Text, count: int, x: str, weights: Sequence[str | Iterable[tuple[int, str]]]) -> list[list[str]]:
    """Of a block, the sums of products of so many rows with 16 outputs of each of one or two tiles of the matrix.

    Args:
        x: where the integers of the first row are; those of others are `%K` bytes after each other.
        weights: of each tile where they are, a byte each, or four inputs each with their place.
    """
    _load(text, _INPUTS[0], x, "%K")
    for p, (own, sums, register) in enumerate(zip(weights, _SUMS[0], _WEIGHTS, strict=False)):
        if not isinstance(own, str):
            for place, four in own:
                text(f"store <64 x i8> {four}, ptr {text.at('<64 x i8>', f'%bytes{p}', place)}, align 64")
            own = f"%bytes{p}"
        text(f"call void @llvm.x86.tilezero(i8 {sums})")
        _load(text, register, own, _ROW_BYTES)
        text(f"call void @llvm.x86.tdpbsud(i8 {sums}, i8 {_INPUTS[0]}, i8 {register})")
        text(f"call void @llvm.x86.tilestored64(i8 {sums}, ptr %products{p}, i64 {_ROW_BYTES})")
    rows = range(count)
    return [[text.load("<16 x i32>", f"%products{p}", row, align=64) for row in rows] for p in range(len(weights))]


def _rows(most: int, arguments: str) -> str:
    """`%count` rows times the tiles from `%begin` to `%end`. The last one of an odd number is multiplied twice, and
    stored twice in the same place.
    """
    text, groups = Text(), range(most // LANES)
    text(f"define private void @rows{most}({arguments}) {{\nfirst:")
    first = text.set(f"call i64 @llvm.umin.i64(i64 %count, i64 {LANES})")
    second = text.whole("sub", text.set(f"call i64 @llvm.umax.i64(i64 %count, i64 {LANES + 1})"), LANES)
    rows = dict.fromkeys(_WEIGHTS, LANES)
    for group, count in zip(groups, (first, second), strict=False):
        rows |= dict.fromkeys((*_SUMS[group], _INPUTS[group]), text.set(f"trunc i64 {count} to i8"))
    _configure(text, rows, {})
    of_row, of_out = text.whole("mul", "%K", 2), text.whole("mul", "%N", 4)
    tile_bytes, last = text.whole("mul", "%K", 2 * LANES), text.whole("sub", "%end", 1)
    inputs = [text.at("i8", "%x", text.whole("mul", of_row, LANES * group)) for group in groups]
    out = [text.at("i8", "%out", text.whole("mul", of_out, LANES * group)) for group in groups]
    with text.loop("%begin", "%end", 2) as tile:
        tiles = [tile, text.set(f"call i64 @llvm.umin.i64(i64 {text.whole('add', tile, 1)}, i64 {last})")]
        weights = [text.at("i8", "%codes", text.whole("mul", own, tile_bytes)) for own in tiles]
        for register in sum(_SUMS[: len(groups)], ()):
            text(f"call void @llvm.x86.tilezero(i8 {register})")
        with text.loop(0, text.whole("udiv", "%K", _ROW_BYTES // 2)) as unit:
            unit_bytes, row_bytes = text.whole("mul", unit, _UNIT_BYTES), text.whole("mul", unit, _ROW_BYTES)
            for register, of in zip(_WEIGHTS, weights, strict=True):
                _load(text, register, text.at("i8", of, unit_bytes), _ROW_BYTES)
            for group in groups:
                _load(text, _INPUTS[group], text.at("i8", inputs[group], row_bytes), of_row)
                for sums, register in zip(_SUMS[group], _WEIGHTS, strict=True):
                    text(f"call void @llvm.x86.tdpbf16ps(i8 {sums}, i8 {_INPUTS[group]}, i8 {register})")
        for group in groups:
            for register, own in zip(_SUMS[group], tiles, strict=True):
                column = text.whole("mul", text.whole("sub", own, "%begin"), _ROW_BYTES)
                place = text.at("i8", out[group], column)
                text(f"call void @llvm.x86.tilestored64(i8 {register}, ptr {place}, i64 {of_out})")
    text("call void @llvm.x86.tilerelease()\nret void\n}")
    return "\n".join(text.lines)


def _load(text: Text, register: int, place: str, row_bytes: int | str) -> None:
    text(f"call void @llvm.x86.tileloadd64(i8 {register}, ptr {place}, i64 {row_bytes})")
