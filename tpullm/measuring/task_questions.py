"""The questions that `collect` looks for in the corpus: of the tasks of `corpus.leaks`."""

from collections.abc import Sequence

from tpullm import storage
from tpullm.corpus.question_windows import Question, TaskQuestions
from tpullm.errors import UserError
from tpullm.measuring import question_files
from tpullm.measuring.items import Item

KEY = "corpus.leaks.tasks"


def read(names: Sequence[str]) -> list[TaskQuestions]:
    """The questions of some files, in the order of the files.

    Raises:
        UserError: a file is not there or has a mistake, or two have one name.
    """
    found: list[TaskQuestions] = []
    for name in names:
        if not question_files.is_question_file(name) or not storage.path(name).is_file():
            raise UserError(f"{KEY}: {name}: no such file of questions (.jsonl, .json, .parquet); correct the name")
        file = question_files.read(name)
        if any(task.name == file.name for task in found):
            raise UserError(f"{KEY}: two files are called {file.name}; rename one, or leave it out")
        found.append(TaskQuestions(file.name, file.version, [_question(item) for item in file.items]))
    return found


def _question(item: Item) -> Question:
    """The texts by which a question is known. An instruction is one if there is nothing else: others share it."""
    return Question(item.parts or (item.text or item.instruction,), item.answers)
