"""All stages that a recipe names, in order. A finished stage whose inputs stand is skipped, a broken one goes on."""

import importlib
import time
from pathlib import Path

from tpullm import manifest, stages
from tpullm.config import Recipe
from tpullm.log import say

# What a stage that needs JAX depends on: asked before its module (and JAX) is imported, so that skipping costs nothing.
INPUTS = {
    "pretrain": stages.pretrain_inputs,
    "finetune": stages.finetune_inputs,
    "evaluate": stages.evaluate_inputs,
}


def main(recipe: Recipe, run: Path) -> None:
    """Make everything in `run` that is not made yet."""
    start = time.monotonic()
    if recipe.base:
        importlib.import_module("tpullm.commands.import_").make(recipe, run)
    for verb in _verbs(recipe):
        if verb in INPUTS and manifest.is_finished(run / verb, INPUTS[verb](recipe, run)):
            say(f"{verb}: finished, skipped")
            continue
        importlib.import_module(f"tpullm.commands.{verb}").main(recipe, run)
    seconds = time.monotonic() - start
    say(f"run: all stages of '{recipe.name}' are finished after {seconds:.1f} s; open {run / 'report.html'}")


def _verbs(recipe: Recipe) -> list[str]:
    learned = ["collect", "tokenize", "pretrain"] if recipe.foundation == "pretrain" else []
    return [*learned, *(["finetune"] if recipe.finetune else []), "evaluate", "report"]
