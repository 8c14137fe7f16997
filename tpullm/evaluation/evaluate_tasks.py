"""A model on tasks: what may be asked of it, the figures of all tasks, and the files that keep them.

There are three kinds of tasks: files of questions, problems of programming, and tasks of the lm-evaluation-harness.
Beneath all is one model that knows tokens alone (`measured_model.py`). A request is a continuation whose likelihood is
asked for, or a prompt to continue.
"""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

from tpullm import __version__
from tpullm.engine.session import Session
from tpullm.evaluation import programming_task, question_task, read_before
from tpullm.evaluation.measured_model import FILE, KeptAnswers, MeasuredModel, parameter_hash
from tpullm.evaluation.tasks import Asking, Tasks
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError


def check_tasks(chosen: Tasks, asking: Asking, context: int) -> None:
    """Refuse what can't be asked of a model with this context; `UserError` says why."""
    for file in chosen.files:
        question_task.choose_questions(file, asking, context)
    for file in chosen.problems:
        programming_task.choose_problems(file, asking)


def check_hosts_agree(chosen: Tasks, where: str = "--tasks") -> None:
    """End with an error if the hosts have other files by the same names. All hosts call this."""
    hosts.agree(f"the tasks of {where}", {file.name: file.version for file in (*chosen.files, *chosen.problems)})


def check_results_folder(words: Sequence[str], chosen: Tasks, out: str) -> None:
    """Refuse a folder of results in which one would replace another, or a file of something else."""
    names = [file.name for file in (*chosen.files, *chosen.problems)]
    if reserved := {Path(manifest.RESULTS).stem, Path(FILE).stem} & set(names):
        raise UserError(f"--tasks: {reserved.pop()}: is the name of a file of results; rename the file of questions")
    if not out:
        return

    def place(path: Path) -> Path:
        return path if storage.is_remote(path) else path.resolve()

    folder = storage.path(out)
    is_ours, results = (folder / FILE).exists(), folder / manifest.RESULTS
    asked = [place(storage.path(word)) for word in words]
    for file in (folder / f"{name}.jsonl" for name in names):
        if place(file) in asked or (file.exists() and not is_ours):
            raise UserError(f"--out: {out}: results would replace {file}; name another folder")
    if results.exists() and "model" not in storage.read_json(results):
        raise UserError(f"--out: {out}: holds results of something else; name another folder")


def evaluate_and_write(session: Session, name: str, chosen: Tasks, asking: Asking, out: str) -> tuple[dict, Path]:
    """Measure a model on tasks. With several hosts, all of them call this, and host 0 writes.

    `OUT/answers.jsonl` grows with each answer, `OUT/results.json` has the figures, and `OUT/NAME.jsonl` the answers to
    the questions or problems of a file. The same command resumes, and asks nothing that was answered.

    Args:
        name: of the model.
        out: the folder; empty is one for this model below `measured`, in its run directory if it has one.

    Returns:
        The figures, and the folder.
    """
    start, parameters, own = time.monotonic(), parameter_hash(session), session.model
    called = own.stage if own else storage.path(name).name
    below = (own.run if own else storage.path("")) / manifest.FOLDER / f"{called}-{parameters[:8]}"
    folder = storage.path(out) if out else below
    with closing(KeptAnswers(folder)) as answers:
        model = MeasuredModel(session, answers, parameters)
        found = measure_tasks(model, name, chosen, asking)
    questions = {task: figures["questions"] for task, figures in found.items() if "questions" in figures}
    add_read_before(session, chosen, found)
    found = {task: without_questions(figures) for task, figures in found.items()}
    results = {
        "model": {"name": name, "parameters": parameters, "dtype": str(session.dtype), "talks": session.talks}
        | (manifest.of_model(own.run, own.stage, own.step) if own else {}),
        "program": {"tpullm": __version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind},
        "tasks": found,
        "counts": model.counts,
        "seconds": round(time.monotonic() - start, 1),
    }
    hosts.on_first("evaluate", _write_results, folder, results, questions)
    model.warn_of_cuts("evaluate")
    return results, folder


def measure_tasks(model: MeasuredModel, name: str, chosen: Tasks, asking: Asking) -> dict[str, dict[str, Any]]:
    """The figures of each task, and what became of each question: see the `measure` of each kind of task."""
    found = {file.name: question_task.measure_questions(model, file, asking) for file in chosen.files}
    found |= {file.name: programming_task.measure_programs(model, file, asking) for file in chosen.problems}
    if chosen.names:
        from tpullm.evaluation import harness

        found |= harness.measure_by_harness(model, chosen.names, chosen.index, asking, name)
    return found


def add_read_before(session: Session, chosen: Tasks, found: dict[str, dict[str, Any]]) -> None:
    """Add to `found` how much of each task is in the training text of the model's run. All hosts call this."""
    run = session.model.run if session.model else None
    # Host 0 reads what collect has written.
    for task, read in hosts.broadcast("read before", lambda: read_before.read_figures(run, chosen, found)).items():
        found[task]["read_before"] = read


def without_questions(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a task without what grows with its questions."""
    return {key: value for key, value in figures.items() if key not in ("questions", "probabilities", "scores")}


def _write_results(folder: Path, results: dict, questions: dict[str, list[dict]]) -> None:
    """Write the results, beside those of other tasks that the same model was measured on before."""
    before = storage.read_json(folder / manifest.RESULTS) if (folder / manifest.RESULTS).exists() else {}
    same = before.get("model", {}).get("parameters") == results["model"]["parameters"]
    tasks = {**(before["tasks"] if same else {}), **results["tasks"]}
    storage.write_json(folder / manifest.RESULTS, results | {"tasks": tasks})
    for task, rows in questions.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_text(folder / f"{task}.jsonl", lines)
