"""Each piece of a handler's work is done once before the handler returns, by however many threads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpullm.model import cpu_code, cpu_pieces
from tpullm.model.cpu_code import Text


def counted(name: str, helpers: int, times: int = 1) -> str:
    """A handler: its result is zeros, then each piece but the last adds 7 and its number, by `times`, to its place."""
    text = Text()
    text("declare i64 @llvm.umin.i64(i64, i64)\ndeclare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
    text(cpu_pieces.functions(helpers))
    text.handler(name, {})
    out, count = text.data(text.result(0)), text.size(text.result(0), 0)
    text(f"call void @llvm.memset.p0.i64(ptr {out}, i8 0, i64 {text.whole('mul', count, 4)}, i1 false)")
    text(f"call void @pieces(ptr %frame, i64 {text.whole('sub', count, 1)}, i64 7)\nret ptr null\n}}")
    text("define private void @piece(ptr %frame, i64 %n, i64 %own) {\nbegin:\n%spent = alloca i64")
    with text.loop(0, 1_000_000) as turn:
        text(f"store volatile i64 {turn}, ptr %spent")
    place = text.at("i32", text.data(text.result(0)), "%n")
    added = text.whole("mul", text.whole("add", "%n", "%own"), times)
    added = text.set(f"trunc i64 {added} to i32")
    total = text.set(f"add i32 {text.load('i32', place)}, {added}")
    text(f"store i32 {total}, ptr {place}\nret void\n}}")
    return cpu_code.register(name, "\n".join(text.lines))


@pytest.mark.parametrize("helpers", [0, 1, 8])
def test_every_piece_is_done_once(helpers):
    """Before the handler returns, and none that there is not. Helpers may come late, so it is tried 90 times."""
    target = counted(f"counted_{helpers}", helpers)
    for size in (2, 3, 20):
        call = jax.jit(lambda size=size: jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((size,), jnp.int32))())
        for _ in range(30):
            np.testing.assert_array_equal(call(), [*(np.arange(size - 1) + 7), 0])


def test_a_helper_of_one_handler_works_for_another():
    """Who stays finds the next job in the box, which is of another handler with pieces of its own."""
    one, other = (counted(f"counted_for_{times}", 1, times) for times in (1, 3))

    @jax.jit
    def both():
        array, found = jax.ShapeDtypeStruct((20,), jnp.int32), []
        for _ in range(20):  # each after the one before
            for target in (one, other):
                found.append(jax.ffi.ffi_call(target, array)(*found[-1:]))
        return found

    expected = np.append(np.arange(19) + 7, 0)
    for place, found in enumerate(both()):
        np.testing.assert_array_equal(found, expected * (1, 3)[place % 2])


def test_names_of_xla_are_found():
    """The places of two functions in XLA's table, of JAX 0.10 to 0.12."""
    assert {"XLA_FFI_ThreadPool_Schedule", "XLA_FFI_Error_Destroy"} < set(cpu_pieces._functions())
    assert cpu_pieces._functions()[0] == "XLA_FFI_Error_Create"
