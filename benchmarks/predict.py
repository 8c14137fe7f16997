"""Predicted and measured steps on this CPU, for models that constants were fitted to and for others.

    python benchmarks/predict.py [--steps 12] [--fit] [--output FILE]

Run it on an otherwise idle machine. What a CPU reaches of its measured peak and bandwidth was fitted to the models
marked `fit` (`CPU_REACHES` in planning/this_machine.py), and what matmuls with experts reach to the mixture. The other
models are held out.
"""

from tpullm.system.process import environment

environment.prepare()  # before JAX is imported, as the command line does

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import ours  # noqa: E402
from scipy.optimize import least_squares  # noqa: E402

from tpullm.model.mesh import make_mesh  # noqa: E402
from tpullm.planning.economics import estimate_step  # noqa: E402
from tpullm.planning.setting import Job, Setting  # noqa: E402
from tpullm.planning.this_machine import local_setting, machine  # noqa: E402
from tpullm.recipe.schema import ModelConfig, TrainConfig  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its batch, and whether constants were fitted to it."""

    name: str
    use: str
    model: ModelConfig
    rows: int
    length: int


def _model(layers: int, width: int, heads: int, vocabulary: int, length: int, **options) -> ModelConfig:
    model = ModelConfig(layers=layers, width=width, heads=heads, context_length=length, **options)
    return model.resolved(vocabulary)


FITTED = ("matmul_efficiency", "attention_efficiency", "hbm_efficiency")
CASES = [
    Case("quickstart", "fit", _model(4, 128, 4, 2048, 256), 32, 256),
    Case("12M", "fit", _model(6, 384, 6, 4096, 256), 16, 256),
    Case("50M", "fit", _model(8, 640, 10, 16384, 512), 4, 512),
    Case("small", "held", _model(3, 256, 4, 4096, 256), 16, 256),
    Case("deep", "held", _model(10, 256, 8, 2048, 128), 16, 128),
    Case("wide", "held", _model(3, 768, 12, 8192, 256), 8, 256),
    Case("long", "held", _model(4, 384, 6, 4096, 1024), 4, 1024),
    Case("words", "held", _model(4, 512, 8, 32768, 256), 8, 256),
    Case("grouped queries", "held", _model(6, 512, 8, 8192, 512, kv_heads=2, qk_norm="none"), 4, 512),
    Case("mixture", "experts", _model(4, 256, 4, 4096, 256, experts=4, mlp_width=384), 8, 256),
    Case("recomputed", "held", _model(6, 384, 6, 4096, 256, remat="full"), 16, 256),
]


def main() -> None:
    """Measure every case, and print it with its prediction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--fit", action="store_true", help="fit the constants to the cases marked `fit`")
    parser.add_argument("--only", default="", help="names of cases, with commas between them")
    parser.add_argument("--output", default="", help="a JSON file for the results")
    options = parser.parse_args()
    cases = [case for case in CASES if case.name in options.only.split(",") or not options.only]
    configs = [TrainConfig(batch_size=case.rows, sequence_length=case.length, steps=100) for case in cases]
    pairs = list(zip(cases, configs, strict=True))
    settings = [local_setting(Job(case.model, config, {"fsdp": 1}, machine())) for case, config in pairs]
    measured = [_measured(case, config, options.steps) for case, config in pairs]
    if options.fit:
        settings = _fitted(cases, settings, measured)
    results = [_result(*of) for of in zip(cases, settings, measured, strict=True)]
    chip = settings[0].device
    print(f"peak {chip.peak_flops / 1e9:,.0f} GFLOP/s, {chip.hbm_bandwidth / 1e9:,.1f} GB/s; ", end="")
    print(", ".join(f"{name} {getattr(chip, name):.2f}" for name in FITTED))
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


def _result(case: Case, setting: Setting, measured: float) -> dict:
    found = estimate_step(setting)
    error = found.step_seconds / measured - 1
    shares = ", ".join(f"{name} {value / found.step_seconds:.0%}" for name, value in found.computing.items() if value)
    told = f"{found.step_seconds:7.3f} s, measured {measured:7.3f}: {error:+.0%}"
    print(f"{case.use:5} {case.name:16} {told} ({shares})", flush=True)
    result = {"case": case.name, "use": case.use, "predicted": found.step_seconds, "measured": measured}
    return result | {"error": error, "seconds": found.computing}


def _fitted(cases: list[Case], settings: list[Setting], measured: list[float]) -> list[Setting]:
    """The settings with the constants that fit the cases marked `fit` best."""
    start = np.log([getattr(settings[0].device, name) for name in FITTED])

    def changed(logs: np.ndarray) -> list[Setting]:
        values = dict(zip(FITTED, np.exp(logs).tolist(), strict=True))
        return [dataclasses.replace(of, device=dataclasses.replace(of.device, **values)) for of in settings]

    def residuals(logs: np.ndarray) -> list[float]:
        pairs = zip(cases, changed(logs), measured, strict=True)
        errors = [
            math.log(estimate_step(of).step_seconds / seconds) for case, of, seconds in pairs if case.use == "fit"
        ]
        return [*errors, *(0.05 * (logs - start))]

    return changed(least_squares(residuals, start).x)


def _measured(case: Case, config: TrainConfig, steps: int) -> float:
    """The median of `steps` steps, each waited for, after two that compile and warm up."""
    rows = ours.random_rows(case.model.vocabulary_size, case.rows, case.length, count=1)
    program, taken = ours.stepping(case.model, config, make_mesh({"fsdp": 1}, jax.devices()[:1]), rows), []
    for _ in range(steps):
        begin = time.perf_counter()
        program.run(1)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
