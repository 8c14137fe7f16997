"""Matmuls of few rows with a packed matrix, on a CPU: LLVM compiles them for this processor, XLA calls them.

A step of decoding waits for the bytes of the weights. XLA for a CPU reads them at a fraction of the memory's speed, and
dequantizes a matrix to memory before it multiplies it (docs/design/decoding-on-a-cpu.md has the figures). Here each
number is read once, in the order in which it lies in memory (`packed.py`), and is used for up to 8 rows.

Integers: a row is rounded to 8 bits with a scale for each block, as llama.cpp does it, and 4 products of a byte each
are summed by one instruction (`vpdpbusd`), which takes the weights without a sign: so they are stored plus 128 (or 8),
and that times the sum of the row's block is subtracted first. bfloat16: two products at a time (`vdpbf16ps`). A
processor without these instructions gets loops of the same results.

Groups of rows that are zeros are not multiplied: so the last rows of the cache cost nothing while no text has them.
"""

from functools import cache

from tpullm.model import cpu_code, cpu_pieces, cpu_tiles
from tpullm.model.cpu_code import Text
from tpullm.model.platform import LANES
from tpullm.system.process import cores

_ROWS = (8, 4, 2, 1)  # rows that share what is read of a tile
_ARGUMENTS = ", ".join(
    [f"ptr noalias %{name}" for name in ("x", "scales", "sums", "codes", "of_codes", "out")]
    + [f"i64 %{name}" for name in ("count", "K", "N", "begin", "end")]
)
_CACHED_BYTES = 1 << 18  # of weights, which a core's second cache keeps
_PIECES_OF_CORE = 3  # at most: cores are not equally fast
_PAIRS = 8  # of inputs of bfloat16 in a step of the inner loop
# How far ahead weights are asked for. bfloat16 on a Zen 4: 8 rows 0.72 times the time, 32 rows 0.87, 1 row the same.
# Integers by registers of tiles: 8 rows 0.82, 16 rows 0.72, 32 rows 0.79; without these it made nothing faster.
_AHEAD_BYTES = 4096


@cache
def target_name(bits: int, block: int, half: bool, prefix: str = "tpullm") -> str:
    """The FFI target of a matmul, compiled when it is first asked for, and kept for the next process.

    Args:
        bits: of the weights: 16 (bfloat16), 8 or 4.
        block: inputs that share a scale, 32 or 64; for 16 bits 2.
        half: scales are float16, not float32.

    Arguments of the call: rows `[M, K]` (float32; bfloat16 for 16 bits), then of each matrix codes
    `[tiles, K / 32, bytes]` and of integers scales `[tiles, K / block, 16]` of `Packed`. Results: of each matrix
    `[M, 16 tiles]` float32, and of integers three arrays in which the rounded rows stand: codes `[M, K]`, scales and
    sums `[M, K / block]`.
    """
    name = f"{prefix}_matmul_{bits}_{block}_{'half' if half else 'float'}"
    return cpu_code.register(name, _module(name, bits, block, half, cpu_tiles.can_use(bits)))


def _module(name: str, bits: int, block: int, half: bool, tiles: bool) -> str:
    fast = cpu_code.has("avx512bf16" if bits == 16 else "avx512vnni")
    declared = [
        "declare i64 @llvm.umin.i64(i64, i64)",
        "declare i32 @llvm.vector.reduce.or.v16i32(<16 x i32>)",
        "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        cpu_code.FUSED,
        f"declare <{block} x float> @llvm.fabs.v{block}f32(<{block} x float>)",
        f"declare <{block} x float> @llvm.rint.v{block}f32(<{block} x float>)",
        f"declare float @llvm.vector.reduce.fmax.v{block}f32(<{block} x float>)",
        f"declare i32 @llvm.vector.reduce.add.v{block}i32(<{block} x i32>)",
    ]
    if tiles:
        declared.append(cpu_tiles.DECLARED)
    if fast and bits == 16:
        declared.append(cpu_code.TWO_PRODUCTS)
    elif fast:
        declared.append("declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)")
    groups = {count: count for count in _ROWS}
    rounding = [] if bits == 16 else [_rounding(bits, block)]
    if tiles and bits == 16:
        groups = cpu_tiles.GROUPS
        rows = cpu_tiles.functions(_ARGUMENTS)
    else:
        groups = {count: count for count in (*(cpu_tiles.ROWS[bits] if tiles else ()), *_ROWS)}
        rows = [_rows(count, bits, block, half, fast, tiles and count in cpu_tiles.ROWS[bits]) for count in groups]
    handler = _handler(name, bits, block), _piece(bits, block, groups)
    return "\n".join([*declared, cpu_pieces.functions(), *rounding, *rows, _ZEROS, *handler])


