"""The time of a compiled TPU program, by the compiler's own figures; the program need not be ours.

Most instructions of its text have the cycles that the compiler expects, and loops have their number of turns. The time
of the others is counted here:

- attention kernels by the compiler's schedule of them (`step_work.py`),
- grouped matmuls by their FLOPs,
- other kernels by the bytes that they move,
- collectives by the links that they use,
- gathers of rows by the memory that they read and write.
"""

import math
import re
from collections.abc import Iterator

from tpullm.hardware.topologies import Slices
from tpullm.model.experts.exchange import UNINITIALIZED
from tpullm.planning.instructions import Collective, Instruction, as_collective
from tpullm.planning.step_work import kernel_seconds, keys_per_query, table_block
from tpullm.planning.timeline import FREE, Estimator, Item, called_computation

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


Places = tuple[tuple[int, ...], ...]


def schedule_on_tpu(text: str, topology: Slices, places: Places, filled: float = 1.0) -> list[Item]:
    """The time of each instruction of an executable in one step; their `seconds` add up to the step's.

    Args:
        places: the coordinates of each device of the program in its slice; last its number on its chip, if a chip has
            several.
        filled: share of the experts' buffers that holds rows.
    """
    return [item.scaled(1, OBSERVED) for item in _Estimator(text, topology, places, filled).run()]


class _Estimator(Estimator):
    def __init__(self, text: str, topology: Slices, places: Places, filled: float):
        super().__init__(text, topology, filled)
        self.places = places

    def turns(self, loop: Instruction) -> int:
        """The number of turns: the constant in the condition of a loop."""
        condition = self.program[called_computation(loop, "condition")]
        found = [re.fullmatch(r"\((\d+)\)", one.operands) for one in condition if one.opcode == "constant"]
        return max((int(match[1]) for match in found if match), default=1)

    def transfer(self, one: Instruction, collective: Collective | None) -> tuple[tuple[str, ...], float]:
        """The queues that a data transfer uses, and its seconds; () for an instruction that computes."""
        if collective is not None:
            dimensions, seconds = link_seconds(collective, self.topology, self.places)
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
        if one.opcode in ("fusion", "call-start", "async-start") and one.cycles is None:
            return next(self._collectives_in(one.calls), None)
        return as_collective(one, inside)

    def _collectives_in(self, names: list[str]) -> Iterator[Collective]:
        for name in names:
            for one in self.program.get(name, ()):
                if found := as_collective(one, name):
                    yield found
                yield from self._collectives_in(one.calls) if one.opcode in ("fusion", "call") else ()

    def work(self, one: Instruction) -> float:
        """Seconds of an instruction that computes."""
        if one.opcode == "custom-call" and (seconds := self._attention(one)):
            return seconds
        if one.opcode == "custom-call" and one.name.startswith(GROUPED) and "metadata" not in one.name:
            return self.grouped_flops(one) / (self.chip.peak_flops * GROUPED_SHARE)
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
        arrays = self.operands(one) or one.shapes
        arrays = [of.dims for of in arrays if len(of.dims) > 2 and of.dims[-1] == width]
        queries, keys = (of(dims[-2] for dims in arrays) for of in (min, max))
        heads = max(math.prod(dims[:-2]) for dims in arrays if dims[-2] == queries)
        seconds = kernel_seconds(self.chip, kernel, block, (1, queries, keys), keys_per_query(keys, block), width)
        return heads * seconds / self.chip.attention_efficiency


def link_seconds(one: Collective, topology: Slices, places: Places) -> tuple[tuple[int, ...], float]:
    """The dimensions of the torus that a collective uses, and its seconds if nothing else uses their links.

    Along a ring, data goes both ways. Along a line, all data passes each link. Each hop adds a latency. The devices of
    one chip share its links. In one group, they receive the same data, and pass it on to each other.
    """
    groups = one.devices()
    if not groups or max(map(len, groups)) < 2:
        return (), 0.0
    spans = [len(set(along)) for along in zip(*(places[device] for device in groups[0]), strict=True)]
    of, shape, rings = topology.chip, topology.shape, topology.rings
    dimensions, devices = tuple(n for n, span in enumerate(spans[: len(shape)]) if span > 1), len(groups[0])
    ways, apart = 2 if one.kind == "all-reduce" else 1, one.kind == "collective-permute" or "all-to-all" in one.kind
    moved = one.bytes if one.kind == "collective-permute" else ways * one.bytes * (devices - 1) / devices
    if not dimensions:  # within chips
        return (len(shape),), moved / (of.device_link_bandwidth * LINKS) + ways * of.latency_seconds
    sharers = of.devices_per_chip / (1 if apart else math.prod(spans[len(shape) :]))
    bandwidth = of.link_bandwidth * LINKS / sharers
    if one.kind == "collective-permute":
        hops = 1
        for source, target in groups:
            steps = [abs(a - b) for a, b in zip(places[source], places[target], strict=True)]
            along = zip(steps, shape, rings, strict=False)
            hops = max(hops, sum(min(step, size - step) if ring else step for step, size, ring in along))
        return dimensions, moved * hops / bandwidth + hops * of.latency_seconds
    ring = {n: rings[n] and spans[n] == shape[n] for n in dimensions}
    hops = sum(spans[n] // 2 if ring[n] else spans[n] - 1 for n in dimensions)
    links = sum(2 if ring[n] else 1 for n in dimensions)
    if "all-to-all" in one.kind:
        longest = max(dimensions, key=lambda n: spans[n] * (1 if ring[n] else 2))
        crossing = spans[longest] / (8 if ring[longest] else 4)
        return dimensions, one.bytes * crossing / bandwidth + hops * of.latency_seconds
    return dimensions, moved / (links * bandwidth) + ways * hops * of.latency_seconds
