"""Parse the text of a compiled program into instructions, in the order in which they run."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

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
        return shapes(self.shape)

    @cached_property
    def uses(self) -> list[str]:
        """The names of the operands."""
        return re.findall(r"%([\w.-]+)", self.operands)

    @cached_property
    def calls(self) -> list[str]:
        """The computations that it runs or fuses."""
        branches = [
            name.strip().lstrip("%") for found in _BRANCHES.findall(self.attributes) for name in found.split(",")
        ]
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


def shapes(text: str) -> list[Shape]:
    """The shapes in a text."""
    found = [match for match in _SHAPE.findall(text) if match[0] in BYTES]
    return [Shape(dtype, tuple(int(size) for size in dims.split(",") if size), layout) for dtype, dims, layout in found]


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation. The entry computation is last."""
    return {name: [_instruction(line) for line in _joined(lines)] for name, lines in bodies(text)}


def bodies(text: str) -> Iterator[tuple[str, list[str]]]:
    """The name and the lines of each computation. (Metadata of kernels has other lines that begin with `}`.)"""
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


def _joined(lines: list[str]) -> list[str]:
    """One string for each instruction: the metadata of a kernel takes several lines."""
    whole: list[str] = []
    for line in lines:
        if _BEGIN.match(line) or not whole:
            whole.append(line)
        else:
            whole[-1] += "\n" + line
    return whole


def _instruction(line: str) -> Instruction:
    head = _BEGIN.match(line)
    rest = line[head.end() :]
    shape, rest = until_closed(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.lstrip().split("(", 1)
    operands, attributes = until_closed("(" + rest)
    return Instruction(head[1], shape, opcode, operands, attributes)


def until_closed(text: str) -> tuple[str, str]:
    """Split a text that begins with a parenthesis behind the matching one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    return text, ""
