"""Pieces of a handler's work for all cores: the one that XLA calls and those of its thread pool take the next piece.

XLA computes operations side by side only where more than eight wait, so two halves of a matmul that are two operations
are computed one after the other. Here a handler asks the pool for help and begins. Who comes late finds nothing left.

A thread that sleeps wakes up too late: 45 us after the last piece of work a matrix of 576 x 1,536 took as long on two
cores as on one (docs/design/decoding-on-a-cpu.md). So a helper stays for a while, and handlers put the next job in a
box that all of them know. Whoever takes it out helps; if nobody does, the handler takes it back.

A job is the pieces taken, the pieces done, how many hold it, how many pieces there are, the handler's frame, a number
of its own and the function that works on it. The last one who holds a job frees it.
"""

import re
import time
from functools import cache
from pathlib import Path

import jax

from tpullm.model import cpu_code
from tpullm.model.cpu_code import Text
from tpullm.system.process import cores

_FIRST = 6  # fields of `XLA_FFI_Api` before its functions, of 8 bytes each
_TAKEN, _DONE, _HELD, _COUNT, _FRAME, _OWN, _WORK = range(7)
_STAYING = 8  # the place in the box, after the job, of how many helpers look into it; in another line of the cache
# How long a helper looks into the box before it goes, in nanoseconds; after each look it lets other threads run. By the
# clock and not by looks: on a busy machine one look takes milliseconds, in which XLA's other work waits for the helper.
_STAY = 100_000


