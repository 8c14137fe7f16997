"""The data that goes over the links in a step, by mesh axis, and its time.

A collective along a mesh axis takes a route: over the torus of a TPU slice, or over NVLink and the hosts' network.
"""

from functools import lru_cache
from itertools import combinations
from math import prod
from typing import NamedTuple

from tpullm.hardware.chips import Chip
from tpullm.hardware.topologies import GpuHosts, Slices, Topology
from tpullm.model.quantized import BLOCK
from tpullm.planning.setting import OURS, PLACES, Setting
from tpullm.recipe.mesh_axes import AXES


def network_speed(chip: Chip, together: int, leaves: bool) -> tuple[float, float]:
    """The speed of a collective over GPUs: bytes a second that each receives, and seconds that it takes for no bytes.

    Args:
        together: its devices in one NVLink domain. Each has a network card of its own.
        leaves: it goes over several domains.
    """
    links, cards = chip.link_bandwidth * chip.link_efficiency, together * chip.dcn_bandwidth * chip.dcn_efficiency
    return min(links, cards) if leaves else links, chip.latency_seconds


class Route(NamedTuple):
    """The route of a collective along a mesh axis, on a torus.

    A ring of links carries data both ways, so a chip receives over two links; a line that is not closed carries it one
    way. The bandwidths of several dimensions add up. The devices of one chip share its links: those that are in one
    collective receive the same data, and pass it on to each other.

    Args:
        links: over which a device receives data at once; a part of one if devices share it.
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
    dimensions as possible whose product is the axis' size, or else parts of dimensions. The devices of a chip are one
    more dimension, the last.
    """
    grid = topology.grid if isinstance(topology, Slices) else topology.shape
    free = {n: size for n, size in enumerate(grid) if size > 1}
    sizes = (max(1, sizes[0] // topology.slices), *sizes[1:])
    for name, size in reversed(list(zip(AXES, sizes, strict=True))):
        if size == 1:
            continue
        every = (chosen for count in range(len(free), 0, -1) for chosen in combinations(free, count))
        whole = next((chosen for chosen in every if prod(free[n] for n in chosen) == size), ())
        taken = {n: free[n] for n in whole} or _parts_of_dimensions(free, size)
        if name == axis:
            return _route_over(topology, taken, in_lines and size == topology.devices)
        for n, part in taken.items():
            free[n] //= part
            if free[n] <= 1:
                del free[n]
    return Route(1.0, 1, 1)


def _route_over(topology: Topology, taken: dict[int, int], one_by_one: bool) -> Route:
    """The route of a collective over parts of these dimensions of the torus and of its chips' devices.

    Args:
        one_by_one: along the lines of one dimension after the other. The devices of a chip are in one line of the
            first, and that step takes the longest.
    """
    torus = {n: part for n, part in taken.items() if n < len(topology.shape)}
    devices, chip = (topology.chip.devices_per_chip, topology.chip) if isinstance(topology, Slices) else (1, None)
    if not torus:
        return Route(chip.device_link_bandwidth / chip.link_bandwidth, 1, 1)
    rings = topology.rings if isinstance(topology, Slices) else (False,) * len(topology.shape)
    links = [2 if rings[n] and part == topology.shape[n] else 1 for n, part in torus.items()]
    if not one_by_one:
        links = [sum(links) * taken.get(len(topology.shape), 1) / devices]
    return Route(max(links), sum(torus.values()), len(torus))


def _parts_of_dimensions(free: dict[int, int], size: int) -> dict[int, int]:
    """Parts of dimensions whose product is `size`, the largest dimension first."""
    taken = {}
    for n in sorted(free, key=lambda n: -free[n]):
        part = next(part for part in range(min(free[n], size), 0, -1) if free[n] % part == 0 and size % part == 0)
        if part > 1:
            taken[n], size = part, size // part
    return taken


class Transfer(NamedTuple):
    """One kind of traffic of a step on one device.

    Args:
        axis: of the mesh.
        what: in words.
        received: bytes.
        seconds: if nothing else used the links.
        waits: the device waits for it; otherwise it overlaps with computation.
    """

    axis: str
    what: str
    received: float
    seconds: float
    waits: bool = False


def traffic(setting: Setting) -> list[Transfer]:
    """All traffic of a step."""
    found = [
        *_parameter_transfers(setting),
        _tensor_transfer(setting),
        *([_expert_transfer(setting)] if setting.model.experts else []),
        _sequence_transfer(setting),
        *([_slice_transfer(setting)] if setting.topology.slices > 1 else []),
    ]
    return [one for one in found if one.received]


def _parameter_transfers(setting: Setting) -> list[Transfer]:
    """All-gathers of each layer's parameters, forward and backward, and the sums of their gradients."""
    size, model, times = setting.along("fsdp"), setting.model, setting.accumulation
    numbers = times * (setting.parameters_of_layers + setting.table * (1 if model.tied_embeddings else 1.5))
    share = (size - 1) / size
    # A quantized matrix goes over the links as its codes and scales: fewer bytes a number than in bfloat16.
    kind = setting.adapter.quantize_base if setting.adapter else ""
    code_bytes = {"": 2, "nf4": 0.5}.get(kind, 1) + (4 / BLOCK if kind else 0)
    codes = times * setting.parameters_of_layers * (2 - code_bytes)
    gathered = 2 * (numbers * 2 - codes) * share
    if setting.adapter:  # only its small matrices have gradients
        numbers = times * setting.adapters_of_layers
    summed = setting.traits.sums * numbers * setting.gradient * share
    hops = 2 * times * model.layers * 2
    gathers_wait, sums_wait = waits_for_parameters(setting)
    # On a torus of three dimensions, a reduce-scatter takes two at once (`torus.steps`).
    topology = setting.topology
    planes = setting.traits.in_lines and size == topology.devices and min(topology.shape[2:] or (1,)) > 1
    found = [
        _timed_transfer(setting, "fsdp", "all-gathers of parameters", gathered, hops, gathers_wait),
        _timed_transfer(setting, "fsdp", "sums of gradients", summed, hops // 2, sums_wait, faster=2 if planes else 1),
    ]
    within = setting.sizes[0] // setting.topology.slices
    for axis, size in (("data", within), ("sequence", setting.along("sequence"))):
        rest = 2 * numbers / setting.along("fsdp") * setting.gradient * (size - 1) / size
        found.append(_timed_transfer(setting, axis, "sums of gradients", rest, hops, True))
    # `expert` splits the experts; its devices hold all other parameters alike.
    of_experts = (model.layers - model.dense_layers) * setting.mlp_parameters if model.experts else 0
    others = numbers - times * of_experts * (not setting.adapter)
    size = setting.along("expert")
    rest = 2 * others / setting.along("fsdp") * setting.gradient * (size - 1) / size
    return [*found, _timed_transfer(setting, "expert", "sums of gradients", rest, hops, True)]


def waits_for_parameters(setting: Setting) -> tuple[bool, bool]:
    """Whether the device waits for all-gathers and for reduce-scatters along `fsdp`, in compiled programs.

    A TPU without SparseCores for collectives waits for reduce-scatters. The others wait for both if the axis spans
    several dimensions of the torus and not the whole mesh: see `torus.steps` and docs/design/tpu-programs.md.
    """
    if setting.traits != OURS or not isinstance(setting.topology, Slices):
        return False, False
    if not setting.device.offloads_collectives:
        return False, True
    over = torus_route(setting.topology, setting.sizes, "fsdp", True).dimensions
    waits = over > 1 and setting.along("fsdp") < setting.topology.devices
    return waits, waits


def _tensor_transfer(setting: Setting) -> Transfer:
    """All-reduces along `tensor`: of the contributions to the residual stream, and of its gradient."""
    size, model, of_layer = setting.along("tensor"), setting.model, 2 + 2 + ("out" in setting.recompute)
    numbers = setting.accumulation * model.layers * of_layer * setting.tokens * model.width
    numbers += setting.accumulation * 2 * setting.tokens * model.width
    sent, times, waits = 2 * 2 * numbers * (size - 1) / size, 2 * model.layers * of_layer, setting.traits.tensor_waits
    return _timed_transfer(setting, "tensor", "all-reduces of activations", sent, times, waits)


def _expert_transfer(setting: Setting) -> Transfer:
    """Dispatch and combine; in the backward pass dispatch again, and both for the gradients.

    Without a ragged exchange, whole buffers are sent.
    """
    size, model, ours = setting.along("expert"), setting.model, setting.traits.halves
    padded = not setting.device.ragged_exchange
    rows = setting.tokens * model.experts_per_token * (setting.fullness if padded else 1.0)
    journeys = 5 if ours else 2 + 4 + 2 * ("up" in setting.recompute)
    layers = model.layers - model.dense_layers
    moved = setting.accumulation * layers * journeys * rows * model.width * 2 * (size - 1) / size
    # Each pair of devices exchanges data over half of the ring in the mean: a quarter of an all-gather's time.
    waits, collectives = padded or not ours, journeys * layers
    return _timed_transfer(setting, "expert", "dispatch and combine", moved, collectives, waits, faster=2)


def _sequence_transfer(setting: Setting) -> Transfer:
    """All-gathers of a row's keys and values for each layer, and the sums of their gradients."""
    size, model, again = setting.along("sequence"), setting.model, "scores" in setting.recompute
    row = setting.tokens * size * 2 * model.kv_heads * model.head_width / setting.along("tensor")
    moved = setting.accumulation * model.layers * (2 + again) * row * 2 * (size - 1) / size
    return _timed_transfer(setting, "sequence", "keys and values", moved, 3 * model.layers, waits=True)


def _slice_transfer(setting: Setting) -> Transfer:
    """All-reduces of gradients over the data center network, between the devices at one place of all slices."""
    slices = setting.topology.slices
    summed = setting.parameters_of_layers + setting.tables * setting.table
    summed = setting.adapters_of_layers if setting.adapter else summed
    numbers = setting.accumulation * summed / setting.along("fsdp")
    received = 2 * numbers * setting.traits.crossing * (slices - 1) / slices
    seconds = received / (setting.device.dcn_bandwidth * setting.device.dcn_efficiency)
    return Transfer("slices", "sums of gradients", received, seconds, waits=True)


def _timed_transfer(setting, axis, what, received, collectives, waits=False, faster=1) -> Transfer:
    """A transfer with its time.

    Args:
        faster: on a torus, how many times as fast as an all-gather; the network of GPUs has no short ways.
    """
    chip, topology, sizes, place = setting.device, setting.topology, setting.sizes, PLACES[axis]
    if isinstance(topology, GpuHosts):  # the last axis has the nearest devices
        together = max(1, min(sizes[place], topology.of_domain // prod(sizes[place + 1 :])))
        bandwidth, latency = network_speed(chip, together, sizes[place] > together)
    else:
        route = torus_route(topology, sizes, axis, setting.traits.in_lines)
        bandwidth = route.links * chip.link_bandwidth * chip.link_efficiency * faster
        latency = route.hops * chip.latency_seconds
    return Transfer(axis, what, received, received / bandwidth + collectives * latency, waits)
