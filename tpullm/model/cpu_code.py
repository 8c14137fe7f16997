"""LLVM's language, and the functions that XLA for a CPU calls: `llvmlite` compiles them for this processor.

A handler is an XLA FFI handler in C's calling convention; the offsets of its arguments are those of
`xla/ffi/api/c_api.h`.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax

from tpullm.model.platform import LANES
from tpullm.system import storage

FLOATS = f"<{LANES} x float>"
FUSED = f"declare {FLOATS} @llvm.fmuladd.v16f32({FLOATS}, {FLOATS}, {FLOATS})"
TWO_PRODUCTS = f"declare {FLOATS} @llvm.x86.avx512bf16.dpbf16ps.512({FLOATS}, <32 x bfloat>, <32 x bfloat>)"
_ENGINES = {}  # of LLVM, by target; they own the code that XLA calls
_LOCK = threading.Lock()  # XLA refuses a target of another address


@cache
def processor() -> tuple[Any, dict[str, bool]]:
    """This one, for LLVM, and which instructions it has."""
    import llvmlite.binding as llvm  # takes a while, and only programs for a CPU need it

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features, target = llvm.get_host_cpu_features(), llvm.Target.from_default_triple()
    name = llvm.get_host_cpu_name()
    return target.create_target_machine(cpu=name, features=features.flatten(), opt=3), dict(features)


def has(feature: str) -> bool:
    """Whether this processor has some instructions, by LLVM's name."""
    return processor()[1].get(feature, False)


def register(name: str, text: str) -> str:
    """Compile a module, and make its handler of this name known to XLA as an FFI target, whose name is returned. What
    is compiled is kept for the next process.
    """
    with _LOCK:
        if name not in _ENGINES:
            handler = jax.ffi.pycapsule(ctypes.c_void_p(_address(name, text)))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return name


def share(name: str, text: str) -> None:
    """Compile a module, and let those that are compiled after it call its function of this name."""
    import llvmlite.binding as llvm

    with _LOCK:
        if name not in _ENGINES:
            llvm.add_symbol(name, _address(name, text))


def _address(name: str, text: str) -> int:
    """Where the function of this name is, of a module that is compiled now, or was by another process."""
    import llvmlite
    import llvmlite.binding as llvm

    machine, _ = processor()
    kind = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    key = [text, storage.hash_file(Path(__file__)), llvmlite.__version__, *kind]
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(storage.kept("kernels", key, partial(_compiled, text))))
    engine.finalize_object()
    _ENGINES[name] = engine
    return engine.get_function_address(name)


def _compiled(text: str) -> bytes:
    """The object file of a module."""
    import llvmlite.binding as llvm

    machine, module = processor()[0], llvm.parse_assembly(text)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    return machine.emit_object(module)


