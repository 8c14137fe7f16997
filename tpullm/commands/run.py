"""Make all stages of a recipe, in order: collect, tokenize, pretrain, finetune, evaluate, report.

A finished stage is skipped if its settings and its text are the same. An interrupted stage resumes.
"""

import importlib
import time
from pathlib import Path

from tpullm.cluster import hosts
from tpullm.log import say
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest, stages

# The inputs of the stages that need JAX. They are compared before JAX is imported, so that skipping costs nothing.
INPUTS = {
    "pretrain": stages.pretrain_inputs,
    "finetune": stages.finetune_inputs,
    "evaluate": stages.evaluate_inputs,
}


TOGETHER = ("pretrain", "finetune", "evaluate")  # every host calls these; host 0 makes the others


def main(recipe: Recipe, run: Path) -> None:
    """Make every stage of `run` that is not made yet."""
    start = time.monotonic()
    if recipe.trackers:  # before hours of collecting
        from tpullm.training import trackers

        hosts.on_first("the trackers", trackers.check, recipe.trackers, run)
    if recipe.base:
        hosts.on_first("import", importlib.import_module("tpullm.commands.import_").make, recipe, run)
    for verb in _verbs(recipe):
        if verb in INPUTS and hosts.broadcast(verb, lambda verb=verb: _is_finished(verb, recipe, run)):
            say(f"{verb}: finished, skipped")
            continue
        make = importlib.import_module(f"tpullm.commands.{verb}").main
        if verb in TOGETHER:
            make(recipe, run)
        else:
            hosts.on_first(verb, make, recipe, run)
    seconds = time.monotonic() - start
    say(f"run: all stages of '{recipe.name}' are finished after {seconds:.1f} s; open {run / 'report.html'}")


def _is_finished(verb: str, recipe: Recipe, run: Path) -> bool:
    return manifest.is_finished(run / verb, INPUTS[verb](recipe, run))


def _verbs(recipe: Recipe) -> list[str]:
    learned = ["collect", "tokenize", "pretrain"] if recipe.foundation == "pretrain" else []
    return [*learned, *(["finetune"] if recipe.finetune else []), "evaluate", "report"]
