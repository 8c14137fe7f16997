"""The time of a compiled GPU program. No instruction says how long it takes, so each is counted here:

- matrix products by their FLOPs or by the bytes that they move, whichever takes longer,
- attention kernels by the scores that a causal mask leaves,
- grouped matmuls (of experts) by the FLOPs of the rows in use, or by bytes as the others,
- all other work by the bytes that it reads and writes,
- collectives by NVLink and the network cards that they use, one after the other, beside the work.

What is reached of each peak is in the GPU's entry (`hardware/chips.yaml`).
"""

import math
import re
from collections import Counter, defaultdict

from tpullm.hardware.topologies import GpuHosts
from tpullm.model.experts.exchange import UNINITIALIZED
from tpullm.planning.instructions import KINDS, Collective, Instruction, as_collective
from tpullm.planning.routes import network_speed
from tpullm.planning.timeline import FREE, Estimator, Item, called_computation

LAUNCH = 2.5e-6  # seconds from one kernel to the next; a guess
# Our kernels, and their matmuls of the size of the scores; the first that matches counts.
ATTENTION = {"triton_attention_dkv": 4, "triton_attention_dq": 3, "triton_attention": 2}
GROUPED = "grouped_matmul"  # our kernels of experts
SLICES = ("dynamic-slice", "slice", "gather")


def schedule_on_gpu(text: str, topology: GpuHosts, filled: float = 1.0) -> list[Item]:
    """The time of each instruction of an executable in one step; their `seconds` add up to the step's.

    Args:
        filled: share of the experts' buffers that holds rows.
    """
    return _Estimator(text, topology, filled).run()


