"""Estimate the memory, the speed and the cost of a recipe before you rent a chip.

It shows memory by part, where the time of a step goes, tokens a second, days and dollars. --topology takes several: TPU
slices (v6e:16x16), hosts with GPUs (h100:16x8), `local`. --compile compiles the program by the chips' own compiler.
Exit code 0: the recipe fits at least one of them. 1: it fits none.
"""

from pathlib import Path

from tpullm.cli.options import add_json, print_json, words_of
from tpullm.hardware.topologies import Topology
from tpullm.recipe.schema import Recipe
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.language import spoken
from tpullm.system.log import say

COMPILED = 3  # of the best plans of a search


def add_arguments(parser) -> None:
    """The options of `tpullm plan`. `--topology` is a key of the recipe; here it takes several names, also `local`."""
    parser.add_argument("--stage", default="", help="a stage of finetune, or pretrain")
    parser.add_argument("--slices", type=int, default=0, help="the number of slices of each topology, along mesh.data")
    parser.add_argument("--search", action="store_true", help="find the fastest settings that fit: mesh, remat, ...")
    parser.add_argument("--compile", action="store_true", help="compile the program for the chips; takes minutes")
    add_json(parser)
    parser.add_argument("--write", default="", metavar="FILE", help="write the planned recipe to this file")
    about = "order of the topologies: cost or time"
    parser.add_argument("--sort", choices=("cost", "time"), default="cost", help=about)
    parser.add_argument("--price", default="", help="your prices in dollars a chip-hour, such as v5e=0.9,v6e=2")
    about = "seconds from an interruption to the next step; 0: the usual"
    parser.add_argument("--restart", type=float, default=0.0, help=about)
    parser.add_argument("--interruptions", type=float, default=0.0, help="mean hours between interruptions; 0: none")


def main(recipe: Recipe, run: Path, arguments) -> int:
    """Plan for each topology and print the plans. The exit code says whether anything fits."""
    from tpullm.formats.models import planned_model
    from tpullm.planning import plan_tables
    from tpullm.planning.plans import VERSION, make_plan, on_slices, to_json
    from tpullm.recipe.parsing import dump

    target = storage.path(arguments.write) if arguments.write else None
    if target and target.exists():
        raise UserError(f"--write: {target} exists; choose another file, or remove it")
    if target:  # checked before minutes of compiling, and without making a folder
        storage.check_writable(next((folder for folder in target.parents if folder.exists()), target.parent))
    names = words_of(recipe.topology)
    if not names:
        raise UserError("--topology: the recipe names none; give one such as v5e:4x4 or h100:8, several, or local")
    if min(arguments.slices, arguments.interruptions, arguments.restart) < 0:
        raise UserError("--slices, --interruptions and --restart: use 0 or more")
    model, plans = planned_model(recipe, run), []
    asked = words_of(arguments.price), arguments.interruptions, arguments.search, arguments.restart, arguments.stage
    for name in names:
        own, name = on_slices(recipe, name, arguments.slices)
        plan = make_plan(own, model, name, *asked)
        absent = isinstance(plan.chosen.setting.topology, Topology)
        plans.append(_prove_plan(plan, arguments.stage, model) if arguments.compile and absent else plan)
    by_cost = arguments.sort == "cost"
    plans.sort(key=lambda plan: (not plan.fits, plan.dollars if by_cost else plan.run.days))
    if arguments.json:
        print_json({"version": VERSION, "recipe": recipe.name, "plans": [to_json(plan) for plan in plans]})
    else:
        told = plan_tables.plan_details(plans[0]) if len(plans) == 1 else plan_tables.plans_side_by_side(plans)
        print(*map(spoken, told.split("\n")), sep="\n")
    if target:
        best, topology = plans[0], plans[0].chosen.setting.topology
        if not best.fits:
            raise UserError(f"--write: the recipe does not fit {topology}, so nothing is written")
        storage.write_text(target, dump(best.recipe))
        say(f"{target}: the recipe for {topology}; tpullm run --config {target}")
    return 0 if any(plan.fits for plan in plans) else 1


def _prove_plan(plan, stage: str, model):
    """The plan with what the compiler said; the estimated plan alone if there is no compiler."""
    from tpullm.planning.plans import with_proofs
    from tpullm.planning.proof import prove

    best = plan.found.best[:COMPILED] if plan.found else (plan.chosen,)
    try:
        proofs = []
        for one in best:
            changed = one.changed(plan.recipe)
            own = model.trained_as(changed.model)
            proofs.append((one, prove(changed, one.setting.topology, say, stage, own)))
    except UserError as error:
        say(f"not compiled: {error}")
        return plan
    return with_proofs(plan, proofs)
