"""What a whole run takes and costs: tokens, days, dollars, files, and what interruptions lose."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tpullm.errors import UserError
from tpullm.hardware.chips import CHIPS
from tpullm.planning.estimate import Estimate
from tpullm.planning.setting import Setting
from tpullm.recipe.schema import TrainConfig

# Guesses, each of a usual order; nothing here could measure them.
HOST_WRITES = 0.5e9  # bytes a second that one host writes to, or reads from, storage
RESTART_SECONDS = 600.0  # until the chips are there again, and the program is compiled or found


@dataclass(frozen=True)
class Run:
    """A run of all steps.

    Args:
        tokens: read, padding included.
        days: from the first step to the last, interruptions included.
        dollars: at each kind of price; empty where there is none (this machine).
        token_store_bytes: if every token is read once.
        checkpoint_bytes: of one save.
        save_seconds: until a save is on the storage; training goes on meanwhile.
        interruptions: expected, at `hours_between`.
        hours_between: interruptions, in the mean.
        goodput: share of the time that is spent on steps which count.
    """

    tokens: int
    steps: int
    step_seconds: float
    days: float
    dollars: dict[str, float]
    token_store_bytes: int
    checkpoint_bytes: int
    save_seconds: float
    interruptions: float
    hours_between: float
    goodput: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def whole_run(
    config: TrainConfig,
    setting: Setting,
    found: Estimate,
    checkpoint_bytes: int,
    prices: Mapping[str, float],
    hours_between: float,
) -> Run:
    """All steps of a training.

    Args:
        prices: dollars a chip-hour, by kind of price.
        hours_between: interruptions of the slice, in the mean; 0 is none.
    """
    hosts = max(1, setting.topology.chips // setting.device.chips_per_host)
    save = checkpoint_bytes / (hosts * HOST_WRITES)
    steps_seconds = config.steps * found.step_seconds
    goodput = _goodput(config, found.step_seconds, save, hours_between)
    seconds, tokens = steps_seconds / goodput, config.steps * setting.global_tokens
    chip_hours = seconds / 3600 * setting.topology.chips
    return Run(
        tokens,
        config.steps,
        found.step_seconds,
        seconds / 86400,
        {kind: round(price * chip_hours, 2) for kind, price in prices.items()},
        tokens * (2 if setting.model.vocabulary_size <= 1 << 16 else 4),
        checkpoint_bytes,
        save,
        seconds / 3600 / hours_between if hours_between else 0.0,
        hours_between,
        goodput,
    )


def _goodput(config: TrainConfig, step_seconds: float, save_seconds: float, hours_between: float) -> float:
    """Each interruption loses a restart, a restore, and the steps since the last save: half the time between saves."""
    if not hours_between:
        return 1.0
    kept = config.checkpoint
    every = [kept.every_minutes * 60] * bool(kept.every_minutes) + [kept.every_steps * step_seconds] * bool(
        kept.every_steps
    )
    between_saves = max(min(every, default=config.steps * step_seconds), save_seconds)
    lost = RESTART_SECONDS + save_seconds + between_saves / 2
    return 1 / (1 + lost / (hours_between * 3600))


def prices_of(generation: str, given: list[str]) -> dict[str, float]:
    """Dollars a chip-hour of one generation; `given` (`v5e=0.9`) takes the place of what is in the file.

    Raises:
        UserError: a price that is none.
    """
    own = dict(_given(text) for text in given)
    if generation in own:
        return {"given": own[generation]}
    return dict(CHIPS[generation].dollars_per_hour) if generation in CHIPS else {}


def _given(text: str) -> tuple[str, float]:
    generation, _, price = text.partition("=")
    known = [name for name, chip in CHIPS.items() if chip.dollars_per_hour]
    try:
        value = float(price)
    except ValueError:
        value = -1.0
    if generation not in known or not 0 <= value < math.inf:
        raise UserError(
            f"--price: {text} is not GENERATION=DOLLARS a chip-hour, such as v5e=0.9; there are {', '.join(known)}"
        )
    return generation, value
