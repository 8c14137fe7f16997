"""What all topologies have in common: TPU slices (`slices.py`) and hosts with GPUs (`gpu_hosts.py`)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from tpullm.hardware import chips
from tpullm.hardware.chip import Chip


@dataclass(frozen=True)
class Topology(ABC):
    """Devices of one kind and how they are connected. They need not be here: a compiler is told of them.

    Args:
        generation: a key of `chips.CHIPS`.
        shape: devices of a slice along each dimension; of GPUs hosts and GPUs a host, or the GPUs of one host.
        slices: number of slices; the data center network connects them.
    """

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    platform: ClassVar[str]  # JAX's name of the devices' platform
    compiler: ClassVar[str]  # the package of the compiler
    extra: ClassVar[str]  # of tpullm that installs the compiler

    @property
    def chips(self) -> int:
        """Number of devices in all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def device_kind(self) -> str:
        """JAX's name of one device."""
        return self.chip.device_kinds[0]

    @property
    def chip(self) -> Chip:
        """The kind of device."""
        return chips.CHIPS[self.generation]

    @property
    def name(self) -> str:
        """The name of one slice."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """The arguments of JAX's `get_topology_desc`, by which a compiler knows these devices."""
