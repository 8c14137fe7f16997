"""The data that goes over the links in a step, by mesh axis, and its time."""

from typing import NamedTuple

from tpullm.hardware.slices import Slices
from tpullm.planning.routes import speed, torus_route
from tpullm.planning.setting import OURS, Setting


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
    found = [*_parameters(setting), *_tensor(setting), *_experts(setting), *_sequence(setting), *_slices(setting)]
    return [one for one in found if one.received]


def _parameters(setting: Setting) -> list[Transfer]:
    """All-gathers of each layer's parameters, forward and backward, and the sums of their gradients."""
    size, model, times = setting.along("fsdp"), setting.model, setting.accumulation
    numbers = times * (model.layers * setting.layer_parameters + setting.table * (1 if model.tied_embeddings else 1.5))
    share = (size - 1) / size
    codes = times * model.layers * setting.layer_parameters * (2 - setting.code_bytes)  # fewer bytes than in bfloat16
    gathered = 2 * (numbers * 2 - codes) * share
    if setting.adapter:  # only its small matrices have gradients
        numbers = times * model.layers * setting.adapter_parameters
    summed = setting.habits.sums * numbers * setting.gradient * share
    hops = 2 * times * model.layers * 2
    gathers_wait, sums_wait = stops(setting)
    # On a torus of three dimensions, a reduce-scatter takes two at once (`torus.steps`).
    planes = setting.habits.in_lines and size == setting.topology.chips and min(setting.topology.shape[2:] or (1,)) > 1
    found = [
        _transfer(setting, "fsdp", "all-gathers of parameters", gathered, hops, gathers_wait),
        _transfer(setting, "fsdp", "sums of gradients", summed, hops // 2, sums_wait, faster=2 if planes else 1),
    ]
    within = setting.sizes[0] // setting.topology.slices
    for axis, size in (("data", within), ("sequence", setting.along("sequence"))):
        rest = 2 * numbers / setting.along("fsdp") * setting.gradient * (size - 1) / size
        found.append(_transfer(setting, axis, "sums of gradients", rest, hops, True))
    # `expert` splits the experts; its devices hold all other parameters alike.
    others = numbers - times * model.layers * setting.mlp_parameters * bool(model.experts and not setting.adapter)
    size = setting.along("expert")
    rest = 2 * others / setting.along("fsdp") * setting.gradient * (size - 1) / size
    return [*found, _transfer(setting, "expert", "sums of gradients", rest, hops, True)]


def stops(setting: Setting) -> tuple[bool, bool]:
    """Whether the device waits for all-gathers and for reduce-scatters along `fsdp`, in compiled programs.

    A TPU without SparseCores for collectives waits for reduce-scatters. The others wait for both if the axis spans
    several dimensions of the torus and not the whole mesh: see `torus.steps` and benchmarks/LOG.md.
    """
    if setting.habits != OURS or not isinstance(setting.topology, Slices):
        return False, False
    if not setting.device.offloads_collectives:
        return False, True
    over = torus_route(setting.topology, setting.sizes, "fsdp", True).dimensions
    waits = over > 1 and setting.along("fsdp") < setting.topology.chips
    return waits, waits


def _tensor(setting: Setting) -> list[Transfer]:
    """All-reduces along `tensor`: of the contributions to the residual stream, and of its gradient."""
    size, model = setting.along("tensor"), setting.model
    again = "out" in setting.recompute
    of_layer = 2 + 2 + again
    numbers = setting.accumulation * model.layers * of_layer * setting.tokens * model.width
    numbers += setting.accumulation * 2 * setting.tokens * model.width
    sent = 2 * 2 * numbers * (size - 1) / size
    return [
        _transfer(
            setting,
            "tensor",
            "all-reduces of activations",
            sent,
            2 * model.layers * of_layer,
            setting.habits.tensor_waits,
        )
    ]


def _experts(setting: Setting) -> list[Transfer]:
    """Dispatch and combine; in the backward pass dispatch again, and both for the gradients.

    Without a ragged exchange, whole buffers are sent.
    """
    size, model, ours = setting.along("expert"), setting.model, setting.habits.halves
    if not model.experts:
        return []
    padded = not setting.device.ragged_exchange
    rows = setting.tokens * model.experts_per_token
    rows *= setting.fullness if padded else 1.0
    journeys = 5 if ours else 2 + 4 + 2 * ("up" in setting.recompute)
    moved = setting.accumulation * model.layers * journeys * rows * model.width * 2 * (size - 1) / size
    # Each pair of devices exchanges data over half of the ring in the mean: a quarter of an all-gather's time.
    waits = padded or not ours
    return [_transfer(setting, "expert", "dispatch and combine", moved, journeys * model.layers, waits, faster=2)]


def _sequence(setting: Setting) -> list[Transfer]:
    """All-gathers of a row's keys and values for each layer, and the sums of their gradients."""
    size, model = setting.along("sequence"), setting.model
    again = "scores" in setting.recompute
    row = setting.tokens * size * 2 * model.kv_heads * model.head_width / setting.along("tensor")
    moved = setting.accumulation * model.layers * (2 + again) * row * 2 * (size - 1) / size
    return [_transfer(setting, "sequence", "keys and values", moved, 3 * model.layers, waits=True)]


def _slices(setting: Setting) -> list[Transfer]:
    """All-reduces of gradients over the data center network, between the devices at one place of all slices."""
    slices, model = setting.topology.slices, setting.model
    if slices == 1:
        return []
    layers = model.layers * setting.layer_parameters
    numbers = setting.accumulation * (layers + setting.tables * setting.table) / setting.along("fsdp")
    if setting.adapter:
        numbers = setting.accumulation * model.layers * setting.adapter_parameters / setting.along("fsdp")
    received = 2 * numbers * setting.habits.crossing * (slices - 1) / slices
    seconds = received / (setting.device.dcn_bandwidth * setting.device.dcn_efficiency)
    return [Transfer("slices", "sums of gradients", received, seconds, waits=True)]


def _transfer(setting, axis, what, received, collectives, waits=False, faster=1) -> Transfer:
    bandwidth, latency = speed(setting, axis, faster)
    return Transfer(axis, what, received, received / bandwidth + collectives * latency, waits)
