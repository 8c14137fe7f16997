"""The time of a compiled TPU program, by the compiler's own figures; the program need not be ours.

The text of an executable is scheduled: instructions stand in the order in which they run. Most of them have the cycles
that the compiler expects, and loops have their number of turns. The time of the others is counted here:

- attention kernels by the compiler's schedule of them (`attention_kernels.py`),
- grouped matmuls by their FLOPs,
- other kernels by the bytes that they move,
- collectives by the links that they use,
- gathers of rows by the memory that they read and write.

Asynchronous instructions (collectives, gathers, copies between memories) run from their start; at their done, the
device waits for the rest. A core that is started before it gets its operands begins when it gets them (`call-update`).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from tpullm.hardware.slices import Topology
from tpullm.model.experts.exchange import UNINITIALIZED
from tpullm.model.experts.moe import FURTHER_ROUNDS
from tpullm.planning.attention_kernels import kernel_seconds, keys_per_query, table_block
from tpullm.planning.hlo import KINDS, Collective, as_collective
from tpullm.planning.instructions import Instruction, Shape, computations

# Instructions that take no time: names for parts of memory, scalars, and the ends of what was counted at its start.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("iota", "send-done", "recv", "opt-barrier", "add-dependency", "call-update", "async-update"),
}
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "X64", UNINITIALIZED)
SCALAR_BYTES = 1 << 10  # smaller arrays cost nothing where the compiler gives no cycles
# The attention kernels, and the suffix of the names of their block sizes. `BLOCK` is for kernels that name no sizes.
BLOCK = 1024
KERNELS = {"splash_mha_fwd": ("forward", ""), "splash_mha_dq": ("queries", "_dq"), "splash_mha_dkv": ("keys", "_dkv")}
GROUPED = ("ragged-dot-", "gmm", "tgmm")  # grouped matmuls, one matrix for each expert: XLA's kernel, and MaxText's

GROUPED_SHARE = 0.5  # share of the peak that grouped matmuls reach
LINKS = 0.7  # share of the links' bandwidth that collectives reach
GATHERS = 0.8  # share of the HBM bandwidth that a gather on SparseCores reaches, by the compiler's configuration of it
# A step takes this share of the time counted here. The analytic model, which is fitted to published runs, gives 0.80,
# 0.81 and 0.86 of it for MaxText's programs of Llama-2-7B on v5e, Llama-3.1-8B on v6e and Llama-2-70B on v5p.
OBSERVED = 0.82


@dataclass(frozen=True)
class Torus:
    """A slice, and the place of each device of a program in it: `places[n]` are the coordinates of device n."""

    topology: Topology
    places: tuple[tuple[int, ...], ...]


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


@dataclass(frozen=True)
class _Transfer:
    """A transfer from `begin` to `end`: its index among the items, and the transfer that it had to wait for."""

    place: int
    begin: float
    end: float
    before: "_Transfer | None"


@dataclass
class _Timeline:
    """The time within one computation, and the last transfer on each queue: a link or a memory."""

    now: float = 0.0
    last: dict[str, _Transfer] = field(default_factory=dict)
    begun: dict[str, _Transfer] = field(default_factory=dict)  # by the name of the start instruction

    def occupy(self, name: str, queues: tuple[str, ...], seconds: float, place: int) -> None:
        """Begin a transfer as soon as all its queues are free."""
        busy = [self.last[queue] for queue in queues if queue in self.last and self.last[queue].end > self.now]
        before = max(busy, key=lambda one: one.end, default=None)
        begin = before.end if before else self.now
        self.begun[name] = _Transfer(place, begin, begin + seconds, before)
        self.last |= dict.fromkeys(queues, self.begun[name])

    def wait(self, name: str) -> list[tuple[int, float]]:
        """Wait for a transfer to end.

        Returns:
            Index of each item that was waited for, with its seconds. While the transfer itself was queued, the wait was
            for the transfers before it.
        """
        one, waited = self.begun.pop(name), []
        passing: _Transfer | None = one
        while passing and passing.end > self.now:
            waited.append((passing.place, passing.end - max(self.now, passing.begin)))
            passing = passing.before
        self.now = max(self.now, one.end)
        return waited


def schedule(text: str, torus: Torus, filled: float = 1.0) -> list[Item]:
    """The time of each instruction of an executable in one step; their `seconds` add up to the step's.

    Args:
        filled: share of the experts' buffers that holds rows.
    """
    program = computations(text)
    items = _Estimator(program, torus, filled).run(list(program)[-1])
    return [replace(one, seconds=one.seconds * OBSERVED, busy_seconds=one.busy_seconds * OBSERVED) for one in items]


class _Estimator:
    def __init__(self, program: dict[str, list[Instruction]], torus: Torus, filled: float):
        self.program, self.torus, self.filled = program, torus, filled
        self.chip = torus.topology.chip

    def run(self, name: str) -> list[Item]:
        """The items of a computation that runs once, in order."""
        timeline, items = _Timeline(), []
        self.named = {one.name: one for one in self.program[name]} | getattr(self, "named", {})
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
            condition, body = (_called(one, key) for key in ("condition", "body"))
            turns = 0 if FURTHER_ROUNDS in one.operation else self._turns(condition)
            return [_repeated(item, turns) for item in self.run(body)] if turns else []
        if one.opcode == "conditional":
            branches = [self.run(name) for name in one.calls]
            return max(branches, key=lambda items: sum(item.seconds for item in items), default=[])
        return self.run(one.calls[0]) if one.opcode == "call" and one.calls else None

    def _turns(self, condition: str) -> int:
        """The number of turns: the constant in the condition of a loop."""
        found = [
            re.fullmatch(r"\((\d+)\)", one.operands) for one in self.program[condition] if one.opcode == "constant"
        ]
        return max((int(match[1]) for match in found if match), default=1)

    def _add(self, one: Instruction, inside: str, timeline: _Timeline, items: list[Item]) -> None:
        if (started := _start_of(one)) is not None:
            self._finish(started, timeline, items)
            return
        begun = self.named[one.uses[0]] if one.opcode == "call-update" else one
        collective = self.collective(begun, inside)
        queues, busy = self._transfer(begun, collective)
        if not queues:
            seconds = self._work(one)
            if seconds:
                items.append(Item(one, 1, seconds, 0.0, None, inside))
            timeline.now += seconds
            return
        timeline.occupy(one.name, queues, busy, len(items))
        items.append(Item(begun, 1, 0.0, busy, collective, inside))
        if not _is_start(begun):
            self._finish(one.name, timeline, items)

    def _finish(self, started: str, timeline: _Timeline, items: list[Item]) -> None:
        """Wait for a started transfer. (One that was started in an earlier turn of a loop has ended by now.)"""
        for place, waited in timeline.wait(started) if started in timeline.begun else ():
            items[place] = replace(items[place], seconds=items[place].seconds + waited)

    def _transfer(self, one: Instruction, collective: Collective | None) -> tuple[tuple[str, ...], float]:
        """The queues that a data transfer uses, and its seconds; () for an instruction that computes."""
        if collective is not None:
            dimensions, seconds = link_seconds(collective, self.torus)
            share = self.filled if collective.kind.startswith("ragged") else 1.0
            return tuple(f"links {n}" for n in dimensions) or ("links",), seconds * share
        if one.opcode == "send":
            return ("slices",), max((shape.bytes for shape in one.shapes), default=0) / self.chip.dcn_bandwidth
        if one.opcode == "call-start" and one.calls:
            rows = sum(shape.bytes for shape in self.program[one.calls[0]][-1].shapes)
            return ("small cores",), 2 * rows / (self.chip.hbm_bandwidth * GATHERS)
        if one.opcode in ("copy-start", "slice-start", "async-start", "dynamic-slice-start"):
            places = {shape.space for shape in one.shapes}
            moved = min((shape.bytes for shape in one.shapes if shape.bytes > 8), default=0)
            if 5 in places:
                return ("host",), moved / self.chip.host_bandwidth
            return ("memory",), moved / self.chip.hbm_bandwidth
        return (), 0.0

    def collective(self, one: Instruction, inside: str) -> Collective | None:
        """The collective that an instruction is or starts. A matmul that runs beside a collective is none."""
        if one.opcode.removesuffix("-start") in KINDS:
            return as_collective(one, inside, False)
        if one.opcode in ("fusion", "call-start", "async-start") and one.cycles is None:
            return next(self._collectives_in(one.calls), None)
        return None

    def _collectives_in(self, names: list[str]) -> Iterator[Collective]:
        for name in names:
            for one in self.program.get(name, ()):
                if one.opcode.removesuffix("-start") in KINDS:
                    yield as_collective(one, name, False)
                yield from self._collectives_in(one.calls) if one.opcode in ("fusion", "call") else ()

    def _work(self, one: Instruction) -> float:
        """Seconds of an instruction that computes."""
        if one.opcode == "custom-call" and (seconds := self._attention(one)):
            return seconds
        if one.opcode == "custom-call" and (flops := self._grouped_flops(one)):
            return flops / (self.chip.peak_flops * GROUPED_SHARE)
        if one.cycles is not None:
            return one.cycles / self.chip.clock
        if one.opcode in FREE or any(name in one.attributes for name in FREE_CALLS):
            return 0.0
        moved = 2 * sum(shape.bytes for shape in one.shapes if shape.space == 0)
        return moved / self.chip.hbm_bandwidth if moved > SCALAR_BYTES else 0.0

    def _attention(self, one: Instruction) -> float:
        """Seconds of an attention kernel with a causal mask; 0 for another kernel."""
        name = next((name for name in KERNELS if one.name.startswith(name)), None)
        if name is None:
            return 0.0
        (kernel, end), width = KERNELS[name], one.shapes[0].dims[-1]
        if kernel == "keys" and len(one.shapes) == 3:  # the queries' gradient comes out too
            kernel = "all"
        blocks = [re.search(rf'block_{of}{end}\\*": (\d+)', one.attributes) for of in ("q", "kv")]
        area = math.prod(int(found[1]) if found else BLOCK for found in blocks)
        block = table_block(self.chip, math.isqrt(area))
        arrays = self._operands(one) or one.shapes
        arrays = [of.dims for of in arrays if len(of.dims) > 2 and of.dims[-1] == width]
        queries, keys = (of(dims[-2] for dims in arrays) for of in (min, max))
        heads = max(math.prod(dims[:-2]) for dims in arrays if dims[-2] == queries)
        seconds = kernel_seconds(self.chip, kernel, block, (1, queries, keys), keys_per_query(keys, block), width)
        return heads * seconds / self.chip.attention_efficiency

    def _grouped_flops(self, one: Instruction) -> float:
        """FLOPs of a grouped matmul: 2 x rows in use x input width x output width; 0 for another kernel."""
        if not one.name.startswith(GROUPED) or "metadata" in one.name:
            return 0.0
        largest = sorted((shape.dims for shape in self._arrays(one) if len(shape.dims) == 2), key=math.prod)[-2:]
        rows = largest[-1][0] * self.filled if len(largest) == 2 else 0.0
        return 2 * rows * math.prod(dims[1] for dims in largest)

    def _arrays(self, one: Instruction) -> list[Shape]:
        """The outputs and the operands of an instruction."""
        return one.shapes + self._operands(one)

    def _operands(self, one: Instruction) -> list[Shape]:
        return [shape for name in one.uses if name in self.named for shape in self.named[name].shapes]


def _repeated(item: Item, turns: int) -> Item:
    return replace(item, times=item.times * turns, seconds=item.seconds * turns, busy_seconds=item.busy_seconds * turns)


def _called(one: Instruction, key: str) -> str:
    return re.search(rf"{key}=%?([\w.-]+)", one.attributes)[1]


def _is_start(one: Instruction) -> bool:
    return one.opcode.endswith("-start") or one.opcode == "send" or one.name.startswith("async-collective-start")


def _start_of(one: Instruction) -> str | None:
    """The name of the start that this instruction waits for; None if it waits for none."""
    if one.name.startswith("async-collective-done"):  # its operands come from the matmuls beside it
        return one.name.replace("-done", "-start", 1)
    if one.opcode.endswith("-done") and one.opcode not in FREE and one.uses:
        return one.uses[0]
    return None


def link_seconds(one: Collective, torus: Torus) -> tuple[tuple[int, ...], float]:
    """The dimensions of the torus that a collective uses, and its seconds if nothing else uses their links.

    Along a ring, data goes both ways. Along a line, all data passes each link. Each hop adds a latency.
    """
    groups = one.devices()
    if not groups or max(map(len, groups)) < 2:
        return (), 0.0
    places = np.array([torus.places[device] for device in groups[0]])
    spans = [len(set(places[:, n].tolist())) for n in range(places.shape[1])]
    dimensions = tuple(n for n, span in enumerate(spans) if span > 1)
    of, rings = torus.topology.chip, torus.topology.rings
    bandwidth = of.link_bandwidth * LINKS
    if one.kind == "collective-permute":
        hops = max(_distance(torus, *pair) for pair in groups)
        return dimensions, one.bytes * hops / bandwidth + hops * of.latency_seconds
    ring = {n: rings[n] and spans[n] == torus.topology.shape[n] for n in dimensions}
    hops = sum(spans[n] // 2 if ring[n] else spans[n] - 1 for n in dimensions)
    links = sum(2 if ring[n] else 1 for n in dimensions)
    devices = len(groups[0])
    if "all-to-all" in one.kind:
        longest = max(dimensions, key=lambda n: spans[n] * (1 if ring[n] else 2))
        crossing = spans[longest] / (8 if ring[longest] else 4)
        return dimensions, one.bytes * crossing / bandwidth + hops * of.latency_seconds
    ways = 2 if one.kind == "all-reduce" else 1
    moved = ways * one.bytes * (devices - 1) / devices
    return dimensions, moved / (links * bandwidth) + ways * hops * of.latency_seconds


def _distance(torus: Torus, source: int, target: int) -> int:
    steps = 0
    shape, rings = torus.topology.shape, torus.topology.rings
    for size, ring, a, b in zip(shape, rings, torus.places[source], torus.places[target], strict=True):
        steps += min(abs(a - b), size - abs(a - b)) if ring else abs(a - b)
    return max(steps, 1)
