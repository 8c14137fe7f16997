"""The tasks that words name (after `--tasks`, in a recipe): files of questions, of problems, and tasks of the harness.

Tasks are read before anything is made with them. It imports no JAX: `collect` looks for their questions in the corpus.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tpullm.corpus.question_windows import TaskQuestions, Wording
from tpullm.evaluation import harness_tasks, problem_files, question_files
from tpullm.evaluation.problem_files import ProblemFile, is_problem_file
from tpullm.evaluation.question_files import QuestionFile, is_question_file
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Args:
        shots: examples with their answers before each question.
        seed: chooses them.
        limit: the most questions; 0 is all.
        chat: as conversations, by the chat template of the model.
        samples: programs for each problem of programming.
        temperature: of these; above 0 they are sampled. 0 is the likeliest program.
    """

    shots: int = 0
    seed: int = 0
    limit: int = 0
    chat: bool = False
    samples: int = 1
    temperature: float = 0.0

    def drawn(self, items: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The examples, which the seed chooses, and the items that are left to be asked."""
        order = np.random.default_rng(self.seed).permutation(len(items))[: self.shots].tolist()
        left = (item for number, item in enumerate(items) if number not in set(order))
        return tuple(items[number] for number in order), tuple(left)

    def of_questions(self) -> dict[str, Any]:
        """The settings of all tasks but those of programming, by name."""
        return {"shots": self.shots, "seed": self.seed, "limit": self.limit, "chat": self.chat}


class Tasks(NamedTuple):
    """What to measure a model on.

    Args:
        files: of questions.
        problems: files of problems of programming.
        names: of tasks of the harness, and its YAML files.
        index: the harness's, which has these names; None if there are none.
    """

    files: Sequence[QuestionFile] = ()
    problems: Sequence[ProblemFile] = ()
    names: Sequence[str] = ()
    index: Any = None


def tasks_named(words: Sequence[str], to_run: bool = True) -> Tasks:
    """The tasks that words name. A word that names nothing is one of the harness, which says so.

    Args:
        to_run: programs of the model are to run here.

    Raises:
        UserError: a task is not known, a file is wrong, or two tasks have one name.
    """
    if not words:
        raise UserError("--tasks: names no task; name tasks of the harness or files of questions, with commas")
    programming = [word for word in words if is_problem_file(word)]
    asked = [word for word in words if is_question_file(word) and word not in programming]
    names = [word for word in words if word not in (*programming, *asked)]
    files = [question_files.read_questions(word) for word in asked]
    problems = [problem_files.read_problems(word, to_run) for word in programming]
    _refuse_twice([*names, *(file.name for file in (*files, *problems))])
    return Tasks(files, problems, names, harness_tasks.harness_index(names) if names else None)


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--tasks: two tasks are called {twice}; rename a file, or leave one out")


def check_training_tasks(recipe: Recipe, run: Path) -> None:
    """Read the tasks that the trainings of a recipe are measured on, and see whether the harness has its own.

    A training that was made needs them no more. If it is made again, it checks all this itself.

    Raises:
        UserError: what would be found only when a training begins.
    """
    for name, training in recipe.trainings.items():
        made = run / name.removeprefix("finetune.").removesuffix(".train") / manifest.FILE
        if training.measure.tasks and not made.exists():
            with keys_for_options(f"{name}.measure"):
                tasks_named(training.measure.tasks)


@contextlib.contextmanager
def keys_for_options(section: str) -> Iterator[None]:
    """Errors of `evaluate --tasks` inside name the key of `section` in place of the option."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("--"):
            raise
        raise UserError(f"{section}.{str(error).removeprefix('--')}") from None


def leak_questions(words: Sequence[str]) -> list[TaskQuestions]:
    """The questions that `collect` looks for, of the tasks of `corpus.leaks`: those of files, then the harness's.

    A problem of programming is known by its prompt; its right program is the answer.

    Raises:
        UserError: a file is not there or has a mistake, a task is not known, or two have one name.
    """
    if not words:
        return []
    with keys_for_options("corpus.leaks"):
        tasks = tasks_named(words, to_run=False)
        found = []
        for file in tasks.files:
            # An instruction is a question if there is nothing else: others share it.
            wordings = [Wording(of.parts or (of.text or of.instruction,), of.answers, of.choices) for of in file.items]
            found.append(TaskQuestions(file.name, file.version, wordings))
        for file in tasks.problems:
            wordings = [Wording((one.prompt,), (one.solution,) if one.solution else ()) for one in file.problems]
            found.append(TaskQuestions(file.name, file.version, wordings))
        found += harness_tasks.harness_questions(tasks.names, tasks.index) if tasks.names else []
        _refuse_twice([task.name for task in found])
    return found
