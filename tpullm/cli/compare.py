"""Say how models differ: right answers, loss, calibration, examples. A table, and one self-contained HTML page.

Each MODEL is a run directory, a stage, a checkpoint, a folder in the format of Hugging Face, or a GGUF file. The others
are compared with the first. Without --tasks and --text, it is on the held-out text of the run that they come from. With
--weights one MODEL is enough: it is compared with itself in fewer bits.
"""

import shlex
from pathlib import Path
from typing import Any

from tpullm.cli.options import add_asking, add_json, add_mesh, asking_of, in_the_form_of, print_json, words_of
from tpullm.system import language, storage
from tpullm.system.errors import UserError
from tpullm.system.log import say

FOLDER, PAGE, RESULTS, ANSWERS = "compared", "compare.html", "results.json", "answers.jsonl"


def add_arguments(parser) -> None:
    """The options of `tpullm compare`."""
    about = "two or more, or one with --weights; the others are compared with the first"
    parser.add_argument("models", metavar="MODEL MODEL ...", nargs="*", type=str, help=about)
    about = "humaneval, names of the lm-evaluation-harness, its YAML files, files of questions; with commas"
    parser.add_argument("--tasks", type=str, default="", help=about)
    about = "files and folders of text in UTF-8, or of JSON Lines with `text`; with commas"
    parser.add_argument("--text", type=str, default="", help=about)
    about = "int8, int4 or both, with a comma: also each model with its matrices quantized so"
    parser.add_argument("--weights", type=str, default="", help=about)
    add_asking(parser)
    add_mesh(parser)
    parser.add_argument("--out", type=str, default="", help="the folder of results; empty: one below ./compared")
    add_json(parser)


def main(arguments) -> None:
    """Check everything, measure one model after the other, write the figures and the page, and print a table."""
    from tpullm.engine import session
    from tpullm.evaluation import comparison, tables
    from tpullm.model.quantized import IN_USE
    from tpullm.system.cluster import hosts

    kinds = list(dict.fromkeys(words_of(arguments.weights)))
    if unknown := [kind for kind in kinds if kind not in IN_USE]:
        raise UserError(f"--weights: {unknown[0]!r:.40} is not one of {', '.join(IN_USE)}; use one of these, or both")
    models = _words_by_label(arguments.models, 1 if kinds else 2)
    asking, tasks, texts, found = _checked_comparison(arguments, list(models.values()))
    name = "-".join(label.replace("/", "-") for label in models)[:60]
    asked = [getattr(arguments, option) for option in ("tasks", "text", "shots", "seed", "limit", "chat")]
    asked += [arguments.weights] if arguments.weights else []
    default = f"{FOLDER}/{name}-{storage.hash_json([list(models.values()), asked])[:8]}"
    folder, opened = storage.path(arguments.out or default), {}
    for (label, word), own in zip(models.items(), found, strict=True):
        for kind in ("", *kinds):  # the model as it is, then in each of the kinds
            opened[f"{label} {kind}".strip()] = (word, own._replace(weights=kind))
    for _, own in opened.values():
        session.built_on_mesh(own, arguments.mesh)  # no model is measured before all are seen to fit
    hosts.on_first("compare begins", _check_comparison_folder, folder)
    results = comparison.compare_models(opened, tasks, texts, asking, folder, arguments.mesh)
    options = []  # of the command that repeats the comparison
    for name in ("tasks", "text", "weights", "shots", "seed", "limit", "mesh", "out"):
        if value := getattr(arguments, name):
            options += [f"--{name}", str(value)]
    options += ["--chat" if asking.chat else "--no-chat"] if arguments.tasks else []
    results = {"command": shlex.join(["tpullm", "compare", *arguments.models, *options])} | results
    hosts.on_first("compare", _write_comparison, folder, results, found[0])
    if hosts.is_first():
        if arguments.json:
            return print_json(results)
        tables.show_comparison(results)
        say(f"compare: {results['seconds']} s; {folder / PAGE}")


