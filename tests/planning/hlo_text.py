"""What a test reads out of a compiled program and the product does not need."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tpullm.planning.instructions import Collective, as_collective, computations, parse_shapes


@dataclass(frozen=True)
class Seen(Collective):
    """A collective. `in_loop`: over layers or chunks; `asynchronous`: other work can run meanwhile."""

    in_loop: bool
    asynchronous: bool


def collectives(text: str) -> list[Seen]:
    """All collectives, each once, even if the compiler has split it over several fusions."""
    found = {}
    for key, one in _collectives(text):
        found.setdefault(key, one)  # the first of several fusions says whether it is asynchronous
    return list(found.values())


def _collectives(text: str) -> Iterator[tuple[tuple, Seen]]:
    program, looped = computations(text), set()
    todo = re.findall(r"body=%?([\w.-]+)", text)
    while todo:
        if (name := todo.pop()) not in looped:
            looped.add(name)
            todo += [called for one in program.get(name, ()) for called in one.calls]
    for name, body in program.items():
        apart = name.startswith(("async_collective_fusion", "fused_computation", "called_computation"))
        for one in body:
            if found := as_collective(one, name):
                channel = re.findall(r"channel_id=(\d+)", one.attributes)
                seen = Seen(**vars(found), in_loop=name in looped, asynchronous=apart or one.opcode.endswith("-start"))
                # The fusions of one asynchronous collective agree in all of these. So do equal collectives of a layer.
                yield (seen.kind, seen.bytes, seen.groups, seen.operation, *channel, seen.in_loop), seen


def between_slices(text: str) -> list[tuple[str, int]]:
    """The collectives over the data center network: their kind (`all-reduce`) and the bytes that one device sends.

    A program is that of one slice. It sends the data to the host, which does the rest (libtpu: megascale).
    """
    found = []
    for line in text.splitlines():
        if " send(" in line and (kind := re.search(r'_xla_megascale_transfer_type="(\w+)"', line)):
            found.append((kind[1].lower().replace("_", "-"), parse_shapes(line)[0].bytes))
    return found


def largest_arrays(text: str, dtype: str) -> int:
    found = re.findall(rf"\b{dtype}\[([\d,]+)\]", text)
    return max((math.prod(map(int, dims.split(","))) for dims in found), default=0)
