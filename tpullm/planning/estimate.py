"""The time of a step: its parts at the speeds that a chip reaches, and the traffic that computation does not hide."""

from dataclasses import dataclass

from tpullm.hardware.chip import Chip
from tpullm.planning.setting import Setting
from tpullm.planning.step_work import Part, useful_flops, work
from tpullm.planning.traffic import Transfer, traffic


@dataclass(frozen=True)
class Estimate:
    """The predicted time of a step.

    Args:
        step_seconds: of the whole step.
        computing: seconds by part of the step.
        exposed: seconds in which the device waits for the links, by mesh axis (`host`: for the host's memory).
        transfers: all traffic, hidden or not.
        tokens_per_second: of one device.
        mfu: model FLOPs utilization: a share of the peak, without recomputation, with causal attention.
    """

    step_seconds: float
    computing: dict[str, float]
    exposed: dict[str, float]
    transfers: tuple[Transfer, ...]
    tokens_per_second: float
    mfu: float

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the whole step by part, `waiting for` each mesh axis included."""
        return self.computing | {f"waiting for {axis}": seconds for axis, seconds in self.exposed.items()}


def estimate(setting: Setting) -> Estimate:
    """The predicted time of a step in this setting."""
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
    """The time of the matmuls or of the memory traffic, whichever is longer."""
    at_peak = part.flops / chip.matmul_efficiency + part.grouped_flops / (
        chip.matmul_efficiency * chip.grouped_efficiency
    )
    computing = at_peak / chip.peak_flops + part.kernel_seconds / chip.attention_efficiency
    return max(computing, part.moved_bytes / (chip.hbm_bandwidth * chip.hbm_efficiency))


def _exposed(setting: Setting, transfers: tuple[Transfer, ...], compute: float) -> dict[str, float]:
    """Seconds by axis: of blocking transfers all; of overlapped ones `overlap_loss`, and what exceeds `compute`."""
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
