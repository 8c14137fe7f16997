"""Make all stages of a recipe, in order, from `collect` to `report` and `export`.

A finished stage is skipped if nothing changed. An interrupted one resumes. A page shows the run while it learns, at the
address that the first line names; TPULLM_WATCH=off switches it off.
"""

import contextlib
import importlib
import time
from pathlib import Path
from types import ModuleType

from tpullm.recipe.schema import Recipe
from tpullm.report import watching
from tpullm.run import manifest, stages
from tpullm.system.cluster import hosts
from tpullm.system.log import say

TOGETHER = ("pretrain", "finetune", "evaluate")  # every host calls these; host 0 makes the others


def main(recipe: Recipe, run: Path) -> None:
    """Make every stage of `run` that is not made yet."""
    start = time.monotonic()
    if recipe.trackers:  # before hours of collecting
        from tpullm.training import trackers

        hosts.on_first("the trackers", trackers.check_trackers, recipe.trackers, run)
    if any(training.measure.tasks for training in recipe.trainings.values()):
        from tpullm.evaluation.tasks import check_training_tasks

        hosts.on_first("the tasks", check_training_tasks, recipe, run)
    exports = importlib.import_module("tpullm.cli.export") if recipe.export.gguf else None
    if exports:
        exports.check_recipe(recipe)
    with watching.beside(run) if hosts.is_first() else contextlib.nullcontext():
        _make_stages(recipe, run, exports)
    seconds = time.monotonic() - start
    say(f"run: all stages of '{recipe.name}' are finished after {seconds:.1f} s; open {run / 'report.html'}")
    if exports:
        hosts.on_first("how to use it", exports.tell_how_to_chat, recipe, run)


def _make_stages(recipe: Recipe, run: Path, exports: ModuleType | None) -> None:
    if recipe.base:
        hosts.on_first("import", importlib.import_module("tpullm.cli.import_").make_base, recipe, run)
    verbs = ["collect", "tokenize"] if recipe.reads_text else []
    verbs += ["pretrain"] * (recipe.foundation == "pretrain") + ["finetune"] * bool(recipe.finetune)
    for verb in (*verbs, "evaluate", "report", *["export"] * bool(exports)):
        if verb in TOGETHER and hosts.broadcast(verb, lambda verb=verb: _is_verb_finished(verb, recipe, run)):
            say(f"{verb}: finished, skipped")
            continue
        if exports and verb in ("pretrain", "finetune"):  # before hours of training
            exports.check_model(recipe, run)
        make = exports.make_exports if verb == "export" else importlib.import_module(f"tpullm.cli.{verb}").main
        if verb in TOGETHER:
            make(recipe, run)
        else:
            hosts.on_first(verb, make, recipe, run)


def _is_verb_finished(verb: str, recipe: Recipe, run: Path) -> bool:
    """Compared before JAX is imported, so that skipping costs nothing."""
    if verb == "evaluate":
        return manifest.is_finished(run / verb, stages.evaluate_inputs(recipe, run))
    made = recipe.finetune if verb == "finetune" else [verb]
    return all(manifest.is_finished(run / stage, stages.training_inputs(recipe, run, stage)) for stage in made)
