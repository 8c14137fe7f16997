"""The predicted time of a step, and the time and cost of a run: days, dollars, files, and what interruptions lose.

A step takes the time of its parts, at the speeds that a chip reaches, and of the traffic that computation does not
hide.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from tpullm.hardware.chips import CHIPS
from tpullm.planning.routes import Transfer, traffic
from tpullm.planning.setting import Setting
from tpullm.planning.step_work import step_parts, useful_flops
from tpullm.recipe.schema import TrainConfig
from tpullm.run.hours import share_kept
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Estimate:
    """The predicted time of a step.

    Args:
        step_seconds: of the whole step.
        computing: seconds by part of the step.
        exposed: seconds in which the device waits for the links, by mesh axis (`host`: for the host's memory).
        transfers: all traffic, hidden or not.
        tokens_per_second: of one chip.
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


def estimate_step(setting: Setting) -> Estimate:
    """The predicted time of a step in this setting.

    The devices wait for all of a blocking transfer, and for `overlap_loss` of an overlapped one and for what exceeds
    the computation.
    """
    chip, computing = setting.device, {}
    for name, part in step_parts(setting).items():  # its matmuls or its memory traffic, whichever takes longer
        grouped = part.grouped_flops / (chip.matmul_efficiency * chip.grouped_efficiency)
        matmuls = (part.flops / chip.matmul_efficiency + grouped) / chip.peak_flops
        moved = part.moved_bytes / (chip.hbm_bandwidth * chip.hbm_efficiency)
        computing[name] = max(matmuls + part.kernel_seconds / chip.attention_efficiency, moved)
    useful, compute, exposed = useful_flops(setting), sum(computing.values()), {}
    transfers = tuple(traffic(setting))
    beside = sum(one.seconds for one in transfers if not one.waits)
    longer = max(0.0, beside - compute) / beside if beside else 0.0
    for one in transfers:
        share = 1.0 if one.waits else chip.overlap_loss + (1 - chip.overlap_loss) * longer
        exposed[one.axis] = exposed.get(one.axis, 0.0) + share * one.seconds
    numbers = setting.offloaded * setting.accumulation * setting.model.layers * setting.tokens
    host = 2 * 2 * (numbers / setting.along("tensor")) / chip.host_bandwidth
    if host > compute:
        exposed["host"] = host - compute
    step = compute + sum(exposed.values())
    speed, mfu = setting.global_tokens / step / setting.topology.chips, useful / step / chip.peak_flops
    return Estimate(step, computing, exposed, transfers, speed, mfu)


# Guesses of the usual order of magnitude; they could not be measured here.
HOST_WRITES = 0.5e9  # bytes a second that one host writes to, or reads from, storage
RESTART_SECONDS = 600.0  # until the chips are available again and the program is compiled or read from the cache
LEAST_GOODPUT = 1e-4
RESTART_SECONDS_HERE = 10.0  # on this machine, which is there: Python, JAX, and the program from the cache


@dataclass(frozen=True)
class Run:
    """A run of all steps.

    Args:
        tokens: read, padding included.
        days: from the first step to the last, interruptions included.
        dollars: cost at each kind of price; empty if there is no price (this machine).
        token_store_bytes: size of the token store, if every token is read once.
        checkpoint_bytes: size of one checkpoint.
        save_seconds: until a checkpoint is written; training continues meanwhile.
        between_saves_seconds: from one checkpoint to the next.
        restart_seconds: from an interruption until a step is computed.
        interruptions: expected number, by `hours_between`.
        hours_between: mean time between interruptions; 0 if there are none.
        goodput: share of the time that goes into steps whose result is kept.
    """

    tokens: int
    steps: int
    step_seconds: float
    days: float
    dollars: dict[str, float]
    token_store_bytes: int
    checkpoint_bytes: int
    save_seconds: float
    between_saves_seconds: float
    restart_seconds: float
    interruptions: float
    hours_between: float
    goodput: float


def whole_run(
    config: TrainConfig,
    setting: Setting,
    found: Estimate,
    checkpoint_bytes: int,
    prices: Mapping[str, float] | None = None,
    hours_between: float = 0.0,
    restart_seconds: float = 0.0,
) -> Run:
    """All steps of a training.

    Args:
        prices: dollars a chip-hour, by kind of price.
        hours_between: mean time between interruptions of the slice; 0 if there are none.
        restart_seconds: from an interruption until a step is computed; 0 is the usual.
    """
    here = setting.topology.generation == "local"
    restart = restart_seconds or (RESTART_SECONDS_HERE if here else RESTART_SECONDS)
    hosts = max(1, setting.topology.chips // setting.device.chips_per_host)
    save = checkpoint_bytes / (hosts * HOST_WRITES)
    steps_seconds, saves = config.steps * found.step_seconds, config.checkpoint
    every = [saves.every_minutes * 60, saves.every_steps * found.step_seconds]
    if saves.local:  # a process that is killed resumes from there; a machine that is replaced, where others have copies
        every += [saves.local_every_minutes * 60, saves.local_every_steps * found.step_seconds]
    between_saves = max(min([steps_seconds, *filter(None, every)]), found.step_seconds, save)
    # What was saved last is read again: as many bytes as a save writes.
    goodput = share_kept(restart + save, save, between_saves, hours_between * 3600)
    if goodput < LEAST_GOODPUT:
        raise UserError(f"--interruptions: {hours_between:g} hours are too few to keep work; save more often")
    seconds, tokens = steps_seconds / goodput, config.steps * setting.global_tokens
    chip_hours = seconds / 3600 * setting.topology.chips
    return Run(
        tokens,
        config.steps,
        found.step_seconds,
        seconds / 86400,
        {kind: round(price * chip_hours, 2) for kind, price in (prices or {}).items()},
        tokens * (2 if setting.model.vocabulary_size <= 1 << 16 else 4),
        checkpoint_bytes,
        save,
        between_saves,
        restart,
        seconds / 3600 / hours_between if hours_between else 0.0,
        hours_between,
        goodput,
    )


def prices_of(generation: str, given: list[str]) -> dict[str, float]:
    """Dollars a chip-hour of one generation, by kind of price; a `given` price (`v5e=0.9`) replaces the list prices.

    Raises:
        UserError: a given price is not valid.
    """
    known, prices = [name for name, chip in CHIPS.items() if chip.dollars_per_hour or chip.gpu], {}
    for text in given:
        name, _, price = text.partition("=")
        prices[name] = -1.0
        with contextlib.suppress(ValueError):
            prices[name] = float(price)
        if name not in known or not 0 <= prices[name] < math.inf:
            form = f"GENERATION=DOLLARS a chip-hour, such as v5e=0.9; there are {', '.join(known)}"
            raise UserError(f"--price: {text} is not {form}")
    if generation in prices:
        return {"given": prices[generation]}
    return dict(CHIPS[generation].dollars_per_hour) if generation in CHIPS else {}
