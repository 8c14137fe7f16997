"""Matmuls of few rows with a packed matrix, on a CPU: LLVM compiles them for this processor, XLA calls them.

A step of decoding waits for the bytes of the weights. XLA for a CPU reads them at a fraction of the memory's speed, and
dequantizes a matrix to memory before it multiplies it (docs/design/decoding-on-a-cpu.md has the figures). Here each
number is read once, in the order in which it lies in memory (`packed.py`), and is used for up to 8 rows.

`llvmlite` compiles the text below. A handler is an XLA FFI handler in C's calling convention; the offsets of its
arguments are those of `xla/ffi/api/c_api.h`. Integers: a row is rounded to 8 bits with a scale for each block, as
llama.cpp does it, and 4 products of a byte each are summed by one instruction (`vpdpbusd`), which takes the weights
without a sign: so they are stored plus 128 (or 8), and that times the sum of the row's block is subtracted first.
bfloat16: two products at a time (`vdpbf16ps`). A processor without these instructions gets loops of the same results.
"""

import ctypes
from functools import cache, partial

import jax
import llvmlite
import llvmlite.binding as llvm

from tpullm.model.platform import LANES
from tpullm.system import storage

_ROWS = (8, 4, 2, 1)  # rows that share what is read of a tile
_CACHED_BYTES = 1 << 18  # of weights, which a core's second cache keeps


@cache
def _processor() -> tuple[llvm.TargetMachine, dict[str, bool]]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features, target = llvm.get_host_cpu_features(), llvm.Target.from_default_triple()
    name = llvm.get_host_cpu_name()
    return target.create_target_machine(cpu=name, features=features.flatten(), opt=3), dict(features)


