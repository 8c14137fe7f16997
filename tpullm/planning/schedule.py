"""How long a compiled program takes, by the compiler's own figures: one estimator for any program for a TPU.

The text of an executable is scheduled: instructions stand in the order in which they run, most with the cycles that
the compiler expects of them, loops with the number of their turns. What has no cycles is counted here: attention's
kernel by the compiler's schedule of it (`kernels.py`), products with experts by their operations, other kernels by the
bytes that they move, collectives by the links that they go over, gathers of rows by the memory that they read and
write. What is asynchronous (collectives, gathers, copies between memories) goes on between its start and its done; what
is left of it at its done is waited for. Where a core is started before it is given its operands (`call-update`), that
is when it begins.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from tpullm.hardware.slices import Topology
from tpullm.model.experts.exchange import UNINITIALIZED
from tpullm.model.experts.moe import FURTHER_ROUNDS
from tpullm.planning.attention_kernels import largest, scheduled, seen
from tpullm.planning.hlo import KINDS, Collective, as_collective
from tpullm.planning.instructions import Instruction, Shape, computations

# What runs in no time: names for parts of memory, scalars' places, and the ends of what was counted at its start.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("iota", "send-done", "recv", "opt-barrier", "add-dependency", "call-update", "async-update"),
}
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "X64", UNINITIALIZED)
SCALAR_BYTES = 1 << 10  # what is smaller is counted as nothing, where the compiler gives no cycles
# Attention's kernels, and the ends of the names of their blocks; of a kernel that does not say, it is this.
BLOCK = 1024
KERNELS = {"splash_mha_fwd": ("forward", ""), "splash_mha_dq": ("queries", "_dq"), "splash_mha_dkv": ("keys", "_dkv")}
GROUPED = ("ragged-dot-", "gmm", "tgmm")  # products with a matrix for each expert: XLA's kernel, and MaxText's

# Shares of the peak that products with experts reach, and of the links' bandwidth that collectives do.
GROUPED_SHARE, LINKS = 0.5, 0.7
# Share of the memory's bandwidth that a gather by the small cores reaches: so the compiler's own configuration of it.
GATHERS = 0.8
# What is observed of what is so counted. The analytic model, which is fitted to published runs, gives 0.80, 0.81 and
# 0.86 of the sum for MaxText's programs of Llama-2-7B on v5e, Llama-3.1-8B on v6e and Llama-2-70B on v5p.
OBSERVED = 0.82


@dataclass(frozen=True)
class Torus:
    """A slice, and where in it each device of a program is: `places[n]` are the coordinates of device n."""

    topology: Topology
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Item:
    """An instruction and what it costs.

    Args:
        times: how often it runs in a step.
        seconds: of all these, in which nothing else can be done: its own work, or the waiting for what it started.
        busy_seconds: of the links or of the memory, for what is asynchronous or a collective.
        collective: what it is, if it is one.
        inside: the computation that it stands in.
    """

    instruction: Instruction
    times: int
    seconds: float
    busy_seconds: float
    collective: Collective | None
    inside: str


@dataclass(frozen=True)
class _Transfer:
    """Data on its way, from `begin` to `end`: its place among the items, and the transfer that had to end before."""

    place: int
    begin: float
    end: float
    before: "_Transfer | None"


@dataclass
class _Timeline:
    """The time within one computation, and what was last put on each link and memory."""

    now: float = 0.0
    last: dict[str, _Transfer] = field(default_factory=dict)
    begun: dict[str, _Transfer] = field(default_factory=dict)  # by the name of the instruction that started it

    def occupy(self, name: str, queues: tuple[str, ...], seconds: float, place: int) -> None:
        """Go to work as soon as all queues are free."""
        busy = [self.last[queue] for queue in queues if queue in self.last and self.last[queue].end > self.now]
        before = max(busy, key=lambda one: one.end, default=None)
        begin = before.end if before else self.now
        self.begun[name] = _Transfer(place, begin, begin + seconds, before)
        self.last |= dict.fromkeys(queues, self.begun[name])

    def wait(self, name: str) -> list[tuple[int, float]]:
        """Wait until that has ended: for which items, and how long.

        While it stood in line, what is waited for is what was on its way.
        """
        one, waited = self.begun.pop(name), []
        passing: _Transfer | None = one
        while passing and passing.end > self.now:
            waited.append((passing.place, passing.end - max(self.now, passing.begin)))
            passing = passing.before
        self.now = max(self.now, one.end)
        return waited


def schedule(text: str, torus: Torus, filled: float = 1.0) -> list[Item]:
    """What each instruction of an executable costs in one step; the sum of `seconds` is that of the step.

    Args:
        filled: share of the rows in experts' buffers that are in use.
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
        """The items of what an instruction runs, as often as it does; None if it is no loop, branch or call."""
        if one.opcode == "while":
            condition, body = (_called(one, key) for key in ("condition", "body"))
            turns = 0 if FURTHER_ROUNDS in one.operation else self._turns(condition)
            return [_repeated(item, turns) for item in self.run(body)] if turns else []
        if one.opcode == "conditional":
            branches = [self.run(name) for name in one.calls]
            return max(branches, key=lambda items: sum(item.seconds for item in items), default=[])
        return self.run(one.calls[0]) if one.opcode == "call" and one.calls else None

    def _turns(self, condition: str) -> int:
        """The constant in the condition of a loop."""
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
        """Wait for what has been started. (What was started in another turn of a loop has had the time of a turn.)"""
        for place, waited in timeline.wait(started) if started in timeline.begun else ():
            items[place] = replace(items[place], seconds=items[place].seconds + waited)

    def _transfer(self, one: Instruction, collective: Collective | None) -> tuple[tuple[str, ...], float]:
        """What is occupied by what moves data, and for how long; () for what computes."""
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
        """The collective that an instruction is or that it starts. A product that goes on beside one is not it."""
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
        """Seconds of what computes."""
        if one.opcode == "custom-call" and (seconds := self._attention(one)):
            return seconds
        if one.opcode == "custom-call" and (products := self._grouped_products(one)):
            return products / (self.chip.peak_flops * GROUPED_SHARE)
        if one.cycles is not None:
            return one.cycles / self.chip.clock
        if one.opcode in FREE or any(name in one.attributes for name in FREE_CALLS):
            return 0.0
        moved = 2 * sum(shape.bytes for shape in one.shapes if shape.space == 0)
        return moved / self.chip.hbm_bandwidth if moved > SCALAR_BYTES else 0.0

    def _attention(self, one: Instruction) -> float:
        """Seconds of a kernel of attention, its mask causal; 0 for another kernel."""
        name = next((name for name in KERNELS if one.name.startswith(name)), None)
        if name is None:
            return 0.0
        (kernel, end), width = KERNELS[name], one.shapes[0].dims[-1]
        if kernel == "keys" and len(one.shapes) == 3:  # the queries' gradient comes out too
            kernel = "all"
        blocks = [re.search(rf'block_{of}{end}\\*": (\d+)', one.attributes) for of in ("q", "kv")]
        area = math.prod(int(found[1]) if found else BLOCK for found in blocks)
        block = largest(self.chip, math.isqrt(area))
        arrays = self._operands(one) or one.shapes
        arrays = [of.dims for of in arrays if len(of.dims) > 2 and of.dims[-1] == width]
        queries, keys = (of(dims[-2] for dims in arrays) for of in (min, max))
        heads = max(math.prod(dims[:-2]) for dims in arrays if dims[-2] == queries)
        seconds = scheduled(self.chip, kernel, block, (1, queries, keys), seen(keys, block), width)
        return heads * seconds / self.chip.attention_efficiency

    def _grouped_products(self, one: Instruction) -> float:
        """Operations of a product with one matrix for each expert: rows in use times both widths."""
        if not one.name.startswith(GROUPED) or "metadata" in one.name:
            return 0.0
        largest = sorted((shape.dims for shape in self._arrays(one) if len(shape.dims) == 2), key=math.prod)[-2:]
        rows = largest[-1][0] * self.filled if len(largest) == 2 else 0.0
        return 2 * rows * math.prod(dims[1] for dims in largest)

    def _arrays(self, one: Instruction) -> list[Shape]:
        """What comes out of an instruction and what goes in."""
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
    """The name of what this instruction waits for."""
    if one.name.startswith("async-collective-done"):  # its operands come through the products beside it
        return one.name.replace("-done", "-start", 1)
    if one.opcode.endswith("-done") and one.opcode not in FREE and one.uses:
        return one.uses[0]
    return None


def link_seconds(one: Collective, torus: Torus) -> tuple[tuple[int, ...], float]:
    """The dimensions of the torus that a collective goes over, and how long it takes there alone.

    Along a ring data goes both ways, along a line each link is passed by all of it. A hop costs time of its own.
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
