"""The tasks of EleutherAI's lm-evaluation-harness, its own and YAML files of one's own, and their questions.

It imports no JAX: `collect` looks for the questions in the corpus.
"""

import contextlib
import difflib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tpullm.corpus.question_windows import TaskQuestions, Wording
from tpullm.system.errors import UserError
from tpullm.system.log import one_line

YAML = (".yaml", ".yml")


def harness_index(tasks: Sequence[str]) -> Any:
    """The harness's index of tasks, which has all of these.

    Raises:
        UserError: the package is not installed, or a task is not known.
    """
    # No bars beside ours. The variables are read when the packages are imported.
    for variable in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")
    try:
        with quiet_harness():
            from lm_eval.tasks import TaskManager

            index = TaskManager()
    except ImportError:
        raise UserError(
            f"--tasks: {tasks[0]}: tasks of the harness need the package: pip install 'tpullm[lm-eval]'; a file of "
            "questions (.jsonl, .json, .parquet) needs nothing"
        ) from None
    names = set(index.all_tasks)
    for task in tasks:
        if task.endswith(YAML) and not Path(task).is_file():
            raise UserError(f"--tasks: {task}: no such file; correct the name")
        if not task.endswith(YAML) and task not in names:
            near = difflib.get_close_matches(task, names, 1)
            raise UserError(
                f"--tasks: {task}: the harness has no such task{f', did you mean {near[0]}?' if near else ''}; a file "
                "of questions ends in .jsonl, .json or .parquet, a task of your own in .yaml"
            )
    return index


def harness_questions(tasks: Sequence[str], index: Any) -> list[TaskQuestions]:
    """The questions of tasks, in the order of their documents; those of a group by the tasks in it.

    Raises:
        UserError: a task can't be loaded.
    """
    found = []
    with harness_failures(tasks), quiet_harness():
        for name, task in index.load(list(tasks))["tasks"].items():
            own = [_wording_of_document(task, one) for one in task.eval_docs]
            found.append(TaskQuestions(name, hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16], own))
    return found


@contextlib.contextmanager
def harness_failures(tasks: Sequence[str], ours: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """What foreign files and foreign code raise becomes a `UserError`: anything may be wrong there.

    Args:
        ours: whether an error is a failure of ours, which stays what it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or ours(error):
            raise
        why = f"{type(error).__name__}: {one_line(str(error), 300)}"
        raise UserError(f"--tasks: {', '.join(tasks)}: the harness can't load or run them ({why})") from error


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """The harness and what it imports log errors alone; ours is the progress."""
    logger = logging.getLogger("lm_eval")
    before, disabled = logger.level, logging.root.manager.disable
    logger.setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
        logging.disable(disabled)


def _wording_of_document(task: Any, document: dict[str, Any]) -> Wording:
    """The texts by which the question of a document is known.

    Where the harness measures a whole text, there is no question before it: it is the text. Where the answer stands in
    the middle (Winogrande), the choices are the beginnings, and the question is a number.
    """
    asked, target = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if getattr(task.config, "doc_to_choice", None) is not None else []
    right = target if isinstance(target, list) else [target]
    answers = tuple(choices[one] if isinstance(one, int) and choices else str(one) for one in right)
    if isinstance(asked, int):
        return Wording(tuple(choices), answers)
    return Wording((asked,), answers, tuple(choices)) if asked.strip() else Wording(answers)