def _rounding(bits: int, block: int) -> str:
    """Rows to codes of -127 to 127, a scale for each block, and minus the offset of weights times the block's sum."""
    return f"""
define private void @round(ptr noalias %x, ptr noalias %codes, ptr noalias %scales, ptr noalias %sums, i64 %blocks) {{
begin:
  br label %block
block:
  %b = phi i64 [ 0, %begin ], [ %next, %block ]
  %first = mul i64 %b, {block}
  %source = getelementptr float, ptr %x, i64 %first
  %numbers = load <{block} x float>, ptr %source, align 4
  %sizes = call <{block} x float> @llvm.fabs.v{block}f32(<{block} x float> %numbers)
  %largest = call nnan float @llvm.vector.reduce.fmax.v{block}f32(<{block} x float> %sizes)
  %scale = fdiv float %largest, 127.0
  %some = fcmp ogt float %largest, 0.0
  %divided = fdiv float 127.0, %largest
  %factor = select i1 %some, float %divided, float 0.0
  %one = insertelement <{block} x float> poison, float %factor, i32 0
  %all = shufflevector <{block} x float> %one, <{block} x float> poison, <{block} x i32> zeroinitializer
  %scaled = fmul <{block} x float> %numbers, %all
  %rounded = call <{block} x float> @llvm.rint.v{block}f32(<{block} x float> %scaled)
  %integers = fptosi <{block} x float> %rounded to <{block} x i32>
  %bytes = trunc <{block} x i32> %integers to <{block} x i8>
  %target = getelementptr i8, ptr %codes, i64 %first
  store <{block} x i8> %bytes, ptr %target, align 1
  %scale_at = getelementptr float, ptr %scales, i64 %b
  store float %scale, ptr %scale_at, align 4
  %total = call i32 @llvm.vector.reduce.add.v{block}i32(<{block} x i32> %integers)
  %offset = mul i32 %total, {-(1 << bits - 1)}
  %sum_at = getelementptr i32, ptr %sums, i64 %b
  store i32 %offset, ptr %sum_at, align 4
  %next = add i64 %b, 1
  %more = icmp ult i64 %next, %blocks
  br i1 %more, label %block, label %end
end:
  ret void
}}"""