class _Estimator(Estimator):
    def __init__(self, text: str, topology: GpuHosts, filled: float):
        super().__init__(text, topology, filled)
        self._memory = self.chip.hbm_bandwidth * self.chip.hbm_efficiency
        self._products = self.chip.peak_flops * self.chip.matmul_efficiency

    def turns(self, loop: Instruction) -> int:
        """The number of turns that XLA knows; of a loop that it has pipelined, the constant in its condition."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = self.program[called_computation(loop, "condition")]
        inner = [one for outer in condition for name in outer.calls for one in self.program.get(name, ())]
        found = [re.fullmatch(r"\((\d+)\)", one.operands) for one in condition + inner if one.opcode == "constant"]
        return max((int(match[1]) for match in found if match), default=1)

    def collective(self, one: Instruction, inside: str) -> Collective | None:
        """The collective that an instruction is or starts."""
        if one.opcode == "async-start":
            started = (inner for name in one.calls for inner in self.program.get(name, ()))
            return next((as_collective(inner, inside) for inner in started if inner.opcode in KINDS), None)
        return as_collective(one, inside)

    def waits_at_once(self, one: Instruction) -> bool:
        """Whether nothing runs beside a transfer."""
        return super().waits_at_once(one) or '"is_sync":true' in one.attributes

    def transfer(self, one: Instruction, collective: Collective | None) -> tuple[tuple[str, ...], float]:
        """The queues that a data transfer uses, and its seconds; () for an instruction that computes."""
        if collective is None:
            if one.opcode not in ("copy-start", "async-start", "fusion-start"):
                return (), 0.0
            if any(shape.space == 5 for shape in one.shapes):
                return ("host",), self._bytes(one) / 2 / self.chip.host_bandwidth
            return ("memory",), self._bytes(one) / self._memory
        groups, received = collective.devices(), collective.bytes
        size = max(map(len, groups), default=0)
        if size < 2:
            return ("links",), 0.0
        domains = Counter(device // self.topology.of_domain for device in groups[0])
        bandwidth, latency = network_speed(self.chip, max(domains.values()), len(domains) > 1)
        if collective.kind != "collective-permute":
            received = (2 if collective.kind == "all-reduce" else 1) * received * (size - 1) / size
        share = self.filled if collective.kind.startswith("ragged") else 1.0
        return ("links",), (received / bandwidth + latency) * share

    def work(self, one: Instruction) -> float:
        """Seconds of an instruction that computes."""
        if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
            return 0.0
        # The custom call that an instruction is, or that a fusion is around.
        inside = (inner for name in one.calls if one.opcode == "fusion" for inner in self._defined(name))
        calls = (inner for inner in inside if inner.opcode == "custom-call")
        kernel = one if one.opcode == "custom-call" else next(calls, None)
        if kernel and UNINITIALIZED in kernel.attributes:
            return LAUNCH
        if kernel and (matmuls := next((n for name, n in ATTENTION.items() if name in kernel.attributes), 0)):
            # With a causal mask: so many matmuls of queries `[B, T, N, H]` by half of the keys.
            B, T, N, H = max((shape.dims for shape in self.operands(kernel) if len(shape.dims) == 4), key=math.prod)
            flops = matmuls * 2 * B * N * T * (T / 2) * H
            return flops / (self.chip.peak_flops * self.chip.attention_efficiency) + LAUNCH
        if kernel and GROUPED in kernel.attributes:
            reached = self._products * self.chip.grouped_efficiency
            return max(self.grouped_flops(kernel) / reached, self._bytes(kernel) / self._memory) + LAUNCH
        flops = 0.0 if kernel else sum(map(self._dot_flops, one.calls))
        if kernel and "__cublas" in kernel.attributes:  # a product by CUDA's library
            contracted = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', kernel.attributes)
            flops = 2 * math.prod(kernel.shapes[0].dims) * self.operands(kernel)[0].dims[int(contracted[1])]
        return max(flops / self._products, self._bytes(one) / self._memory) + LAUNCH

    def _defined(self, name: str) -> list[Instruction]:
        """The instructions of a computation, which from here on can be found by their names."""
        found = self.program.get(name, [])
        self.named |= {one.name: one for one in found}
        return found

    def _dot_flops(self, name: str) -> float:
        """FLOPs of the products in a computation."""
        total = 0.0
        for one in self._defined(name):
            if one.opcode == "dot":
                contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)[1].split(",")
                left = self.operands(one)[0].dims
                total += 2 * math.prod(one.shapes[0].dims) * math.prod(left[int(n)] for n in contracted if n)
            total += sum(map(self._dot_flops, one.calls)) if one.opcode in ("fusion", "call") else 0.0
        return total

    def _bytes(self, one: Instruction) -> float:
        """Bytes that an instruction reads and writes. A fusion that uses a slice of an array reads no more of it."""
        if one.opcode == "copy-start":
            return 2 * max(shape.bytes for shape in one.shapes)
        if not one.opcode.startswith(("fusion", "async")):
            return sum(shape.bytes for shape in [*one.shapes, *self.operands(one)])
        body = self._defined(one.calls[0])
        users = defaultdict(list)
        for inner in body:
            for name in inner.uses:
                users[name].append(inner)
        read = sum(self._read(inner, users) for inner in body if inner.opcode == "parameter")
        results = [self.named[name] for name in body[-1].uses] if body[-1].opcode == "tuple" else [body[-1]]
        return read + sum(self._written(result) for result in results)

    def _read(self, one: Instruction, users: dict[str, list[Instruction]]) -> float:
        """Bytes that the users of an array read of it."""
        whole, read = sum(shape.bytes for shape in one.shapes), 0.0
        for user in users[one.name]:
            if user.opcode in SLICES:
                read += sum(shape.bytes for shape in user.shapes)
            elif user.opcode == "bitcast":
                read += self._read(user, users)
            elif not (user.opcode == "dynamic-update-slice" and user.uses[0] == one.name):
                return whole
        return min(whole, read)

    def _written(self, result: Instruction) -> float:
        """Bytes that a result writes: of an array that is updated in place, the update."""
        while result.opcode == "bitcast" and result.uses[0] in self.named:
            result = self.named[result.uses[0]]
        if result.opcode == "dynamic-update-slice":
            return sum(shape.bytes for shape in self.named[result.uses[1]].shapes)
        return sum(shape.bytes for shape in result.shapes)
