"""What a compiled program says of itself: its collectives, in words that a person can check.

The text of an executable of the TPU compiler (`as_text()`), scheduled: what is in a loop runs once for each layer.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_END = re.compile(r"\}(, execution_thread=\S+)?\s*")
_COLLECTIVE = re.compile(rf"^\s+(?:ROOT )?%(\S+) = (.*?) ({'|'.join(sorted(KINDS, key=len, reverse=True))})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Args:
        kind: one of `KINDS`. An all-reduce that the compiler has fused with the slice of its result (it calls the
            fusion `all-reduce-scatter`) is a reduce-scatter.
        bytes: of what comes out on one device.
        groups: the devices that take part together, as the program writes them.
        in_loop: it runs once for each layer, or for each part of something.
        asynchronous: other work goes on meanwhile: a pair of start and done, a fusion with other work, or a core of its
            own.
        operation: where in the traced function it is from.
    """

    kind: str
    bytes: int
    groups: str
    in_loop: bool
    asynchronous: bool
    operation: str

    def devices(self) -> list[list[int]]:
        """The numbers of the devices of each group, or of each pair of a permutation, in the order of the mesh."""
        if named := re.match(r"mesh\[(.*?)\]\s*\{(.*?)\}", self.groups):
            axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
            within = [list(axes).index(name) for name in re.findall(r"'(\w+)'", named[2])]
            grid = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
            others = [n for n in range(grid.ndim) if n not in within]
            return grid.transpose([*others, *within]).reshape(-1, math.prod(grid.shape[n] for n in within)).tolist()
        if iota := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", self.groups):
            numbers = np.arange(int(iota[1]) * int(iota[2])).reshape([int(size) for size in iota[3].split(",")])
            turned = numbers.transpose([int(n) for n in iota[4].split(",")]) if iota[4] else numbers
            return turned.reshape(int(iota[1]), -1).tolist()
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", self.groups)]


def collectives(text: str) -> list[Collective]:
    """Each collective once, however many fusions the compiler has spread it over."""
    computations = dict(_computations(text))
    looped = _reached(computations, re.findall(r"body=%?([\w.-]+)", text))
    found = {}
    for name, lines in computations.items():
        for line in lines:
            if match := _COLLECTIVE.match(line):
                one = _collective(match, line, name, name in looped)
                channel = re.search(r"channel_id=(\d+)", line)
                # Fusions of one asynchronous collective share all of this; equal ones of a layer count once, too.
                found.setdefault(
                    (one.kind, one.bytes, one.groups, one.operation, channel and channel[1], one.in_loop), one
                )
    return list(found.values())


def _collective(match, line, computation, in_loop) -> Collective:
    kind, started = match[3], match[4]
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    sizes = [_bytes(shape) for shape in _shapes(line.split(" metadata=")[0])]
    operation = re.search(r'op_name="([^"]*)"', line)
    groups = re.search(r"(?:replica_groups|source_target_pairs)=(mesh\[.*?\]\s*\{.*?\}|[^\s]+)", line)
    apart = computation.startswith(("async_collective_fusion", "fused_computation", "called_computation"))
    return Collective(
        kind,
        max(sizes, default=0),
        groups[1] if groups else "",
        in_loop,
        bool(started) or apart,
        operation[1] if operation else "",
    )


def between_slices(text: str) -> list[tuple[str, int]]:
    """What goes over the data center's network, and its bytes from one device: `all-reduce` and the like.

    The program is that of one slice. What crosses is handed to the host, which does the rest (libtpu: megascale).
    """
    found = []
    for line in text.splitlines():
        if " send(" in line and (kind := re.search(r'_xla_megascale_transfer_type="(\w+)"', line)):
            found.append((kind[1].lower().replace("_", "-"), _bytes(_shapes(line)[0])))
    return found


def largest_arrays(text: str, dtype: str) -> int:
    """Numbers in the largest array of that type anywhere in the program, on one device."""
    return max(
        (math.prod(map(int, dims.split(","))) for dims in re.findall(rf"\b{dtype}\[([\d,]+)\]", text)), default=0
    )


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Names and lines. Kernels' metadata has lines that begin with `}` too, but not so."""
    name, lines = None, []
    for line in text.splitlines():
        if name is None:
            if found := _COMPUTATION.match(line):
                name, lines = found[1], []
        elif _END.fullmatch(line):
            yield name, lines
            name = None
        else:
            lines.append(line)


def _reached(computations: dict[str, list[str]], roots: list[str]) -> set[str]:
    """The computations that these call, and those that they call."""
    reached, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += [called for line in computations.get(name, ()) for called in _CALLED.findall(line)]
    return reached


def _shapes(line: str) -> list[tuple[str, str]]:
    return [(dtype, dims) for dtype, dims in _SHAPE.findall(line) if dtype in BYTES]


def _bytes(shape: tuple[str, str]) -> int:
    dtype, dims = shape
    return BYTES[dtype] * math.prod(int(size) for size in dims.split(",") if size)