class Text:
    """Lines of LLVM's language; `set` names the result of an instruction."""

    def __init__(self):
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def set(self, value: str) -> str:
        name = f"%v{len(self.lines)}"
        self(f"{name} = {value}")
        return name

    def load(self, kind: str, base: str, index: str | int = 0, align: int = 1) -> str:
        """The value number `index` of its type after `base`."""
        return self.set(f"load {kind}, ptr {self.at(kind, base, index)}, align {align}")

    def at(self, kind: str, base: str, index: str | int) -> str:
        return self.set(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def whole(self, operation: str, left: str | int, right: str | int) -> str:
        """Of two numbers of 64 bits: `add`, `sub`, `mul`, `udiv`, `urem`, `and`."""
        return self.set(f"{operation} i64 {left}, {right}")

    def splat(self, kind: str, value: str | int, count: int = LANES) -> str:
        """A vector of equal values."""
        one = self.set(f"insertelement <{count} x {kind}> poison, {kind} {value}, i32 0")
        return self.set(
            f"shufflevector <{count} x {kind}> {one}, <{count} x {kind}> poison, <{count} x i32> zeroinitializer"
        )

    def every(self, kind: str, vector: str, first: int, step: int, second: str = "poison") -> str:
        """Every `step`-th of the values of a vector, or of two vectors one after the other, as 16."""
        count = LANES * step // (1 if second == "poison" else 2)
        places = (f"i32 {step * n + first}" for n in range(LANES))
        whole = f"<{count} x {kind}> {vector}, <{count} x {kind}> {second}"
        return self.set(f"shufflevector {whole}, <{LANES} x i32> <{', '.join(places)}>")

    def fused(self, left: str, right: str, added: str) -> str:
        """An instruction: `left` times `right` plus `added`, 16 floats each."""
        return f"call {FLOATS} @llvm.fmuladd.v16f32({FLOATS} {left}, {FLOATS} {right}, {FLOATS} {added})"

    def two_products(self, total: str, left: str, right: str, fast: bool) -> str:
        """An instruction: `total` plus 2 products of each of 16 pairs of bfloat16. `fast`: by `vdpbf16ps`."""
        if fast:
            operands = f"{FLOATS} {total}, <32 x bfloat> {left}, <32 x bfloat> {right}"
            return f"call {FLOATS} @llvm.x86.avx512bf16.dpbf16ps.512({operands})"
        for n in range(2):
            both = (self.every("bfloat", of, n, 2) for of in (left, right))
            added = self.fused(*(self.set(f"fpext <16 x bfloat> {of} to {FLOATS}") for of in both), total)
            total = self.set(added) if n == 0 else total
        return added

    @contextlib.contextmanager
    def loop(self, begin: str | int, end: str | int, step: int = 1) -> Iterator[str]:
        """What is said inside is done for each number from `begin` up to `end`, whose name this yields."""
        n = len(self.lines)
        self(f"br label %before{n}\nbefore{n}:\nbr label %head{n}\nhead{n}:")
        self(f"%i{n} = phi i64 [ {begin}, %before{n} ], [ %next{n}, %latch{n} ]")
        self(f"%more{n} = icmp slt i64 %i{n}, {end}\nbr i1 %more{n}, label %body{n}, label %after{n}\nbody{n}:")
        yield f"%i{n}"
        self(f"br label %latch{n}\nlatch{n}:\n%next{n} = add i64 %i{n}, {step}\nbr label %head{n}\nafter{n}:")

    # A handler. XLA calls it with a frame; the first time to ask for the version of its interface.

    def handler(self, name: str, variables: dict[str, str]) -> None:
        """The begin of a handler, with the types of its variables by their names."""
        self(f"define ptr @{name}(ptr %frame) {{\nbegin:")
        for variable, kind in variables.items():
            self(f"{variable} = alloca {kind}")
        extension = self.load("ptr", "%frame", 1)
        self(f"%asked = icmp ne ptr {extension}, null\nbr i1 %asked, label %version, label %run\nversion:")
        answer = self.load("ptr", extension, 3)
        self(f"store i64 {1 << 32}, ptr {self.at('i64', answer, 3)}")  # version 0.1
        self(f"store i32 0, ptr {self.at('i64', answer, 4)}\nret ptr null\nrun:")

    def argument(self, number: str | int) -> str:
        """An array that the handler is given."""
        return self.load("ptr", self.load("ptr", "%frame", 9), number)

    def arguments(self) -> str:
        """How many arrays it is given."""
        return self.load("i64", "%frame", 7)

    def result(self, number: str | int) -> str:
        """An array that the handler fills."""
        return self.load("ptr", self.load("ptr", "%frame", 14), number)

    def attribute(self, number: int) -> str:
        """A whole number, by its place among the names of all attributes."""
        return self.load("i64", self.load("ptr", self.load("ptr", self.load("ptr", "%frame", 20), number), 1))

    def data(self, array: str) -> str:
        """Where the numbers of an array begin."""
        return self.load("ptr", array, 3)

    def size(self, array: str, axis: int) -> str:
        """How many there are along an axis of an array."""
        return self.load("i64", self.load("ptr", array, 5), axis)
