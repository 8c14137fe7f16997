"""The instructions of a compiled program, and its collectives, read from the text of an executable (`as_text()`).

The text is scheduled: the instructions of a computation stand in the order in which they run.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64"), 8),
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_END = re.compile(r"\}(, execution_thread=\S+)?\s*")
_BEGIN = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations=\{)=?%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclass(frozen=True)
class Shape:
    """An array: its type, its dimensions, and its layout (`1,0:T(8,128)S(1)`; `S(1)` is on-chip memory)."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Size without the padding of tiles."""
        return BYTES[self.dtype] * math.prod(self.dims)

    @property
    def order(self) -> tuple[int, ...]:
        """The dimensions from minor to major; () if the text has no layout."""
        return tuple(int(n) for n in self.layout.split(":")[0].split(",") if n.isdigit())

    @property
    def space(self) -> int:
        """The memory space: 0 is HBM, 5 is the host's memory, others are on the chip."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0


@dataclass(frozen=True)
class Instruction:
    """One instruction: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    @cached_property
    def shapes(self) -> list[Shape]:
        """The outputs; those of a tuple one after the other."""
        return parse_shapes(self.shape)

    @cached_property
    def uses(self) -> list[str]:
        """The names of the operands."""
        return re.findall(r"%([\w.-]+)", self.operands)

    @cached_property
    def calls(self) -> list[str]:
        """The computations that it runs or fuses."""
        branches = re.findall(r"[\w.-]+", " ".join(_BRANCHES.findall(self.attributes)))
        return _CALLED.findall(self.attributes) + branches

    @cached_property
    def cycles(self) -> int | None:
        """The cycles that the compiler expects it to take; None if the text has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @cached_property
    def operation(self) -> str:
        """Its place in the traced function (`op_name`)."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""


def parse_shapes(text: str) -> list[Shape]:
    """The shapes in a text."""
    found = [match for match in _SHAPE.findall(text) if match[0] in BYTES]
    return [Shape(dtype, tuple(int(size) for size in dims.split(",") if size), layout) for dtype, dims, layout in found]


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation. The entry computation is last.

    The metadata of a kernel takes several lines, some of which begin with `}`.
    """
    found, name = {}, None
    for line in text.splitlines():
        if name is None:
            if begin := _COMPUTATION.match(line):
                name, found[begin[1]] = begin[1], []
        elif _END.fullmatch(line):
            name = None
        elif _BEGIN.match(line) or not found[name]:
            found[name].append(line)
        else:
            found[name][-1] += "\n" + line
    return {name: [_parse_instruction(line) for line in lines] for name, lines in found.items()}


def _parse_instruction(line: str) -> Instruction:
    head = _BEGIN.match(line)
    rest = line[head.end() :]
    shape, rest = split_at_closing(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.lstrip().split("(", 1)
    operands, attributes = split_at_closing("(" + rest)
    return Instruction(head[1], shape, opcode, operands, attributes)


def split_at_closing(text: str) -> tuple[str, str]:
    """Split a text that begins with a parenthesis behind the matching one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    return text, ""


KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Args:
        kind: one of `KINDS`. An all-reduce that the compiler has fused with a slice of its result (it calls the fusion
            `all-reduce-scatter`) counts as a reduce-scatter.
        bytes: size of the output on one device; of a reduce-scatter, of the input.
        groups: the devices of each group, as the program writes them.
        operation: its place in the traced function (`op_name`).
    """

    kind: str
    bytes: int
    groups: str
    operation: str

    def devices(self) -> list[list[int]]:
        """The device numbers of each group, or of each pair of a permutation, in the order of the mesh."""
        if named := re.match(r"mesh\[(.*?)\]\s*\{(.*?)\}", self.groups):
            axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
            within = [list(axes).index(name) for name in re.findall(r"'(\w+)'", named[2])]
            grid = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
            others = [n for n in range(grid.ndim) if n not in within]
            return grid.transpose([*others, *within]).reshape(-1, math.prod(grid.shape[n] for n in within)).tolist()
        if iota := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", self.groups):
            numbers = np.arange(int(iota[1]) * int(iota[2])).reshape([int(size) for size in iota[3].split(",")])
            turned = numbers.transpose([int(n) for n in iota[4].split(",")]) if iota[4] else numbers
            return turned.reshape(int(iota[1]), int(iota[2])).tolist()
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", self.groups)]


def as_collective(instruction: Instruction, computation: str) -> Collective | None:
    """The collective that an instruction in a computation is; None if it is none.

    A combined collective has several outputs. A start names inputs too: `(input, output)`, on a GPU
    `((inputs), outputs)`. Then the larger of both sides counts; a ragged exchange also has its output buffer, and the
    sizes of its chunks, among the inputs.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    groups = re.search(r"(?:replica_groups|source_target_pairs)=(mesh\[.*?\]\s*\{.*?\}|[^\s]+)", instruction.attributes)
    if instruction.shape.startswith("(("):
        sides = [sum(shape.bytes for shape in parse_shapes(side)) for side in split_at_closing(instruction.shape[1:])]
        size = sides[1] if kind.startswith("ragged") else max(sides)
    else:
        of = [shape.bytes for shape in instruction.shapes]
        size = max(of) if instruction.opcode.endswith("-start") else sum(of)
    one = Collective(kind, size, groups[1] if groups else "", instruction.operation)
    if instruction.opcode == "reduce-scatter":
        return replace(one, bytes=size * len(one.devices()[0]))
    scattered = kind == "all-reduce" and computation.startswith("all-reduce-scatter")
    return replace(one, kind="reduce-scatter") if scattered else one
