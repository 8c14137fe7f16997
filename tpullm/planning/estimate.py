"""How long a step takes: its parts at what a chip reaches, and the part of its traffic that nothing hides."""

from dataclasses import dataclass

from tpullm.hardware.chip import Chip
from tpullm.planning.setting import Setting
from tpullm.planning.traffic import Transfer, traffic
from tpullm.planning.work import Part, useful_flops, work


@dataclass(frozen=True)
class Estimate:
    """What a step is predicted to take, in seconds.

    Args:
        step_seconds: the whole.
        computing: by part of the step.
        exposed: what waits for the links, by mesh axis (`host`: for the host's memory).
        transfers: all traffic, hidden or not.
        tokens_per_second: of one device.
        mfu: of the peak, nothing counted twice, causal attention.
    """

    step_seconds: float
    computing: dict[str, float]
    exposed: dict[str, float]
    transfers: tuple[Transfer, ...]
    tokens_per_second: float
    mfu: float

    @property
    def parts(self) -> dict[str, float]:
        """All of the step by name: what computes, and `waiting for` each mesh axis."""
        return self.computing | {f"waiting for {axis}": seconds for axis, seconds in self.exposed.items()}


def estimate(setting: Setting) -> Estimate:
    """The prediction for one setting."""
    chip = setting.device
    computing = {name: _seconds(part, chip) for name, part in work(setting).items()}
    compute, transfers = sum(computing.values()), tuple(traffic(setting))
    exposed = _exposed(setting, transfers, compute)
    step, chips = compute + sum(exposed.values()), setting.topology.chips
    return Estimate(
        step,
        computing,
        exposed,
        transfers,
        setting.global_tokens / step / chips,
        useful_flops(setting) / step / chip.peak_flops,
    )


def _seconds(part: Part, chip: Chip) -> float:
    """Bound by the products or by the memory, whichever takes longer."""
    at_peak = part.products / chip.matmul_efficiency + part.grouped / (chip.matmul_efficiency * chip.grouped_efficiency)
    computing = at_peak / chip.peak_flops + part.kernel / chip.attention_efficiency
    return max(computing, part.moved / (chip.hbm_bandwidth * chip.hbm_efficiency))


def _exposed(setting: Setting, transfers: tuple[Transfer, ...], compute: float) -> dict[str, float]:
    """By axis: what waits in full; of what goes on beside the products, a share, and what is longer than they are."""
    chip, exposed = setting.device, {}
    beside = sum(one.seconds for one in transfers if not one.waits)
    longer = max(0.0, beside - compute) / beside if beside else 0.0
    for one in transfers:
        share = 1.0 if one.waits else chip.overlap_loss + (1 - chip.overlap_loss) * longer
        exposed[one.axis] = exposed.get(one.axis, 0.0) + share * one.seconds
    offloaded = (
        setting.offloaded * setting.accumulation * setting.model.layers * setting.tokens / setting.along("tensor")
    )
    host = 2 * 2 * offloaded / chip.host_bandwidth
    if host > compute:
        exposed["host"] = host - compute
    return exposed