@cache
def _functions() -> list[str]:
    """The names of XLA's functions in their order, which differs between versions."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    return re.findall(r"^  _XLA_FFI_API_STRUCT_FIELD\((\w+)\);", header, re.MULTILINE)


def functions(helpers: int | None = None) -> str:
    """What a handler calls when it knows its work: `@pieces(frame, count, own)` returns when `@piece(frame, n, own)`
    has returned for each `n` below `count`.

    Args:
        helpers: threads that are asked; None is one for each other core.
    """
    helpers = cores() - 1 if helpers is None else helpers
    cpu_code.share("tpullm_box", _BOX)
    return "\n".join([_DECLARED, _work(), _left(), _help(helpers), _pieces(helpers)])


_BOX = """
@box = internal global [16 x i64] zeroinitializer, align 64
define ptr @tpullm_box() {
  ret ptr @box
}"""
_DECLARED = """
declare ptr @tpullm_box()
declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)"""


def _work() -> str:
    """Take pieces until none is left."""
    text = Text()
    text("define private void @work(ptr %job) {\nbegin:")
    count, frame, own = (text.load(of, "%job", n, 8) for of, n in (("i64", _COUNT), ("ptr", _FRAME), ("i64", _OWN)))
    text("br label %take\ntake:")
    taken = text.set(f"atomicrmw add ptr {text.at('i64', '%job', _TAKEN)}, i64 1 acq_rel")
    text(f"%more = icmp ult i64 {taken}, {count}\nbr i1 %more, label %do, label %end\ndo:")
    text(f"call void @piece(ptr {frame}, i64 {taken}, i64 {own})")
    text.set(f"atomicrmw add ptr {text.at('i64', '%job', _DONE)}, i64 1 acq_rel")
    text("br label %take\nend:\nret void\n}")
    return "\n".join(text.lines)


def _left() -> str:
    """Hold a job no longer."""
    text = Text()
    text("define private void @left(ptr %job) {\nbegin:")
    held = text.set(f"atomicrmw sub ptr {text.at('i64', '%job', _HELD)}, i64 1 acq_rel")
    text(f"%last = icmp eq i64 {held}, 1\nbr i1 %last, label %free, label %end\nfree:")
    text("call void @free(ptr %job)\nbr label %end\nend:\nret void\n}")
    return "\n".join(text.lines)


def _now(text: Text) -> str:
    """Nanoseconds of a clock that only goes forward."""
    text(f"call i32 @clock_gettime(i32 {time.CLOCK_MONOTONIC}, ptr %clock)")
    seconds, rest = (text.load("i64", "%clock", n, 8) for n in range(2))
    return text.whole("add", text.whole("mul", seconds, 1_000_000_000), rest)


def _help(helpers: int) -> str:
    """What the pool calls: work on a job, then on those that come into the box."""
    text = Text()
    text("define void @help(ptr %asked) {\nbegin:\n%clock = alloca [2 x i64]")
    box = text.set("call ptr @tpullm_box()")
    staying = text.at("i64", box, _STAYING)
    text("br label %do\ndo:\n%job = phi ptr [ %asked, %begin ], [ %found, %take ], [ %late, %go ]")
    text(f"call void {text.load('ptr', '%job', _WORK, 8)}(ptr %job)\ncall void @left(ptr %job)")
    others = text.set(f"atomicrmw add ptr {staying}, i64 1 acq_rel")
    text(f"%few = icmp ult i64 {others}, {helpers}\nbr i1 %few, label %stay, label %go\nstay:")
    until = text.whole("add", _now(text), _STAY)
    text("br label %look\nlook:")
    there = text.set(f"load atomic i64, ptr {box} acquire, align 8")
    text(f"%any = icmp ne i64 {there}, 0\nbr i1 %any, label %try, label %empty\ntry:")
    taken = text.set(f"atomicrmw xchg ptr {box}, i64 0 acq_rel")
    text(f"%found = inttoptr i64 {taken} to ptr\n%mine = icmp ne i64 {taken}, 0")
    text("br i1 %mine, label %take, label %empty\ntake:")
    text.set(f"atomicrmw sub ptr {staying}, i64 1 acq_rel")
    text("br label %do\nempty:\ncall i32 @sched_yield()")
    text(f"%again = icmp slt i64 {_now(text)}, {until}\nbr i1 %again, label %look, label %go\ngo:")
    text.set(f"atomicrmw sub ptr {staying}, i64 1 seq_cst")  # who offers a job after this sees that nobody stays
    last = text.set(f"atomicrmw xchg ptr {box}, i64 0 seq_cst")
    text(f"%late = inttoptr i64 {last} to ptr\n%some = icmp ne i64 {last}, 0")
    text("br i1 %some, label %do, label %end\nend:\nret void\n}")
    return "\n".join(text.lines)


def _pieces(helpers: int) -> str:
    text = Text()
    text("define private void @pieces(ptr %frame, i64 %count, i64 %own) {\nbegin:\n%asked = alloca [5 x i64]")
    job, box = text.set("call ptr @malloc(i64 56)"), text.set("call ptr @tpullm_box()")
    values = {_TAKEN: "i64 0", _DONE: "i64 0", _HELD: "i64 1", _COUNT: "i64 %count", _FRAME: "ptr %frame"}
    for place, value in (values | {_OWN: "i64 %own", _WORK: "ptr @work"}).items():
        text(f"store {value}, ptr {text.at('i64', job, place)}")
    number = text.set(f"ptrtoint ptr {job} to i64")
    api, context = text.load("ptr", "%frame", 2), text.load("ptr", "%frame", 3)
    schedule, destroy = (
        text.load("ptr", api, _FIRST + _functions().index(f"XLA_FFI_{name}"))
        for name in ("ThreadPool_Schedule", "Error_Destroy")
    )
    most = text.set(f"call i64 @llvm.umin.i64(i64 {helpers}, i64 {text.whole('sub', '%count', 1)})")
    with text.loop(0, most):
        text.set(f"atomicrmw add ptr {text.at('i64', job, _HELD)}, i64 1 acq_rel")
        staying = text.set(f"load atomic i64, ptr {text.at('i64', box, _STAYING)} acquire, align 8")
        text(f"%awake = icmp ne i64 {staying}, 0\nbr i1 %awake, label %offer, label %schedule\noffer:")
        offered = text.set(f"cmpxchg ptr {box}, i64 0, i64 {number} seq_cst seq_cst")
        text(f"%in = extractvalue {{i64, i1}} {offered}, 1\nbr i1 %in, label %look, label %schedule\nlook:")
        staying = text.set(f"load atomic i64, ptr {text.at('i64', box, _STAYING)} seq_cst, align 8")
        text(f"%stays = icmp ne i64 {staying}, 0\nbr i1 %stays, label %helped, label %take_back\ntake_back:")
        taken = text.set(f"cmpxchg ptr {box}, i64 {number}, i64 0 seq_cst seq_cst")
        text(f"%mine = extractvalue {{i64, i1}} {taken}, 1\nbr i1 %mine, label %schedule, label %helped\nschedule:")
        for place, value in enumerate(("i64 40", "ptr null", f"ptr {context}", "ptr @help", f"ptr {job}")):
            text(f"store {value}, ptr {text.at('i64', '%asked', place)}")
        error = text.set(f"call ptr {schedule}(ptr %asked)")
        text(f"%failed = icmp ne ptr {error}, null\nbr i1 %failed, label %alone, label %helped\nalone:")
        for place, value in enumerate(("i64 24", "ptr null", f"ptr {error}")):
            text(f"store {value}, ptr {text.at('i64', '%asked', place)}")
        text(f"call void {destroy}(ptr %asked)\ncall void @left(ptr {job})\nbr label %helped\nhelped:")
    text(f"call void @work(ptr {job})")
    back = text.set(f"cmpxchg ptr {box}, i64 {number}, i64 0 acq_rel acquire")
    text(f"%out = extractvalue {{i64, i1}} {back}, 1\nbr i1 %out, label %back, label %wait\nback:")
    text(f"call void @left(ptr {job})\nbr label %wait\nwait:")
    done = text.set(f"load atomic i64, ptr {text.at('i64', job, _DONE)} acquire, align 8")
    text(f"%ready = icmp uge i64 {done}, %count\nbr i1 %ready, label %end, label %yield\nyield:")
    text(f"call i32 @sched_yield()\nbr label %wait\nend:\ncall void @left(ptr {job})\nret void\n}}")
    return "\n".join(text.lines)
