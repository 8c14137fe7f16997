"""What goes over the links in a step, by mesh axis, and how long it takes on that torus.

A ring of links carries both ways, so that a chip receives two links' worth; a line that is not closed, one. Over
several dimensions of a torus at once, bandwidths add up.
"""

from functools import lru_cache
from itertools import combinations
from math import prod
from typing import NamedTuple

from tpullm.hardware.slices import Topology
from tpullm.mesh.axes import AXES
from tpullm.planning.setting import OURS, Setting, fullness, padded_exchange


class Transfer(NamedTuple):
    """One kind of traffic of a step on one device.

    `axis` of the mesh; `what` is told to people; `received` bytes; `seconds` if nothing else went on; `waits` if
    nothing else does.
    """

    axis: str
    what: str
    received: float
    seconds: float
    waits: bool = False


def traffic(setting: Setting) -> list[Transfer]:
    """Everything that a step sends."""
    found = [*_parameters(setting), *_tensor(setting), *_experts(setting), *_sequence(setting), *_slices(setting)]
    return [one for one in found if one.received]


def _parameters(setting: Setting) -> list[Transfer]:
    """Gathers of each layer's parameters, forward and backward, and sums of their gradients, along `fsdp`."""
    size = setting.along("fsdp")
    if size == 1 and setting.along("data", "expert", "sequence") == 1:
        return []
    model, times = setting.model, setting.accumulation
    tables = model.vocabulary_size * model.width / setting.along("tensor")
    numbers = times * (model.layers * setting.layer_parameters + tables * (1 if model.tied_embeddings else 1.5))
    share = (size - 1) / size
    gathered = 2 * numbers * 2 * share
    summed = setting.habits.sums * numbers * setting.gradient * share
    hops = 2 * times * model.layers * 2
    gathers_wait, sums_wait = stops(setting)
    # Over three dimensions, sums go over two at once (`torus.steps`).
    planes = setting.habits.in_lines and size == setting.topology.chips and min(setting.topology.shape[2:] or (1,)) > 1
    found = [
        _transfer(setting, "fsdp", "gathers of parameters", gathered, hops, gathers_wait),
        _transfer(setting, "fsdp", "sums of gradients", summed, hops // 2, sums_wait, faster=2 if planes else 1),
    ]
    within = setting.sizes[0] // setting.topology.slices
    for axis, size in (("data", within), ("sequence", setting.along("sequence"))):
        rest = 2 * numbers / setting.along("fsdp") * setting.gradient * (size - 1) / max(size, 1)
        found.append(_transfer(setting, axis, "sums of gradients", rest, hops, True))
    # Experts are spread over `expert`; all else is the same on its devices.
    others = numbers - times * model.layers * setting.mlp_parameters * bool(model.experts)
    size = setting.along("expert")
    rest = 2 * others / setting.along("fsdp") * setting.gradient * (size - 1) / size
    return [*found, _transfer(setting, "expert", "sums of gradients", rest, hops, True)]


def stops(setting: Setting) -> tuple[bool, bool]:
    """Whether gathers and sums along `fsdp` stop everything else: what compiled programs show (benchmarks/LOG.md).

    A v5e's sums do; on a v6e and a v5p both do where the axis is over several lines of the torus and not the whole
    mesh: see `torus.steps`.
    """
    if setting.habits != OURS or setting.topology.generation == "local":
        return False, False
    if setting.topology.generation == "v5e":
        return False, True
    over = _way(setting.topology, setting.sizes, "fsdp", True).dimensions
    waits = over > 1 and setting.along("fsdp") < setting.topology.chips
    return waits, waits


def _tensor(setting: Setting) -> list[Transfer]:
    """Sums of what the devices along `tensor` add to the residual stream, and of its gradient: all-reduces."""
    size, model = setting.along("tensor"), setting.model
    again = "out" in setting.recompute
    of_layer = 2 + 2 + again
    numbers = setting.accumulation * model.layers * of_layer * setting.tokens * model.width
    numbers += setting.accumulation * 2 * setting.tokens * model.width
    sent = 2 * 2 * numbers * (size - 1) / size
    return [
        _transfer(
            setting, "tensor", "sums of activations", sent, 2 * model.layers * of_layer, setting.habits.tensor_waits
        )
    ]


def _experts(setting: Setting) -> list[Transfer]:
    """Tokens to their experts and back; in the backward pass tokens again, gradients there, and those of tokens back.

    Where every device must send as much to each, what fills the buffers travels too.
    """
    size, model, ours = setting.along("expert"), setting.model, setting.habits.halves
    if not model.experts:
        return []
    padded = padded_exchange(setting.topology)
    rows = setting.tokens * model.experts_per_token
    rows *= fullness(model, setting.tokens, size, setting.topology) if padded else 1.0
    journeys = 5 if ours else 2 + 4 + 2 * ("up" in setting.recompute)
    moved = setting.accumulation * model.layers * journeys * rows * model.width * 2 * (size - 1) / size
    # Each pair of devices has its own way, half of the ring in the mean: a quarter of a gather's time.
    waits = padded or not ours
    return [_transfer(setting, "expert", "tokens to experts", moved, journeys * model.layers, waits, faster=2)]


def _sequence(setting: Setting) -> list[Transfer]:
    """Keys and values of the whole row, gathered for each layer, and the sums of their gradients."""
    size, model = setting.along("sequence"), setting.model
    again = "scores" in setting.recompute
    row = setting.tokens * size * 2 * model.kv_heads * model.head_width / setting.along("tensor")
    moved = setting.accumulation * model.layers * (2 + again) * row * 2 * (size - 1) / size
    return [_transfer(setting, "sequence", "keys and values", moved, 3 * model.layers, waits=True)]


def _slices(setting: Setting) -> list[Transfer]:
    """Sums of gradients between slices, over the data center's network, each device with its counterparts."""
    slices, model = setting.topology.slices, setting.model
    if slices == 1:
        return []
    layers = model.layers * setting.layer_parameters
    tables = (1 if model.tied_embeddings else 2) * model.vocabulary_size * model.width / setting.along("tensor")
    numbers = setting.accumulation * (layers + tables) / setting.along("fsdp")
    received = 2 * numbers * setting.habits.crossing * (slices - 1) / slices
    seconds = received / (setting.device.dcn_bandwidth * setting.device.crossing)
    return [Transfer("slices", "sums of gradients", received, seconds, waits=True)]


def _transfer(setting, axis, what, received, collectives, waits=False, faster=1) -> Transfer:
    way, chip = _way(setting.topology, setting.sizes, axis, setting.habits.in_lines), setting.device
    if setting.along(axis) == 1 or not received:
        return Transfer(axis, what, 0.0, 0.0, waits)
    seconds = received / (way.links * chip.link_bandwidth * chip.links * faster)
    return Transfer(axis, what, received, seconds + collectives * way.hops * chip.latency_seconds, waits)


class Way(NamedTuple):
    """Of a collective along an axis: the links that bring a chip data at once, the chips that it goes through, and the
    dimensions of the torus that it is over."""

    links: float
    hops: int
    dimensions: int


@lru_cache(maxsize=100_000)
def _way(topology: Topology, sizes: tuple[int, ...], axis: str, in_lines: bool) -> Way:
    """The way of collectives along `axis`.

    Axes are given dimensions of the torus from the last to the first, as `jax.make_mesh` does: whole ones where their
    product is the axis' size, as many as possible, else a part of one.
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
    return Way(1.0, 1, 1)


def _over(topology: Topology, taken: dict[int, int], in_lines: bool) -> Way:
    wrap = topology.options().get("wrap", (False,) * 3)
    links = [2 if wrap[n] and part == topology.shape[n] else 1 for n, part in taken.items()]
    return Way(max(links) if in_lines else sum(links), sum(taken.values()), len(taken))


def _taken(free: dict[int, int], size: int) -> dict[int, int] | None:
    """Whole dimensions whose product is `size`: as many as can be."""
    for count in range(len(free), 0, -1):
        for chosen in combinations(free, count):
            if prod(free[n] for n in chosen) == size:
                return {n: free[n] for n in chosen}
    return None


def _part(free: dict[int, int], size: int) -> dict[int, int]:
    """Parts of dimensions whose product is `size`: the largest dimension first."""
    taken = {}
    for n in sorted(free, key=lambda n: -free[n]):
        part = next(part for part in range(min(free[n], size), 0, -1) if free[n] % part == 0 and size % part == 0)
        if part > 1:
            taken[n], size = part, size // part
    return taken
