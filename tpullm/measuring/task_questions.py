"""The questions that `collect` looks for in the corpus: of the tasks of `corpus.leaks`."""

from collections.abc import Sequence

from tpullm import storage
from tpullm.corpus.question_windows import TaskQuestions, Wording
from tpullm.errors import UserError
from tpullm.measuring import harness_tasks, problem_files, question_files
from tpullm.measuring.items import Item
from tpullm.measuring.recipe_tasks import keys_for_options
from tpullm.measuring.task_words import sorted_words, twice

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
