"""The questions that `collect` looks for in the corpus: of the tasks of `corpus.leaks`."""

from collections.abc import Sequence

from tpullm import storage
from tpullm.corpus.question_windows import TaskQuestions, Wording
from tpullm.errors import UserError
from tpullm.measuring import harness_tasks, problem_files, question_files
from tpullm.measuring.items import Item

KEY = "corpus.leaks.tasks"


def read(names: Sequence[str]) -> list[TaskQuestions]:
    """The questions of some tasks: those of files, then those of tasks of the harness.

    Raises:
        UserError: a file is not there or has a mistake, a task is not known, or two have one name.
    """
    problems = [name for name in names if problem_files.is_problem_file(name)]
    files = [name for name in names if question_files.is_question_file(name) and name not in problems]
    others = [name for name in names if name not in (*problems, *files)]
    of_harness = harness_tasks.questions(others, harness_tasks.known(others, KEY), KEY) if others else []
    found = [*map(_of_file, files), *map(_of_problems, problems), *of_harness]
    called = [task.name for task in found]
    if twice := next((name for name in called if called.count(name) > 1), ""):
        raise UserError(f"{KEY}: two tasks are called {twice}; rename a file, or leave one out")
    return found


def _of_file(name: str) -> TaskQuestions:
    if not storage.path(name).is_file():
        raise UserError(f"{KEY}: {name}: no such file of questions (.jsonl, .json, .parquet); correct the name")
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