def _rows(count: int, bits: int, block: int, half: bool, fast: bool, tiles: bool) -> str:
    """Some rows times the tiles from `%begin` to `%end`. A step of the inner loop reads a block of inputs.

    With registers of tiles, few rows take two tiles of the matrix at a time, for one would wait for its products; the
    last one of an odd number is multiplied twice, and stored twice in the same place.
    """
    text, pair = Text(), range(2 if tiles and count <= cpu_tiles.ROWS_OF_PAIRS else 1)
    lanes = [(p, r) for p in pair for r in range(count)]
    text(f"define private void @rows{count}({_ARGUMENTS}) {{\nfirst:")
    if tiles:
        cpu_tiles.prepare(text, count, block, len(pair))
    text(f"%blocks = udiv i64 %K, {block}")
    text("%last_t = sub i64 %end, 1\nbr label %tile\ntile:")
    text("%t = phi i64 [ %begin, %first ], [ %next_t, %tile_end ]")
    own_tiles = [text.set(f"call i64 @llvm.umin.i64(i64 {text.whole('add', '%t', p)}, i64 %last_t)") for p in pair]
    firsts = [text.whole("mul", tile, "%blocks") for tile in own_tiles]
    text("br label %block\nblock:")
    text("%b = phi i64 [ 0, %tile ], [ %next_b, %block ]")
    for p, r in lanes:
        text(f"%old{p}_{r} = phi <16 x float> [ zeroinitializer, %tile ], [ %new{p}_{r}, %block ]")
    places = [text.set(f"add i64 {first}, %b") for first in firsts]
    codes = [text.at("i8", "%codes", text.set(f"mul i64 {place}, {LANES * block * bits // 8}")) for place in places]
    own = [text.set(f"add i64 %b, {text.set(f'mul i64 %blocks, {r}')}") for r in range(count)]
    if bits == 16:
        total = [f"%old0_{r}" for r in range(count)]
        _ask_ahead(text, codes[0], 64 * _PAIRS)
        for n in range(_PAIRS):
            weights = text.load("<32 x bfloat>", codes[0], n, align=4)
            for r in range(count):
                two = text.load("i32", text.at("i32", "%x", own[r]), n)
                x = text.set(f"bitcast <16 x i32> {text.splat('i32', two)} to <32 x bfloat>")
                added = text.two_products(total[r], weights, x, fast)
                if n == _PAIRS - 1:
                    text(f"%new0_{r} = {added}")
                else:
                    total[r] = text.set(added)
    else:
        offsets = [text.splat("i32", text.load("i32", "%sums", own[r])) for r in range(count)]
        x = [text.at("i8", "%x", text.set(f"mul i64 {own[r]}, {block}")) for r in range(count)]
        if tiles:
            for of in codes:
                _ask_ahead(text, of, block * LANES * bits // 8)
            weights = codes if bits == 8 else [_fours(text, of, bits, block) for of in codes]
            products = cpu_tiles.products(text, count, x[0], weights)
            sums = [text.set(f"add <16 x i32> {offsets[r]}, {products[p][r]}") for p, r in lanes]
        else:
            sums = offsets
            for place_of_four, weights in _fours(text, codes[0], bits, block):
                for r in range(count):
                    four = text.splat("i32", text.load("i32", x[r], place_of_four))
                    sums[r] = _four_products(text, sums[r], weights, four, fast)
        kind = "half" if half else "float"
        of_weights = [text.load(f"<16 x {kind}>", "%of_codes", place, align=2) for place in places]
        if half:
            of_weights = [text.set(f"fpext <16 x half> {of} to <16 x float>") for of in of_weights]
        scales = [text.splat("float", text.load("float", "%scales", own[r])) for r in range(count)]
        for (p, r), total in zip(lanes, sums, strict=True):
            number = text.set(f"sitofp <16 x i32> {total} to <16 x float>")
            scale = text.set(f"fmul <16 x float> {of_weights[p]}, {scales[r]}")
            operands = f"<16 x float> {number}, <16 x float> {scale}, <16 x float> %old{p}_{r}"
            text(f"%new{p}_{r} = call <16 x float> @llvm.fmuladd.v16f32({operands})")
    text(f"%next_b = add i64 %b, {_PAIRS if bits == 16 else 1}\n%more_b = icmp ult i64 %next_b, %blocks")
    text("br i1 %more_b, label %block, label %tile_end\ntile_end:")
    columns = [text.set(f"mul i64 {text.set(f'sub i64 {tile}, %begin')}, {LANES}") for tile in own_tiles]
    for p, r in lanes:
        place = text.set(f"add i64 {columns[p]}, {text.set(f'mul i64 %N, {r}')}")
        text(f"store <16 x float> %new{p}_{r}, ptr {text.at('float', '%out', place)}, align 4")
    text(f"%next_t = add i64 %t, {len(pair)}\n%more_t = icmp ult i64 %next_t, %end")
    text("br i1 %more_t, label %tile, label %last\nlast:")
    if tiles:
        text("call void @llvm.x86.tilerelease()")
    text("ret void\n}")
    return "\n".join(text.lines)


def _ask_ahead(text: Text, codes: str, count: int) -> None:
    """Ask for so many bytes of the weights that will be needed after those at `codes`."""
    for n in range(0, count, 64):
        text(f"call void @llvm.prefetch.p0(ptr {text.at('i8', codes, _AHEAD_BYTES + n)}, i32 0, i32 3, i32 1)")


def _fours(text: Text, codes: str, bits: int, block: int):
    """The weights of 4 inputs and 16 outputs, one byte each, and which four of the block they are."""
    if bits == 8:
        for n in range(block // 4):
            yield n, text.load("<64 x i8>", codes, n)
        return
    low = text.splat("i8", 15, 64)
    for n in range(block // 8):
        both = text.load("<64 x i8>", codes, n)
        first = n // 4 * 8 + n % 4  # 32 inputs: the low halves of bytes are of the first 16
        yield first, text.set(f"and <64 x i8> {both}, {low}")
        wide = text.set(f"bitcast <64 x i8> {both} to <32 x i16>")
        wide = text.set(f"lshr <32 x i16> {wide}, {text.splat('i16', 4, 32)}")
        yield first + 4, text.set(f"and <64 x i8> {text.set(f'bitcast <32 x i16> {wide} to <64 x i8>')}, {low}")


def _four_products(text: Text, sums: str, weights: str, four: str, fast: bool) -> str:
    """Sums plus 4 products of each of the 16 outputs."""
    x = text.set(f"bitcast <16 x i32> {four} to <64 x i8>")
    if fast:
        operands = f"<16 x i32> {sums}, <64 x i8> {weights}, <64 x i8> {x}"
        return text.set(f"call <16 x i32> @llvm.x86.avx512.vpdpbusd.512({operands})")
    for n in range(4):
        left = text.set(f"zext <16 x i8> {text.every('i8', weights, n, 4)} to <16 x i32>")
        right = text.set(f"sext <16 x i8> {text.every('i8', x, n, 4)} to <16 x i32>")
        sums = text.set(f"add <16 x i32> {sums}, {text.set(f'mul <16 x i32> {left}, {right}')}")
    return sums


_ZEROS = """
define private i1 @zeros(ptr %row, i64 %parts) {
begin:
  br label %part
part:
  %n = phi i64 [ 0, %begin ], [ %next, %part ]
  %at = getelementptr <16 x i32>, ptr %row, i64 %n
  %words = load <16 x i32>, ptr %at, align 4
  %any = call i32 @llvm.vector.reduce.or.v16i32(<16 x i32> %words)
  %zeros = icmp eq i32 %any, 0
  %next = add i64 %n, 1
  %left = icmp ult i64 %next, %parts
  %more = and i1 %zeros, %left
  br i1 %more, label %part, label %end
end:
  ret i1 %zeros
}"""


def _handler(name: str, bits: int, block: int) -> str:
    """The function that XLA calls. Rows of zeros, which are of no text, are not multiplied."""
    text = Text()
    text.handler(name, {"%used": "i64", "%count": "i64"})
    x, matrices = text.data(text.argument(0)), _matrices(text, bits)
    rows, inputs = (text.size(text.argument(0), axis) for axis in range(2))
    text("store i64 0, ptr %used\nstore i64 0, ptr %count")
    with text.loop(0, rows) as row:
        zeros, before, after = (
            _has_zeros(text, x, inputs, row, bits),
            text.load("i64", "%used"),
            text.whole("add", row, 1),
        )
        text(f"store i64 {text.set(f'select i1 {zeros}, i64 {before}, i64 {after}')}, ptr %used")
    with text.loop(0, matrices) as matrix:
        out = text.result(matrix)
        out_bytes = text.whole("mul", text.whole("mul", rows, text.size(out, 1)), 4)
        text(f"call void @llvm.memset.p0.i64(ptr {text.data(out)}, i8 0, i64 {out_bytes}, i1 false)")
        *_, pieces = _pieces_of(text, matrix, inputs, bits)
        text(f"store i64 {text.whole('add', text.load('i64', '%count'), pieces)}, ptr %count")
    used, count = text.load("i64", "%used"), text.load("i64", "%count")
    if bits < 16:
        codes, scales, sums = (text.data(array) for array in _rounded(text, matrices))
        every = text.whole("mul", used, text.whole("udiv", inputs, block))
        text(f"call void @round(ptr {x}, ptr {codes}, ptr {scales}, ptr {sums}, i64 {every})")
    text(f"call void @pieces(ptr %frame, i64 {count}, i64 {used})\nret ptr null\n}}")
    return "\n".join(text.lines)


def _matrices(text: Text, bits: int) -> str:
    """How many are given."""
    return text.whole("udiv", text.whole("sub", text.arguments(), 1), 1 if bits == 16 else 2)


def _codes(text: Text, matrix: str, bits: int) -> str:
    """The place of its codes among the arguments; its scales are the next one."""
    return text.whole("add", text.whole("mul", matrix, 1 if bits == 16 else 2), 1)


def _rounded(text: Text, matrices: str) -> list[str]:
    """The arrays in which the rounded rows stand."""
    return [text.result(text.whole("add", matrices, n)) for n in range(3)]


def _has_zeros(text: Text, x: str, inputs: str, row: str, bits: int) -> str:
    """Whether a row that was given is zeros."""
    of_row = text.whole("mul", inputs, 2 if bits == 16 else 4)
    own, parts = text.at("i8", x, text.whole("mul", row, of_row)), text.whole("udiv", of_row, 64)
    return text.set(f"call i1 @zeros(ptr {own}, i64 {parts})")


def _pieces_of(text: Text, matrix: str, inputs: str, bits: int) -> tuple[str, str, str]:
    """How many tiles a matrix has, how many are in a piece, and how many pieces there are. A piece is an even number of
    tiles that stays in the cache while all rows are multiplied with it, and few enough for all cores.
    """
    tiles = text.size(text.argument(_codes(text, matrix, bits)), 0)
    cached = text.whole("udiv", _CACHED_BYTES, text.whole("mul", inputs, LANES * bits // 8))
    shared = text.whole("udiv", tiles, _PIECES_OF_CORE * cores())
    few = text.set(f"call i64 @llvm.umin.i64(i64 {cached}, i64 {shared})")
    each = text.whole("and", text.whole("add", few, 2), -2)
    return tiles, each, text.whole("udiv", text.whole("add", tiles, text.whole("sub", each, 1)), each)


def _piece(bits: int, block: int, groups: dict[int, int]) -> str:
    """Some tiles of a matrix for all rows up to the last one that is used."""
    text = Text()
    text("define private void @piece(ptr %frame, i64 %n, i64 %used) {\nbegin:")
    text("%row = alloca i64\n%matrix = alloca i64\n%left = alloca i64")
    given = text.data(text.argument(0))
    inputs = text.size(text.argument(0), 1)
    text("store i64 0, ptr %matrix\nstore i64 %n, ptr %left\nbr label %find\nfind:")
    matrix, number = text.load("i64", "%matrix"), text.load("i64", "%left")
    tiles, each, pieces = _pieces_of(text, matrix, inputs, bits)
    text(f"%is_of_it = icmp ult i64 {number}, {pieces}\nbr i1 %is_of_it, label %found, label %next\nnext:")
    text(f"store i64 {text.whole('sub', number, pieces)}, ptr %left")
    text(f"store i64 {text.whole('add', matrix, 1)}, ptr %matrix\nbr label %find\nfound:")
    place, result = _codes(text, matrix, bits), text.result(matrix)
    codes, out, outputs = text.data(text.argument(place)), text.data(result), text.size(result, 1)
    blocks, x, of_codes, scales, sums = text.whole("udiv", inputs, block), given, "null", "null", "null"
    if bits < 16:
        of_codes = text.data(text.argument(text.whole("add", place, 1)))
        x, scales, sums = (text.data(array) for array in _rounded(text, _matrices(text, bits)))
    tile = text.whole("mul", number, each)
    tiles_end = text.set(f"call i64 @llvm.umin.i64(i64 {text.whole('add', tile, each)}, i64 {tiles})")
    tiles_out = text.at("float", out, text.whole("mul", tile, LANES))
    text("store i64 0, ptr %row\nbr label %next_rows\nnext_rows:")
    row = text.load("i64", "%row")
    left = text.whole("sub", "%used", row)
    text(f"%more = icmp sgt i64 {left}, 0\nbr i1 %more, label %look, label %done\nlook:")
    labels = [f"ask{count}" for count in groups]
    text(f"br i1 {_has_zeros(text, given, inputs, row, bits)}, label %skip, label %{labels[0]}\nskip:")
    text(f"store i64 {text.whole('add', row, 1)}, ptr %row\nbr label %next_rows")
    for (count, least), label, fewer in zip(groups.items(), labels, [*labels[1:], "done"], strict=True):
        text(f"{label}:\n%fits{count} = icmp sge i64 {left}, {least}")
        text(f"br i1 %fits{count}, label %do{count}, label %{fewer}\ndo{count}:")
        own = [text.whole("mul", row, of) for of in (inputs, blocks, outputs)]
        parts = [text.at("bfloat" if bits == 16 else "i8", x, own[0]), "null", "null", codes, of_codes]
        parts[1:3] = parts[1:3] if bits == 16 else [text.at("float", of, own[1]) for of in (scales, sums)]
        pointers = ", ".join(f"ptr {part}" for part in [*parts, text.at("float", tiles_out, own[2])])
        done = text.set(f"call i64 @llvm.umin.i64(i64 {left}, i64 {count})")
        sizes = ", ".join(f"i64 {size}" for size in (done, inputs, outputs, tile, tiles_end))
        text(f"call void @rows{count}({pointers}, {sizes})")
        text(f"store i64 {text.whole('add', row, done)}, ptr %row\nbr label %next_rows")
    text("done:\nret void\n}")
    return "\n".join(text.lines)
