"""Zeros that take memory when they are written, for arrays that seldom fill: what the engine keeps of texts.

XLA for a CPU writes zeros, and so takes the memory of all rows at once. Here the pages of an array are given back to
Linux, which has them read as zeros until something else is written (madvise(2): MADV_DONTNEED).
"""

import mmap
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.model import cpu_code
from tpullm.model.attention.plain import on_one_cpu
from tpullm.model.cpu_code import Text

# Of Linux; with pages of 2 MB a row would take those of its neighbours. Only whole pages can be given back.
_PAGE, _DONTNEED, _NOHUGEPAGE = mmap.PAGESIZE, 4, 15


def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """An array of zeros, within a jitted function."""
    if sys.platform != "linux" or not on_one_cpu():
        return jnp.zeros(shape, dtype)
    array = jax.ShapeDtypeStruct(shape, dtype)

    def local():
        return jax.ffi.ffi_call(_target(), array)(bytes=np.int64(array.size * array.dtype.itemsize))

    return jax.shard_map(local, out_specs=jax.P(*[None] * len(shape)), in_specs=(), check_vma=False)()


@cache
def _target() -> str:
    return cpu_code.register("tpullm_zeros", _module("tpullm_zeros"))


def _module(name: str) -> str:
    """A handler: the whole pages of its result are given back, what is before and after them is written."""
    text = Text()
    text("declare i32 @madvise(ptr, i64, i32)\ndeclare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
    text.handler(name, {})
    size, data = text.attribute(0), text.data(text.result(0))
    begin = text.set(f"ptrtoint ptr {data} to i64")
    end = text.whole("add", begin, size)
    first = text.whole("and", text.whole("add", begin, _PAGE - 1), -_PAGE)
    last = text.whole("and", end, -_PAGE)
    text(f"%pages = icmp ult i64 {first}, {last}\nbr i1 %pages, label %back, label %write\nback:")
    pages, length = text.set(f"inttoptr i64 {first} to ptr"), text.whole("sub", last, first)
    text(f"call i32 @madvise(ptr {pages}, i64 {length}, i32 {_NOHUGEPAGE})")
    failed = text.set(f"call i32 @madvise(ptr {pages}, i64 {length}, i32 {_DONTNEED})")
    text(f"%given = icmp eq i32 {failed}, 0\nbr i1 %given, label %edges, label %write\nedges:")
    rest, before = text.set(f"inttoptr i64 {last} to ptr"), text.whole("sub", first, begin)
    for place, count in ((data, before), (rest, text.whole("sub", end, last))):
        text(f"call void @llvm.memset.p0.i64(ptr {place}, i8 0, i64 {count}, i1 false)")
    text("ret ptr null\nwrite:")
    text(f"call void @llvm.memset.p0.i64(ptr {data}, i8 0, i64 {size}, i1 false)\nret ptr null\n}}")
    return "\n".join(text.lines)
