"""The collectives of a compiled program, read from the text of a TPU executable (`as_text()`).

The text is scheduled. The instructions of a loop run once for each layer.
"""

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from tpullm.planning.instructions import Instruction, computations, shapes, until_closed

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Args:
        kind: one of `KINDS`. An all-reduce that the compiler has fused with a slice of its result (it calls the fusion
            `all-reduce-scatter`) counts as a reduce-scatter.
        bytes: size of the output on one device; of a reduce-scatter, of the input.
        groups: the devices of each group, as the program writes them.
        in_loop: it is in a loop: over layers, or over chunks.
        asynchronous: other work can run meanwhile: it is a pair of start and done, fused with other work, or on
            another core.
        operation: its place in the traced function (`op_name`).
    """

    kind: str
    bytes: int
    groups: str
    in_loop: bool
    asynchronous: bool
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


def collectives(text: str) -> list[Collective]:
    """All collectives, each once, even if the compiler has split it over several fusions."""
    program = computations(text)
    looped = _reached(program, re.findall(r"body=%?([\w.-]+)", text))
    found = {}
    for name, instructions in program.items():
        for instruction in instructions:
            if instruction.opcode.removesuffix("-start") in KINDS:
                one = as_collective(instruction, name, name in looped)
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                # The fusions of one asynchronous collective agree in all of these. So do equal collectives of a layer,
                # which therefore count once.
                found.setdefault(
                    (one.kind, one.bytes, one.groups, one.operation, channel and channel[1], one.in_loop), one
                )
    return list(found.values())


def as_collective(instruction: Instruction, computation: str, in_loop: bool) -> Collective:
    """The collective that an instruction is; its opcode is one of `KINDS`."""
    kind = instruction.opcode.removesuffix("-start")
    groups = re.search(r"(?:replica_groups|source_target_pairs)=(mesh\[.*?\]\s*\{.*?\}|[^\s]+)", instruction.attributes)
    apart = computation.startswith(("async_collective_fusion", "fused_computation", "called_computation"))
    asynchronous = instruction.opcode.endswith("-start") or apart
    size = _size(instruction)
    one = Collective(kind, size, groups[1] if groups else "", in_loop, asynchronous, instruction.operation)
    if instruction.opcode == "reduce-scatter":
        return replace(one, bytes=size * len(one.devices()[0]))
    scattered = kind == "all-reduce" and computation.startswith("all-reduce-scatter")
    return replace(one, kind="reduce-scatter") if scattered else one


def _size(instruction: Instruction) -> int:
    """Bytes of the outputs of a collective, which are several if the compiler combined collectives.

    A start names inputs too: `(input, output)`, on a GPU `((inputs), outputs)`. Then the larger of both sides counts;
    a ragged exchange also has its output buffer, and the sizes of its chunks, among the inputs.
    """
    if instruction.shape.startswith("(("):
        sides = [sum(shape.bytes for shape in shapes(side)) for side in until_closed(instruction.shape[1:])]
        return sides[1] if instruction.opcode.startswith("ragged") else max(sides)
    of = [shape.bytes for shape in instruction.shapes]
    return max(of) if instruction.opcode.endswith("-start") else sum(of)


def _reached(program: dict[str, list[Instruction]], roots: list[str]) -> set[str]:
    """These computations, and all that they call, directly or not."""
    reached, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += [called for one in program.get(name, ()) for called in one.calls]
    return reached