@cache
def target_name(bits: int, block: int, half: bool, prefix: str = "tpullm") -> str:
    """The FFI target of a matmul, compiled when it is first asked for, and kept for the next process.

    Args:
        bits: of the weights: 16 (bfloat16), 8 or 4.
        block: inputs that share a scale, 32 or 64; for 16 bits 2.
        half: scales are float16, not float32.

    Arguments of the call: rows `[M, K]` (float32; bfloat16 for 16 bits), codes `[tiles, K / 32, bytes]` and
    scales `[tiles, K / block, 16]` of `Packed`; attributes: `begin` and `end`, tiles. Results:
    `[M, 16 (end - begin)]` float32, and three arrays in which the rounded rows stand: codes `[M, K]`, scales and sums
    `[M, K / block]`.
    """
    name = f"{prefix}_matmul_{bits}_{block}_{'half' if half else 'float'}"
    machine, features = _processor()
    text = _module(name, bits, block, half, features)
    key = [text, llvmlite.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    code = storage.kept("kernels", key, partial(_compiled, text))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    handler = jax.ffi.pycapsule(ctypes.c_void_p(engine.get_function_address(name)))
    jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return name


def _compiled(text: str) -> bytes:
    """The object file of a module."""
    machine, module = _processor()[0], llvm.parse_assembly(text)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    return machine.emit_object(module)


_ENGINES: list[llvm.ExecutionEngine] = []  # they own the code that XLA calls


class _Text:
    """Lines of LLVM's language; `set` names the result of an instruction."""

    def __init__(self):
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def set(self, value: str) -> str:
        name = f"%v{len(self.lines)}"
        self(f"{name} = {value}")
        return name

    def load(self, kind: str, base: str, index: str | int, align: int = 1) -> str:
        """The value number `index` of its type after `base`."""
        return self.set(f"load {kind}, ptr {self.at(kind, base, index)}, align {align}")

    def at(self, kind: str, base: str, index: str | int) -> str:
        return self.set(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def splat(self, kind: str, value: str | int, count: int = LANES) -> str:
        """A vector of equal values."""
        one = self.set(f"insertelement <{count} x {kind}> poison, {kind} {value}, i32 0")
        return self.set(
            f"shufflevector <{count} x {kind}> {one}, <{count} x {kind}> poison, <{count} x i32> zeroinitializer"
        )

    def every(self, kind: str, vector: str, first: int, step: int) -> str:
        """Every `step`-th of the values of a vector, as 16."""
        count, places = LANES * step, ", ".join(f"i32 {step * n + first}" for n in range(LANES))
        whole = f"<{count} x {kind}> {vector}, <{count} x {kind}> poison"
        return self.set(f"shufflevector {whole}, <{LANES} x i32> <{places}>")


def _module(name: str, bits: int, block: int, half: bool, features: dict[str, bool]) -> str:
    fast = features.get("avx512bf16" if bits == 16 else "avx512vnni", False)
    declared = [
        "declare i64 @llvm.umin.i64(i64, i64)",
        "declare <16 x float> @llvm.fmuladd.v16f32(<16 x float>, <16 x float>, <16 x float>)",
        f"declare <{block} x float> @llvm.fabs.v{block}f32(<{block} x float>)",
        f"declare <{block} x float> @llvm.rint.v{block}f32(<{block} x float>)",
        f"declare float @llvm.vector.reduce.fmax.v{block}f32(<{block} x float>)",
        f"declare i32 @llvm.vector.reduce.add.v{block}i32(<{block} x i32>)",
    ]
    if fast and bits == 16:
        declared.append(
            "declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)"
        )
    elif fast:
        declared.append("declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)")
    rows = [_rows(count, bits, block, half, fast) for count in _ROWS]
    return "\n".join(
        [*declared, *([] if bits == 16 else [_rounding(bits, block)]), *rows, _handler(name, bits, block, half)]
    )


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


def _rows(count: int, bits: int, block: int, half: bool, fast: bool) -> str:
    """Some rows times the tiles from `%begin` to `%end`. A step of the inner loop reads a block of inputs."""
    text = _Text()
    names = ("x", "scales", "sums", "codes", "of_codes", "out")
    pointers = ", ".join(f"ptr noalias %{name}" for name in names)
    sizes = ", ".join(f"i64 %{name}" for name in ("K", "N", "begin", "end"))
    text(f"define private void @rows{count}({pointers}, {sizes}) {{\nfirst:")
    text(f"%blocks = udiv i64 %K, {block}")
    text("br label %tile\ntile:")
    text("%t = phi i64 [ %begin, %first ], [ %next_t, %tile_end ]")
    text("%tile_blocks = mul i64 %t, %blocks")
    text("br label %block\nblock:")
    text("%b = phi i64 [ 0, %tile ], [ %next_b, %block ]")
    for r in range(count):
        text(f"%old{r} = phi <16 x float> [ zeroinitializer, %tile ], [ %new{r}, %block ]")
    place = text.set("add i64 %tile_blocks, %b")
    here = text.set(f"mul i64 {place}, {LANES * block * bits // 8}")
    codes = text.at("i8", "%codes", here)
    own = [text.set(f"add i64 %b, {text.set(f'mul i64 %blocks, {r}')}") for r in range(count)]
    if bits == 16:
        weights = text.set(f"load <32 x bfloat>, ptr {codes}, align 4")
        for r in range(count):
            x = text.set(f"bitcast <16 x i32> {text.splat('i32', text.load('i32', '%x', own[r]))} to <32 x bfloat>")
            text(f"%new{r} = {_two_products(text, f'%old{r}', weights, x, fast)}")
    else:
        sums = [text.splat("i32", text.load("i32", "%sums", own[r])) for r in range(count)]
        x = [text.at("i8", "%x", text.set(f"mul i64 {own[r]}, {block}")) for r in range(count)]
        for place_of_four, weights in _fours(text, codes, bits, block):
            for r in range(count):
                four = text.splat("i32", text.load("i32", x[r], place_of_four))
                sums[r] = _four_products(text, sums[r], weights, four, fast)
        kind = "half" if half else "float"
        of_weights = text.load(f"<16 x {kind}>", "%of_codes", place, align=2)
        of_weights = text.set(f"fpext <16 x half> {of_weights} to <16 x float>") if half else of_weights
        for r in range(count):
            number = text.set(f"sitofp <16 x i32> {sums[r]} to <16 x float>")
            scale = text.splat("float", text.load("float", "%scales", own[r]))
            scale = text.set(f"fmul <16 x float> {of_weights}, {scale}")
            operands = f"<16 x float> {number}, <16 x float> {scale}, <16 x float> %old{r}"
            text(f"%new{r} = call <16 x float> @llvm.fmuladd.v16f32({operands})")
    text("%next_b = add i64 %b, 1\n%more_b = icmp ult i64 %next_b, %blocks")
    text("br i1 %more_b, label %block, label %tile_end\ntile_end:")
    column = text.set(f"mul i64 {text.set('sub i64 %t, %begin')}, {LANES}")
    for r in range(count):
        place = text.set(f"add i64 {column}, {text.set(f'mul i64 %N, {r}')}")
        text(f"store <16 x float> %new{r}, ptr {text.at('float', '%out', place)}, align 4")
    text("%next_t = add i64 %t, 1\n%more_t = icmp ult i64 %next_t, %end")
    text("br i1 %more_t, label %tile, label %last\nlast:\nret void\n}")
    return "\n".join(text.lines)


def _fours(text: _Text, codes: str, bits: int, block: int):
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


def _four_products(text: _Text, sums: str, weights: str, four: str, fast: bool) -> str:
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


def _two_products(text: _Text, total: str, weights: str, x: str, fast: bool) -> str:
    """An instruction: the total plus 2 products of each of the 16 outputs."""
    if fast:
        operands = f"<16 x float> {total}, <32 x bfloat> {weights}, <32 x bfloat> {x}"
        return f"call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512({operands})"
    for n in range(2):
        both = (text.every("bfloat", of, n, 2) for of in (weights, x))
        left, right = (text.set(f"fpext <16 x bfloat> {of} to <16 x float>") for of in both)
        operands = f"<16 x float> {left}, <16 x float> {right}, <16 x float> {total}"
        added = f"call <16 x float> @llvm.fmuladd.v16f32({operands})"
        total = text.set(added) if n == 0 else total
    return added


def _handler(name: str, bits: int, block: int, half: bool) -> str:
    """The function that XLA calls with a frame; the first time to ask for the version of its interface."""
    text = _Text()
    text(f"define ptr @{name}(ptr %frame) {{\nbegin:")
    extension = text.load("ptr", "%frame", 1)
    text(f"%asked = icmp ne ptr {extension}, null\nbr i1 %asked, label %version, label %run\nversion:")
    answer = text.load("ptr", extension, 3)
    text(f"store i64 {1 << 32}, ptr {text.at('i64', answer, 3)}")  # version 0.1
    text(f"store i32 0, ptr {text.at('i64', answer, 4)}\nret ptr null\nrun:")

    buffers = [text.load("ptr", text.load("ptr", "%frame", 9), n) for n in range(2 if bits == 16 else 3)]
    results = [text.load("ptr", text.load("ptr", "%frame", 14), n) for n in range(1 if bits == 16 else 4)]
    data = lambda buffer: text.load("ptr", buffer, 3)  # noqa: E731
    size = lambda buffer, axis: text.load("i64", text.load("ptr", buffer, 5), axis)  # noqa: E731
    attributes = text.load("ptr", "%frame", 20)
    begin, end = (text.load("i64", text.load("ptr", text.load("ptr", attributes, n), 1), 0) for n in range(2))
    rows, inputs, outputs = size(buffers[0], 0), size(buffers[0], 1), size(results[0], 1)
    blocks, codes = text.set(f"udiv i64 {inputs}, {block}"), data(buffers[1])
    x, out, scales, sums, of_codes = data(buffers[0]), data(results[0]), "null", "null", "null"
    if bits < 16:
        of_codes = data(buffers[2])
        source, (x, scales, sums) = x, (data(result) for result in results[1:])
        every = text.set(f"mul i64 {rows}, {blocks}")
        text(f"call void @round(ptr {source}, ptr {x}, ptr {scales}, ptr {sums}, i64 {every})")
    # Some tiles at a time, which stay in the cache while all rows are multiplied with them.
    tile_bytes = text.set(f"mul i64 {blocks}, {LANES * block * bits // 8}")
    some = text.set(f"add i64 {text.set(f'udiv i64 {_CACHED_BYTES}, {tile_bytes}')}, 1")
    text("br label %tiles\ntiles:")
    text(f"%tile = phi i64 [ {begin}, %run ], [ %tiles_end, %tiles_done ]")
    ahead = text.set(f"add i64 %tile, {some}")
    text(f"%tiles_end = call i64 @llvm.umin.i64(i64 {ahead}, i64 {end})")
    tiles_out = text.at("float", out, text.set(f"mul i64 {text.set(f'sub i64 %tile, {begin}')}, {LANES}"))
    before, row = "tiles", "0"
    for count in _ROWS:
        text(f"br label %ask{count}\nask{count}:")
        text(f"%row{count} = phi i64 [ {row}, %{before} ], [ %next{count}, %do{count} ]")
        text(f"%next{count} = add i64 %row{count}, {count}\n%fits{count} = icmp ule i64 %next{count}, {rows}")
        text(f"br i1 %fits{count}, label %do{count}, label %past{count}\ndo{count}:")
        own = [text.set(f"mul i64 %row{count}, {of}") for of in (inputs, blocks, outputs)]
        parts = [text.at("bfloat" if bits == 16 else "i8", x, own[0]), "null", "null", codes, of_codes]
        parts[1:3] = parts[1:3] if bits == 16 else [text.at("float", of, own[1]) for of in (scales, sums)]
        pointers = ", ".join(f"ptr {part}" for part in [*parts, text.at("float", tiles_out, own[2])])
        text(f"call void @rows{count}({pointers}, i64 {inputs}, i64 {outputs}, i64 %tile, i64 %tiles_end)")
        text(f"br label %ask{count}\npast{count}:")
        before, row = f"past{count}", f"%row{count}"
    text(f"br label %tiles_done\ntiles_done:\n%left = icmp ult i64 %tiles_end, {end}")
    text("br i1 %left, label %tiles, label %end\nend:\nret ptr null\n}")
    return "\n".join(text.lines)
