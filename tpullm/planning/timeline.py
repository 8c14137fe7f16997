"""The instructions of a scheduled program on a line of time: what blocks the device, what runs beside its work, and
the part of a step that each belongs to.

The text of an executable is scheduled: instructions stand in the order in which they run. Asynchronous instructions
(collectives, gathers, copies between memories) run from their start; at their done, the device waits for the rest. A
core that is started before it gets its operands begins when it gets them (`call-update`). How long each takes is told
by `tpu_schedule.py` and `gpu_schedule.py`.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

from tpullm.hardware.topologies import Topology
from tpullm.model.experts.moe import FURTHER_ROUNDS
from tpullm.planning.instructions import Collective, Instruction, Shape, computations

# Instructions that take no time: names for parts of memory, scalars, and the ends of what was counted at its start.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("iota", "send-done", "recv", "opt-barrier", "add-dependency", "call-update", "async-update"),
}


@dataclass(frozen=True)
class Item:
    """An instruction and its time in a step.

    Args:
        times: how often it runs.
        seconds: in which it blocks the device: its own work, or the wait for what it started. Summed over `times`.
        busy_seconds: in which it uses links or memory, if it is a collective or asynchronous. Summed over `times`.
        collective: the collective that it is or starts, if any.
        inside: the computation that contains it.
    """

    instruction: Instruction
    times: int
    seconds: float
    busy_seconds: float
    collective: Collective | None
    inside: str

    @property
    def bytes(self) -> int:
        """Size of the collective, or of the first output."""
        return self.collective.bytes if self.collective else self.instruction.shapes[0].bytes

    def scaled(self, turns: int, share: float = 1.0) -> "Item":
        """The instruction, repeated by a loop of `turns` turns, each in a share of the time."""
        seconds = turns * self.seconds * share, turns * self.busy_seconds * share
        return replace(self, times=turns * self.times, seconds=seconds[0], busy_seconds=seconds[1])


@dataclass(frozen=True)
class Transfer:
    """A transfer from `begin` to `end`: its index among the items, and the transfer that it had to wait for."""

    place: int
    begin: float
    end: float
    before: "Transfer | None"


@dataclass
class Timeline:
    """The time within one computation, and the last transfer on each queue: a link or a memory."""

    now: float = 0.0
    last: dict[str, Transfer] = field(default_factory=dict)
    begun: dict[str, Transfer] = field(default_factory=dict)  # by the name of the start instruction

    def occupy(self, name: str, queues: tuple[str, ...], seconds: float, place: int) -> None:
        """Begin a transfer as soon as all its queues are free."""
        busy = [self.last[queue] for queue in queues if queue in self.last and self.last[queue].end > self.now]
        before = max(busy, key=lambda one: one.end, default=None)
        begin = before.end if before else self.now
        self.begun[name] = Transfer(place, begin, begin + seconds, before)
        self.last |= dict.fromkeys(queues, self.begun[name])

    def wait(self, name: str, items: list[Item]) -> None:
        """Wait for a started transfer. (One that was started in an earlier turn of a loop has ended by now.)

        The items that were waited for get the seconds. While the transfer itself was queued, the wait was for the
        transfers before it.
        """
        one = passing = self.begun.pop(name, None)
        while passing and passing.end > self.now:
            item, waited = items[passing.place], passing.end - max(self.now, passing.begin)
            items[passing.place] = replace(item, seconds=item.seconds + waited)
            passing = passing.before
        self.now = max(self.now, one.end) if one else self.now


class Estimator(ABC):
    """Walks through a program. A subclass tells how long instructions and transfers take.

    Args:
        text: of the executable.
        topology: that it is for.
        filled: share of the experts' buffers that holds rows.
    """

    def __init__(self, text: str, topology: Topology, filled: float):
        self.program, self.topology, self.chip, self.filled = computations(text), topology, topology.chip, filled
        self.named: dict[str, Instruction] = {}

    @abstractmethod
    def turns(self, loop: Instruction) -> int:
        """How often the body of a loop runs."""

    @abstractmethod
    def collective(self, one: Instruction, inside: str) -> Collective | None:
        """The collective that an instruction is or starts."""

    def waits_at_once(self, one: Instruction) -> bool:
        """Whether nothing runs beside a transfer: it has no end of its own."""
        started = one.opcode.endswith("-start") or one.opcode == "send"
        return not started and not one.name.startswith("async-collective-start")

    @abstractmethod
    def transfer(self, one: Instruction, collective: Collective | None) -> tuple[tuple[str, ...], float]:
        """The queues that a data transfer uses, and its seconds; () for an instruction that computes."""

    @abstractmethod
    def work(self, one: Instruction) -> float:
        """Seconds of an instruction that computes."""

    def operands(self, one: Instruction) -> list[Shape]:
        """The shapes of an instruction's operands, as far as they have been met."""
        return [shape for name in one.uses if name in self.named for shape in self.named[name].shapes]

    def grouped_flops(self, one: Instruction) -> float:
        """FLOPs of a grouped matmul: 2 x rows in use x input width x output width.

        The rows have both widths: as operand and result, or as two operands where the result is the gradient of the
        matrices.
        """
        arrays = (shape.dims for shape in one.shapes + self.operands(one) if len(shape.dims) == 2)
        largest = sorted(arrays, key=math.prod)[-2:]
        rows = largest[-1][0] * self.filled if len(largest) == 2 else 0.0
        return 2 * rows * math.prod(dims[1] for dims in largest)

    def run(self, name: str = "") -> list[Item]:
        """The items of a computation that runs once, in order; default: the entry computation, which is the last."""
        timeline, items, name = Timeline(), [], name or list(self.program)[-1]
        self.named = {one.name: one for one in self.program[name]} | self.named
        given = {one.uses[0] for one in self.program[name] if one.opcode == "call-update"}
        for one in self.program[name]:
            inner = [] if one.name in given else self._inner(one)
            if inner is not None:
                items += inner
                timeline.now += sum(item.seconds for item in inner)
            else:
                self._add(one, name, timeline, items)
        return items

    def _inner(self, one: Instruction) -> list[Item] | None:
        """The items in a loop, the longest branch or a call; None if the instruction is none of these."""
        if one.opcode == "while":
            turns = 0 if FURTHER_ROUNDS in one.operation else self.turns(one)
            return [item.scaled(turns) for item in self.run(called_computation(one, "body"))] if turns else []
        if one.opcode == "conditional":
            branches = [self.run(name) for name in one.calls]
            return max(branches, key=lambda items: sum(item.seconds for item in items), default=[])
        return self.run(one.calls[0]) if one.opcode == "call" and one.calls else None

    def _add(self, one: Instruction, inside: str, timeline: Timeline, items: list[Item]) -> None:
        if one.name.startswith("async-collective-done"):  # its operands come from the matmuls beside it
            return timeline.wait(one.name.replace("-done", "-start", 1), items)
        if one.opcode.endswith("-done") and one.opcode not in FREE and one.uses:
            return timeline.wait(one.uses[0], items)
        begun = self.named[one.uses[0]] if one.opcode == "call-update" else one
        collective = self.collective(begun, inside)
        queues, busy = self.transfer(begun, collective)
        if not queues:
            seconds = self.work(one)
            if seconds:
                items.append(Item(one, 1, seconds, 0.0, None, inside))
            timeline.now += seconds
            return
        timeline.occupy(one.name, queues, busy, len(items))
        items.append(Item(begun, 1, 0.0, busy, collective, inside))
        if self.waits_at_once(begun):
            timeline.wait(one.name, items)


def called_computation(one: Instruction, key: str) -> str:
    """The computation that an attribute of an instruction names."""
    return re.search(rf"{key}=%?([\w.-]+)", one.attributes)[1]


# The first match counts. The patterns also match MaxText's names: one estimator serves its programs and ours.
PLACES = {
    "optimizer": r"\b(optimizer|adam\w*|apply_updates|clip\w*)\b",
    "loss": r"\b(loss\w*|logits\w*|cross_entropy\w*)\b",
    "embedding": r"\b(embedding|token_embedder)\b",
    "attention kernel": r"splash|triton_attention",
    "attention": r"attention|\b(rotary|rope)\b",
    "experts": r"\b(experts?|moe\w*|router)\b",
    "feed-forward": r"feed_forward|\bmlp\b",
}


def part_of(item: Item) -> str:
    """A key of `PLACES`, `waiting` for collectives and for transfers between memories, or `other`."""
    if item.busy_seconds:
        return "waiting"
    operation = f"{item.instruction.operation} {item.instruction.name}"
    return next((part for part, pattern in PLACES.items() if re.search(pattern, operation)), "other")
