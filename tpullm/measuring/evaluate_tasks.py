"""A model on tasks: which words after `--tasks` are what, the figures of all, and the files that keep them."""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tpullm import __version__, storage
from tpullm.cluster import hosts
from tpullm.errors import UserError
from tpullm.inference.session import Session
from tpullm.log import warn
from tpullm.measuring import harness, question_files, question_task, read_before
from tpullm.measuring.kept_answers import FILE, KeptAnswers
from tpullm.measuring.measured_model import MeasuredModel
from tpullm.measuring.parameter_hash import parameter_hash
from tpullm.measuring.question_files import QuestionFile
from tpullm.measuring.question_task import Asking
from tpullm.run import measurements


class Tasks(NamedTuple):
    """What to measure a model on.

    Args:
        files: of questions.
        names: of tasks of the harness, and its YAML files.
        index: the harness's, which has these names; None if there are none.
    """

    files: list[QuestionFile]
    names: list[str]
    index: Any


def tasks(words: Sequence[str]) -> Tasks:
    """The tasks that words name.

    Raises:
        UserError: a task is not known, or a file is wrong.
    """
    files = [question_files.read(word) for word in words if question_files.is_question_file(word)]
    names = [word for word in words if not question_files.is_question_file(word)]
    if not words:
        raise UserError("--tasks: names no task; name tasks of the harness or files of questions, with commas")
    called = [*names, *(file.name for file in files)]
    if twice := next((name for name in called if called.count(name) > 1), ""):
        raise UserError(f"--tasks: two tasks are called {twice}; rename a file, or leave one out")
    if reserved := {Path(measurements.RESULTS).stem, Path(FILE).stem} & {file.name for file in files}:
        raise UserError(f"--tasks: {reserved.pop()}: is the name of a file of results; rename the file of questions")
    return Tasks(files, names, harness.known(names) if names else None)


def evaluate(session: Session, name: str, chosen: Tasks, asking: Asking, out: str) -> tuple[dict[str, Any], Path]:
    """Measure a model on tasks. With several hosts, all of them call this, and host 0 writes.

    `OUT/answers.jsonl` grows with each answer, `OUT/results.json` has the figures, and `OUT/NAME.jsonl` the answers to
    the questions of a file. The same command resumes, and asks nothing that was answered.

    Args:
        name: of the model.
        out: the folder; empty is one for this model below `measured`, in its run directory if it has one.

    Returns:
        The figures, and the folder.
    """
    start, parameters = time.monotonic(), parameter_hash(session)
    folder = storage.path(out) if out else _folder(session) / f"{_called(session, name)}-{parameters[:8]}"
    with closing(KeptAnswers(folder)) as answers:
        model = MeasuredModel(session, answers, parameters)
        found, questions = figures(model, chosen, asking, name)
    run = session.model.run if session.model else None
    for file in chosen.files:  # host 0 reads what collect has written
        read = hosts.broadcast("read before", lambda file=file: read_before.figures(run, file, questions[file.name]))
        found[file.name]["read_before"] = read
    results = {
        "model": {"name": name, "parameters": parameters, "dtype": str(session.dtype), "talks": session.talks}
        | (measurements.of_model(session.model) if session.model else {}),
        "program": {"tpullm": __version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind},
        "tasks": found,
        "counts": asdict(model.counts),
        "seconds": round(time.monotonic() - start, 1),
    }
    hosts.on_first("evaluate", _write, folder, results, questions)
    if model.counts.cut and hosts.is_first():
        warn(
            f"evaluate: {model.counts.cut:,} of {model.counts.requests:,} requests are longer than the context of "
            f"{session.context_length} tokens, and lost their beginning"
        )
    return results, folder


def _folder(session: Session) -> Path:
    return (session.model.run if session.model else storage.path("")) / measurements.FOLDER


def _called(session: Session, name: str) -> str:
    return session.model.stage if session.model else storage.path(name).name


def figures(
    model: MeasuredModel, chosen: Tasks, asking: Asking, name: str
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The figures of each task, and of a file of questions what became of each."""
    found = {file.name: question_task.measure(model, file, asking) for file in chosen.files}
    found |= harness.measure(model, chosen.names, chosen.index, asking, name) if chosen.names else {}
    return found, {task: own.pop("questions") for task, own in found.items() if "questions" in own}


def _write(folder: Path, results: dict, questions: dict[str, list[dict]]) -> None:
    """Write the results, beside those of other tasks that the same model was measured on before."""
    before = storage.read_json(folder / measurements.RESULTS) if (folder / measurements.RESULTS).exists() else {}
    same = before.get("model", {}).get("parameters") == results["model"]["parameters"]
    tasks = {**(before["tasks"] if same else {}), **results["tasks"]}
    storage.write_json(folder / measurements.RESULTS, results | {"tasks": tasks})
    for task, rows in questions.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        storage.write_text(folder / f"{task}.jsonl", lines)
