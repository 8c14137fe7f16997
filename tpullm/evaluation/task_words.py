"""The words that name tasks (after `--tasks`, in a recipe): what each names. It imports no JAX.

`check` reads the tasks that the trainings of a recipe are measured on before anything is made. `read` has the questions
of the tasks of `corpus.leaks`, which `collect` looks for in the corpus.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tpullm.corpus.question_windows import TaskQuestions, Wording
from tpullm.evaluation import harness_tasks, problem_files, question_files
from tpullm.evaluation.problem_files import is_problem_file
from tpullm.evaluation.question_files import Item, is_question_file
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.errors import UserError


class Sorted(NamedTuple):
    """Words in their order.

    Args:
        files: of questions.
        problems: files of problems of programming, and `humaneval`.
        harness: names of the harness, and its YAML files.
    """

    files: list[str]
    problems: list[str]
    harness: list[str]


def sorted_words(words: Sequence[str]) -> Sorted:
    """The words by what they name; a word that names nothing is one of the harness, which says so."""
    problems = [word for word in words if is_problem_file(word)]
    files = [word for word in words if is_question_file(word) and word not in problems]
    return Sorted(files, problems, [word for word in words if word not in (*problems, *files)])


def twice(names: Sequence[str]) -> str:
    """A name that stands there twice; empty if there is none."""
    return next((name for name in names if names.count(name) > 1), "")


def check(recipe: Recipe, run: Path) -> None:
    """Read the files of questions; of tasks of the harness, look whether it has them.

    What was made needs them no more. If it is made again, the training checks all this itself.

    Raises:
        UserError: what would be found only when a training begins.
    """
    unmade = {
        name: training
        for name, training in recipe.trainings.items()
        if not (run / name.removeprefix("finetune.").removesuffix(".train") / manifest.FILE).exists()
    }
    for name, training in unmade.items():
        with keys_for_options(f"{name}.measure"):
            named = sorted_words(training.measure.tasks)
            for task in named.problems:
                problem_files.to_run(task)
            for task in named.files:
                question_files.read(task)
            if named.harness:
                harness_tasks.known(named.harness)


@contextlib.contextmanager
def keys_for_options(section: str) -> Iterator[None]:
    """Errors of `evaluate --tasks` inside name the key of `section` in place of the option."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("--"):
            raise
        raise UserError(f"{section}.{str(error).removeprefix('--')}") from None


SECTION = "corpus.leaks"


def read(names: Sequence[str]) -> list[TaskQuestions]:
    """The questions of some tasks: those of files, then those of tasks of the harness.

    Raises:
        UserError: a file is not there or has a mistake, a task is not known, or two have one name.
    """
    named = sorted_words(names)
    with keys_for_options(SECTION):
        index = harness_tasks.known(named.harness) if named.harness else None
        of_harness = harness_tasks.questions(named.harness, index) if index else []
        found = [*map(_of_file, named.files), *map(_of_problems, named.problems), *of_harness]
        if name := twice([task.name for task in found]):
            raise UserError(f"--tasks: two tasks are called {name}; rename a file, or leave one out")
    return found


def _of_file(name: str) -> TaskQuestions:
    if not storage.path(name).is_file():
        raise UserError(f"--tasks: {name}: no such file of questions (.jsonl, .json, .parquet); correct the name")
    file = question_files.read(name)
    return TaskQuestions(file.name, file.version, [_wording(item) for item in file.items])


def _of_problems(name: str) -> TaskQuestions:
    """Problems of programming, by their prompts; their right programs are the answers."""
    file = problem_files.read(name)
    wordings = [Wording((one.prompt,), (one.solution,) if one.solution else ()) for one in file.problems]
    return TaskQuestions(file.name, file.version, wordings)


def _wording(item: Item) -> Wording:
    """The texts by which a question is known. An instruction is one if there is nothing else: others share it."""
    return Wording(item.parts or (item.text or item.instruction,), item.answers)
