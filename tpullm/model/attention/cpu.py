"""Attention of tokens to the cached keys of their text, on a CPU: LLVM compiles it, XLA calls it.

XLA's matmuls read all slots of all rows that a program has, and give a row the same bits alone and among others only
with rows of zeros beside it (docs/design/decoding-on-a-cpu.md). Here a token reads the slots that its text has, 16 at a
time, and the softmax is made as they come (Milakov & Gimelshein 2018).

Shapes: R rows, K key/value heads, G query heads of each, S slots of a block, H head width.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.model import cpu_code, cpu_pieces
from tpullm.model.attention.plain import on_one_cpu
from tpullm.model.cpu_code import FLOATS, Text
from tpullm.model.platform import LANES

_LOWEST = -1e30  # the score of a key that is not attended to


def can_attend(q: jax.Array, blocks: Sequence[tuple[jax.Array, jax.Array]]) -> bool:
    """Whether `attend_to_slots` takes these: bfloat16 on one CPU, of sizes that fill its vectors."""
    fit = q.shape[-1] % (2 * LANES) == 0 and all(keys.shape[2] % LANES == 0 for keys, _ in blocks)
    return fit and on_one_cpu() and {array.dtype for array in (q, *itertools.chain(*blocks))} == {jnp.dtype("bfloat16")}


def attend_to_slots(
    q_RTNH: jax.Array, blocks: Sequence[tuple[jax.Array, jax.Array]], slots_RT: jax.Array, window: int
) -> jax.Array:
    """Scaled dot-product attention of T tokens of each row, each by itself, `[R, T, N, H]`.

    Args:
        blocks: keys and values that follow each other, `[R, K, S, H]`.
        slots_RT: the slot of each token; it attends to those up to it. One that there is not gets zeros.
        window: how many slots it attends to at most; 0 is all of them.
    """

    def local(q_RTNH, slots_RT, blocks):
        (R, T, N, H), K, slots = q_RTNH.shape, blocks[0][0].shape[1], sum(keys.shape[2] for keys, _ in blocks)
        ends_RT = jnp.where(slots_RT < slots, slots_RT + 1, 0)
        spans_RT2 = jnp.stack([jnp.maximum(ends_RT - (window or slots), 0), ends_RT], axis=2)
        out = jax.ShapeDtypeStruct((R * T * K, N // K, H), jnp.float32)
        operands = q_RTNH.reshape(R * T, K, N // K, H), spans_RT2.reshape(-1, 2), *itertools.chain(*blocks)
        return jax.ffi.ffi_call(_target(N // K, H), out)(*operands).reshape(q_RTNH.shape).astype(q_RTNH.dtype)

    spec = jax.typeof(q_RTNH).sharding.spec
    return jax.shard_map(local, out_specs=spec, check_vma=False)(q_RTNH, slots_RT, list(blocks))


@cache
def _target(heads: int, width: int, fast: bool | None = None) -> str:
    fast = cpu_code.has("avx512bf16") if fast is None else fast
    name = f"tpullm_attention_{heads}_{width}_{'fast' if fast else 'plain'}"
    return cpu_code.register(name, _module(name, heads, width, fast))


_DECLARED = f"""
declare float @llvm.maxnum.f32(float, float)
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
declare {FLOATS} @llvm.maxnum.v16f32({FLOATS}, {FLOATS})
declare {FLOATS} @llvm.rint.v16f32({FLOATS})
declare float @llvm.vector.reduce.fmax.v16f32({FLOATS})
declare float @llvm.vector.reduce.fadd.v16f32(float, {FLOATS})
"""


def _module(name: str, heads: int, width: int, fast: bool) -> str:
    """A handler: a piece is a key/value head of a token, slots 16 at a time."""
    text, parts = Text(), [(g, n) for g in range(heads) for n in range(width // LANES)]
    declared = [cpu_code.FUSED, *([cpu_code.TWO_PRODUCTS] if fast else []), _DECLARED]
    text("\n".join([*declared, cpu_pieces.functions()]))
    _exponential(text)
    floats = {f"%{what}{g}": "float" for what in ("most", "total") for g in range(heads)}
    vectors = dict.fromkeys([f"%weights{g}" for g in range(heads)] + [f"%mixed{g}_{n}" for g, n in parts], FLOATS)
    text.handler(name, {})
    q = text.argument(0)
    heads_of_rows = text.whole("mul", text.size(q, 0), text.size(q, 1))
    text(f"call void @pieces(ptr %frame, i64 {heads_of_rows}, i64 0)\nret ptr null\n}}")
    text("define private void @piece(ptr %frame, i64 %one, i64 %own) {\nbegin:")
    for variable, kind in ({"%passed": "i64"} | floats | vectors).items():
        text(f"{variable} = alloca {kind}")
    one, q = "%one", text.argument(0)
    queries, K, spans, out = text.data(q), text.size(q, 1), text.data(text.argument(1)), text.data(text.result(0))
    token = text.whole("udiv", one, K)
    span = [text.load("i32", text.at("<2 x i32>", spans, token), n) for n in range(2)]
    tokens = text.whole("udiv", text.size(q, 0), text.size(text.argument(2), 0))  # of a row
    head = text.whole("add", text.whole("mul", text.whole("udiv", token, tokens), K), text.whole("urem", one, K))
    splats = [text.splat("i32", of) for of in span]
    first, last = (text.set(f"sext i32 {of} to i64") for of in span)
    own = text.at("bfloat", queries, text.whole("mul", one, heads * width))
    text("store i64 0, ptr %passed")
    for g in range(heads):
        text(f"store float {_hex(_LOWEST)}, ptr %most{g}\nstore float 0.0, ptr %total{g}")
    text("\n".join(f"store {FLOATS} zeroinitializer, ptr %mixed{g}_{n}" for g, n in parts))
    with text.loop(2, text.load("i64", "%frame", 7), 2) as block:
        pair = text.argument(block), text.argument(text.whole("add", block, 1))
        slots, passed = text.size(pair[0], 2), text.load("i64", "%passed")
        before = text.whole("mul", text.whole("mul", head, slots), width)
        keys, values = (text.at("bfloat", text.data(of), before) for of in pair)
        begun = text.set(f"call i64 @llvm.smax.i64(i64 {text.whole('sub', first, passed)}, i64 0)")
        ended = text.set(f"call i64 @llvm.smin.i64(i64 {text.whole('sub', last, passed)}, i64 {slots})")
        with text.loop(text.whole("and", begun, -LANES), ended, LANES) as slot:
            here = text.splat("i32", text.set(f"trunc i64 {text.whole('add', passed, slot)} to i32"))
            lanes = ", ".join(f"i32 {n}" for n in range(LANES))
            here = text.set(f"add <16 x i32> {here}, <{lanes}>")
            after = text.set(f"icmp sge <16 x i32> {here}, {splats[0]}")
            until = text.set(f"icmp slt <16 x i32> {here}, {splats[1]}")
            seen, place = text.set(f"and <16 x i1> {after}, {until}"), text.whole("mul", slot, width)
            own_keys = text.at("bfloat", keys, place)
            for g in range(heads):
                _weigh(text, g, width, own_keys, text.at("bfloat", own, g * width), seen, fast)
            _mix(text, heads, width, text.at("bfloat", values, place))
        text(f"store i64 {text.whole('add', passed, slots)}, ptr %passed")
    target = text.at("float", out, text.whole("mul", one, heads * width))
    for place, (g, n) in enumerate(parts):
        total = text.load("float", f"%total{g}")
        total = text.splat("float", text.set(f"call float @llvm.maxnum.f32(float {total}, float {_hex(1e-30)})"))
        mixed = text.set(f"fdiv {FLOATS} {text.load(FLOATS, f'%mixed{g}_{n}')}, {total}")
        text(f"store {FLOATS} {mixed}, ptr {text.at(FLOATS, target, place)}, align 4")
    text("ret void\n}")
    return "\n".join(text.lines)


def _weigh(text: Text, g: int, width: int, keys: str, query: str, seen: str, fast: bool) -> None:
    """The weights of 16 slots for a query; what was mixed and summed before them is scaled to the new maximum."""
    q = [text.load("<32 x bfloat>", query, n) for n in range(width // 32)]
    sums = []
    for slot in range(LANES):
        total = "zeroinitializer"
        for n in range(width // 32):
            key = text.load("<32 x bfloat>", text.at("bfloat", keys, slot * width), n)
            total = text.set(text.two_products(total, key, q[n], fast))
        sums.append(total)
    while len(sums) > 1:  # halves of two sums in one vector, until each of 16 is in a lane of one
        pairs = zip(sums[::2], sums[1::2], strict=True)
        halves = [[text.every("float", left, n, 2, right) for n in range(2)] for left, right in pairs]
        sums = [text.set(f"fadd {FLOATS} {left}, {right}") for left, right in halves]
    scores = text.set(f"fmul {FLOATS} {sums[0]}, {text.splat('float', _hex(width**-0.5))}")
    scores = text.set(f"select <16 x i1> {seen}, {FLOATS} {scores}, {FLOATS} {text.splat('float', _hex(_LOWEST))}")
    before = text.load("float", f"%most{g}")
    most = text.set(f"call nnan float @llvm.vector.reduce.fmax.v16f32({FLOATS} {scores})")
    most = text.set(f"call float @llvm.maxnum.f32(float {before}, float {most})")
    text(f"store float {most}, ptr %most{g}")
    raised = []
    for of in (scores, text.splat("float", before)):
        less = text.set(f"fsub {FLOATS} {of}, {text.splat('float', most)}")
        raised.append(text.set(f"call {FLOATS} @raised({FLOATS} {less})"))
    weights = text.set(f"select <16 x i1> {seen}, {FLOATS} {raised[0]}, {FLOATS} zeroinitializer")
    text(f"store {FLOATS} {weights}, ptr %weights{g}")
    total = text.set(f"call reassoc float @llvm.vector.reduce.fadd.v16f32(float -0.0, {FLOATS} {weights})")
    kept = text.set(f"extractelement {FLOATS} {raised[1]}, i32 0")
    kept = text.set(f"fmul float {text.load('float', f'%total{g}')}, {kept}")
    text(f"store float {text.set(f'fadd float {kept}, {total}')}, ptr %total{g}")
    for n in range(width // LANES):
        scaled = text.set(f"fmul {FLOATS} {text.load(FLOATS, f'%mixed{g}_{n}')}, {raised[1]}")
        text(f"store {FLOATS} {scaled}, ptr %mixed{g}_{n}")


def _mix(text: Text, heads: int, width: int, values: str) -> None:
    """Add the values of 16 slots by their weights."""
    with text.loop(0, LANES) as lane:
        own = text.at("bfloat", values, text.whole("mul", lane, width))
        read = [text.load(f"<{LANES} x bfloat>", own, n) for n in range(width // LANES)]
        read = [text.set(f"fpext <{LANES} x bfloat> {of} to {FLOATS}") for of in read]
        for g in range(heads):
            weight = text.splat("float", text.load("float", f"%weights{g}", lane))
            for n, of in enumerate(read):
                added = text.set(text.fused(of, weight, text.load(FLOATS, f"%mixed{g}_{n}")))
                text(f"store {FLOATS} {added}, ptr %mixed{g}_{n}")


def _exponential(text: Text) -> None:
    """`raised`: e to the power of numbers of at most 0, to two units of the last place (Cephes, `expf`)."""
    text(f"define private {FLOATS} @raised({FLOATS} %x) alwaysinline {{")
    number = lambda value: text.splat("float", _hex(value))  # noqa: E731
    x = text.set(f"call {FLOATS} @llvm.maxnum.v16f32({FLOATS} %x, {FLOATS} {number(-87.0)})")
    turns = text.set(f"fmul {FLOATS} {x}, {number(math.log2(math.e))}")
    turns = text.set(f"call {FLOATS} @llvm.rint.v16f32({FLOATS} {turns})")
    for part in (-0.693359375, 2.12194440e-4):
        x = text.set(text.fused(turns, number(part), x))
    sum_of = number(1.9875691500e-4)
    for part in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        sum_of = text.set(text.fused(sum_of, x, number(part)))
    turns = text.set(f"fptosi {FLOATS} {turns} to <16 x i32>")
    turns = text.set(f"add <16 x i32> {turns}, {text.splat('i32', 127)}")
    power = text.set(f"shl <16 x i32> {turns}, {text.splat('i32', 23)}")
    power = text.set(f"bitcast <16 x i32> {power} to {FLOATS}")
    text(f"ret {FLOATS} {text.set(f'fmul {FLOATS} {sum_of}, {power}')}\n}}")


def _hex(value: float) -> str:
    """A float32 as LLVM reads it: the bits of the float64."""
    return f"0x{np.float64(np.float32(value)).view(np.uint64):016X}"
