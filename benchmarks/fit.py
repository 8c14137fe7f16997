"""Fit the constants of `tpullm/hardware` to the published runs marked `fit`, and show the errors on all.

    python benchmarks/fit.py            # the errors with the constants as they are
    python benchmarks/fit.py --fit      # the constants that fit best

Each deviation of a constant from its prior (in logarithms, over a spread) counts like an error of 2 % on one run. So a
constant that no run depends on keeps its prior.
"""

import argparse
import dataclasses
import itertools
import math
import statistics

import numpy as np
from published import Run, runs
from scipy.optimize import least_squares

from tpullm.hardware.chips import CHIPS, Chip
from tpullm.planning.economics import estimate_step

GPUS = tuple(name for name, chip in CHIPS.items() if chip.gpu)
# Fitted constants, and the generations that share a value: prior, spread, physical maximum.
PRIORS = {
    ("matmul_efficiency", ("v5e",)): (0.85, 0.3, 0.95),
    ("matmul_efficiency", ("v6e",)): (0.70, 0.3, 0.95),
    ("matmul_efficiency", ("v5p",)): (0.85, 0.3, 0.95),
    ("attention_efficiency", ("v5e", "v5p")): (0.80, 0.3, 1.0),
    ("attention_efficiency", ("v6e",)): (0.80, 0.3, 1.0),
    ("matmul_efficiency", ("tpu7x",)): (0.70, 0.3, 0.95),
    ("attention_efficiency", ("tpu7x",)): (0.80, 0.3, 1.0),
    ("grouped_efficiency", ("v5e", "v6e", "v5p", "tpu7x")): (0.80, 0.3, 1.0),
    ("hbm_efficiency", ("v5e", "v6e", "v5p", "tpu7x")): (0.80, 0.2, 1.0),
    ("link_efficiency", ("v5e", "v6e", "v5p", "tpu7x")): (0.70, 0.2, 1.0),
    ("overlap_loss", ("v5e", "v6e", "v5p", "tpu7x")): (0.20, 0.5, 1.0),
    ("dcn_efficiency", ("v5e",)): (0.50, 0.5, 1.0),
    ("matmul_efficiency", ("a100",)): (0.70, 0.3, 0.95),
    ("matmul_efficiency", ("h100", "h200", "b200", "gb200", "l4")): (0.60, 0.3, 0.95),
    ("attention_efficiency", GPUS): (0.50, 0.2, 1.0),
    ("hbm_efficiency", GPUS): (0.80, 0.1, 1.0),
    ("link_efficiency", GPUS): (0.70, 0.2, 1.0),
    ("dcn_efficiency", GPUS): (0.70, 0.3, 1.0),
}
WEIGHT = 0.02


def main() -> None:
    """Print the table of errors, and the constants if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    chips = fitted() if parser.parse_args().fit else CHIPS
    found = errors(chips)
    for run, error in found:
        print(f"{run.use:5} {run.name:48} {run.tokens_per_second:9,.1f} {error:+7.1%}")
    for table, use in itertools.product(("TPUs", "tpu7x", "GPUs"), ("fit", "held")):
        sizes = [abs(error) for run, error in found if (run.table, run.use) == (table, use)]
        what = f"{table}, {use}: {len(sizes)} runs"
        print(f"{what}, {statistics.mean(sizes):.1%} in the mean, {max(sizes):.1%} at most")
    for name, generations in PRIORS:
        print(f"{name:20} {'/'.join(generations):12} {getattr(chips[generations[0]], name):.3f}")


def errors(chips: dict[str, Chip]) -> list[tuple[Run, float]]:
    """Each run, and the relative error of its predicted speed."""
    return [(run, estimate_step(run.on(chips)).tokens_per_second / run.tokens_per_second - 1) for run in runs()]


def fitted() -> dict[str, Chip]:
    """The constants that fit the runs marked so."""
    most = [math.log(highest / prior) / spread for prior, spread, highest in PRIORS.values()]
    found = least_squares(_residuals, np.zeros(len(PRIORS)), bounds=(-9, np.array(most) + 1e-9))
    return _chips(found.x)


def _residuals(deviations: np.ndarray) -> np.ndarray:
    of_fit = [error for run, error in errors(_chips(deviations)) if run.use == "fit"]
    return np.array([*of_fit, *(WEIGHT * deviations)])


def _chips(deviations: np.ndarray) -> dict[str, Chip]:
    chips = dict(CHIPS)
    for ((name, generations), (prior, spread, _)), deviation in zip(PRIORS.items(), deviations, strict=True):
        for generation in generations:
            chips[generation] = dataclasses.replace(chips[generation], **{name: prior * math.exp(spread * deviation)})
    return chips


if __name__ == "__main__":
    main()
