"""Measure the model: held-out loss, the comparison with the truth of `tenki`, answers before and after tuning.

It makes RUN/evaluate. With --tasks it takes a MODEL instead of a recipe, and measures it on tasks of the
lm-evaluation-harness, on humaneval, and on files of questions or of problems of programming.
"""

import dataclasses
import time
from pathlib import Path

from tpullm.cli.options import (
    add_asking,
    add_json,
    add_mesh,
    add_model,
    asking_of,
    in_the_form_of,
    print_json,
    words_of,
)
from tpullm.engine.session import find_model, session_of
from tpullm.evaluation import evaluate_tasks, programming_task, run_results, tables
from tpullm.evaluation.tasks import tasks_named
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.run.stages import begin, evaluate_inputs
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say


def main(recipe: Recipe, run: Path) -> None:
    """Write `RUN/evaluate/results.json` and print its figures.

    The model is on the devices of all hosts. All of them compute the same, from results that they all have; host 0
    writes.
    """
    stage, inputs = run / "evaluate", evaluate_inputs(recipe, run)
    if hosts.broadcast("evaluate", lambda: manifest.is_finished(stage, inputs)):
        return say("evaluate: finished, skipped")
    start = time.monotonic()
    results = run_results.measure_run(recipe, run)
    seconds = results["seconds"]["evaluate"] = round(time.monotonic() - start, 1)

    def write() -> None:
        begin(stage, inputs)
        storage.write_json(stage / "results.json", results)
        manifest.write(stage, inputs, seconds=seconds)
        tables.show_run(results)
        say(f"evaluate: {seconds} s")

    hosts.on_first("evaluate ends", write)


def add_show_arguments(parser) -> None:
    """`MODEL --tasks ...`: measure a model on tasks instead of making the stage."""
    add_model(parser, "with --tasks: ")
    about = "humaneval, names of the lm-evaluation-harness, its YAML files, files of questions; with commas"
    parser.add_argument("--tasks", required=True, type=str, help=about)
    add_asking(parser)
    parser.add_argument("--samples", type=int, default=1, help="programs for each problem of programming")
    parser.add_argument("--temperature", type=float, default=0.0, help="of programs; 0: the likeliest one")
    add_mesh(parser)
    about = "the folder of results; empty: in RUN/measured or ./measured"
    parser.add_argument("--out", type=str, default="", help=about)
    add_json(parser)


def show_main(arguments) -> None:
    """Load the model, measure it on the tasks, and print a table."""
    asking = asking_of(arguments)
    programming_task.check_sampling(asking)
    hosts.agree("the command", {"asking": dataclasses.asdict(asking), "tasks": arguments.tasks})
    words = words_of(arguments.tasks)
    chosen = tasks_named(words)
    evaluate_tasks.check_hosts_agree(chosen)
    hosts.on_first("the folder of results", evaluate_tasks.check_results_folder, words, chosen, arguments.out)
    if (asking.samples, asking.temperature) != (1, 0.0) and not chosen.problems:
        raise UserError("--samples, --temperature: no task is one of programming; leave them out")
    found = find_model(arguments.model)
    asking = in_the_form_of(asking, arguments.chat, {arguments.model: found})
    evaluate_tasks.check_tasks(chosen, asking, found.config.context_length)
    session = session_of(found, mesh=arguments.mesh)
    results, folder = evaluate_tasks.evaluate_and_write(session, arguments.model, chosen, asking, arguments.out)
    if hosts.is_first():
        if arguments.json:
            return print_json(results)
        tables.show_tasks(results)
        say(f"evaluate: {results['seconds']} s; {folder / manifest.RESULTS}")