def _words_by_label(words: list[str], least: int = 2) -> dict[str, str]:
    """The words that name models, by labels that are as short as they can be and differ.

    Raises:
        UserError: there are fewer than `least`, or one is given twice.
    """
    if len(words) < least:
        raise UserError(
            f"MODEL: {len(words)} given, and a comparison needs two or more, or one with --weights; name another one"
        )
    paths = [storage.path(word) for word in words]
    places = [str(path if storage.is_remote(path) else path.resolve()) for path in paths]
    if twice := next((word for word, place in zip(words, places, strict=True) if places.count(place) > 1), ""):
        raise UserError(f"MODEL: {twice} is given twice; leave one out")
    parts = [place.rstrip("/").split("/") for place in places]
    parts = [[*of[:-3], f"{of[-3]}/{of[-1]}"] if of[-2:-1] == ["checkpoints"] else of for of in parts]
    labels = {}
    for own, word in zip(parts, words, strict=True):  # the shortest end of a path that is the end of no other one
        alone = (count for count in range(1, len(own) + 1) if sum(of[-count:] == own[-count:] for of in parts) == 1)
        labels["/".join(own[-next(alone) :])] = word
    return labels


def _checked_comparison(arguments, words: list[str]) -> tuple[Any, Any, list, list]:
    """What to compare on, and the models on disk. Everything that may be wrong is looked at, and no model is loaded."""
    import dataclasses

    from tpullm.engine.session import find_model
    from tpullm.evaluation import compared_texts, evaluate_tasks
    from tpullm.evaluation.tasks import Tasks, tasks_named
    from tpullm.system.cluster import hosts

    asking = asking_of(arguments)
    hosts.agree("the command", {"asking": dataclasses.asdict(asking), "tasks": arguments.tasks, "text": arguments.text})
    tasks = tasks_named(words_of(arguments.tasks)) if arguments.tasks else Tasks()
    texts = compared_texts.read_texts(words_of(arguments.text), arguments.limit) if arguments.text else []
    hosts.agree("the texts of --text", {text.name: text.version for text in texts})
    evaluate_tasks.check_hosts_agree(tasks)
    found = [find_model(word) for word in words]
    asking = in_the_form_of(asking, arguments.chat, dict(zip(words, found, strict=True)))
    for own in found:
        evaluate_tasks.check_tasks(tasks, asking, own.config.context_length)
    texts = texts if texts or arguments.tasks else _shared_held_out(found, words, asking.limit)
    return asking, tasks, texts, found


def _shared_held_out(found: list, words: list[str], limit: int) -> list:
    """The held-out text of the first model's run, if it is that of the other models too."""
    from tpullm.evaluation import compared_texts
    from tpullm.run import manifest

    documents = [own.model.run / "documents" if own.model else None for own in found]
    made = [manifest.finished_identity(of) if of and (of / manifest.FILE).exists() else "" for of in documents]
    for word, own in zip(words, made, strict=True):
        if not own or own != made[0]:
            why = "has no held-out text of its run, as a comparison without --tasks and --text needs"
            why = f"has other documents than {words[0]}" if own else why
            raise UserError(f"{word}: {why}; say on what to compare, with --tasks or --text")
    texts = compared_texts.held_out_texts(found[0].model.run, limit)
    if not texts:
        raise UserError(f"{words[0]}: its run has no held-out text; say on what to compare, with --tasks or --text")
    return texts


def _check_comparison_folder(folder: Path) -> None:
    """`UserError` if the folder holds something else than a comparison, finished or not."""
    if folder.is_file():
        raise UserError(f"--out: {folder}: is a file; name a folder")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if others := sorted(there - {PAGE, RESULTS, ANSWERS}):
        raise UserError(f"--out: {folder}: holds {others[0]}, which is of no comparison; name another folder")
    if RESULTS in there and "models" not in storage.read_json(folder / RESULTS):
        raise UserError(f"--out: {folder}: holds the results of `tpullm evaluate`; name another folder")


def _write_comparison(folder: Path, results: dict[str, Any], first) -> None:
    """The figures, and the page in the language of the first model's recipe, else in that of the environment."""
    from tpullm.report.comparison_page import comparison_page
    from tpullm.report.language import named

    recipe = first.model.recipe if first.model else {}
    chosen = named(recipe.get("language") or language.chosen())
    storage.write_json(folder / RESULTS, results)
    storage.write_text(folder / PAGE, comparison_page(results, chosen))
