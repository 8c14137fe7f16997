"""The route of a collective along a mesh axis: over the torus of a TPU slice, or over NVLink and the hosts' network."""

from functools import lru_cache
from itertools import combinations
from math import prod
from typing import NamedTuple

from tpullm.hardware.chip import Chip
from tpullm.hardware.gpu_hosts import GpuHosts
from tpullm.hardware.slices import Slices
from tpullm.hardware.topology import Topology
from tpullm.mesh.axes import AXES
from tpullm.planning.setting import Setting


class Speed(NamedTuple):
    """How fast a collective is: bytes a second that each device receives, and seconds that it takes for no bytes."""

    bandwidth: float
    latency: float


def speed(setting: Setting, axis: str, faster: int = 1) -> Speed:
    """The speed of collectives along a mesh axis.

    Args:
        faster: on a torus, how many times as fast as an all-gather; the network of GPUs has no short ways.
    """
    chip, topology = setting.device, setting.topology
    if isinstance(topology, GpuHosts):
        together = in_domain(setting.sizes, axis, topology.of_domain)
        return network_speed(chip, together, setting.along(axis) > together)
    route = torus_route(topology, setting.sizes, axis, setting.habits.in_lines)
    return Speed(route.links * chip.link_bandwidth * chip.link_efficiency * faster, route.hops * chip.latency_seconds)


def network_speed(chip: Chip, together: int, leaves: bool) -> Speed:
    """The speed of a collective over GPUs.

    Args:
        together: its devices in one NVLink domain. Each has a network card of its own.
        leaves: it goes over several domains.
    """
    links, cards = chip.link_bandwidth * chip.link_efficiency, together * chip.dcn_bandwidth * chip.dcn_efficiency
    return Speed(min(links, cards) if leaves else links, chip.latency_seconds)


def in_domain(sizes: tuple[int, ...], axis: str, domain: int) -> int:
    """How many devices along a mesh axis are among `domain` neighbours; the last axis has the nearest devices."""
    place = AXES.index(axis)
    return max(1, min(sizes[place], domain // prod(sizes[place + 1 :])))


class Route(NamedTuple):
    """The route of a collective along a mesh axis, on a torus.

    A ring of links carries data both ways, so a chip receives over two links; a line that is not closed carries it one
    way. The bandwidths of several dimensions add up.

    Args:
        links: over which a chip receives data at once.
        hops: chips that the data passes.
        dimensions: of the torus that it uses.
    """

    links: float
    hops: int
    dimensions: int


@lru_cache(maxsize=100_000)
def torus_route(topology: Topology, sizes: tuple[int, ...], axis: str, in_lines: bool) -> Route:
    """The route of collectives along `axis`.

    Mesh axes get dimensions of the torus from the last axis to the first, as in `jax.make_mesh`: as many whole
    dimensions as possible whose product is the axis' size, or else parts of dimensions.
    """
    free = {n: size for n, size in enumerate(topology.shape) if size > 1}
    sizes = (max(1, sizes[0] // topology.slices), *sizes[1:])
    for name, size in reversed(list(zip(AXES, sizes, strict=True))):
        if size == 1:
            continue
        taken = _taken(free, size) or _part(free, size)
        if name == axis:
            return _over(topology, taken, in_lines and size == topology.chips)
        for n, part in taken.items():
            free[n] //= part
            if free[n] <= 1:
                del free[n]
    return Route(1.0, 1, 1)


def _over(topology: Topology, taken: dict[int, int], in_lines: bool) -> Route:
    rings = topology.rings if isinstance(topology, Slices) else (False,) * len(topology.shape)
    links = [2 if rings[n] and part == topology.shape[n] else 1 for n, part in taken.items()]
    return Route(max(links) if in_lines else sum(links), sum(taken.values()), len(taken))


def _taken(free: dict[int, int], size: int) -> dict[int, int] | None:
    """As many whole dimensions as possible whose product is `size`; None if there are none."""
    for count in range(len(free), 0, -1):
        for chosen in combinations(free, count):
            if prod(free[n] for n in chosen) == size:
                return {n: free[n] for n in chosen}
    return None


def _part(free: dict[int, int], size: int) -> dict[int, int]:
    """Parts of dimensions whose product is `size`, the largest dimension first."""
    taken = {}
    for n in sorted(free, key=lambda n: -free[n]):
        part = next(part for part in range(min(free[n], size), 0, -1) if free[n] % part == 0 and size % part == 0)
        if part > 1:
            taken[n], size = part, size // part
    return taken
