"""Which words that name tasks (after `--tasks`, in a recipe) name what. It imports no JAX."""

from collections.abc import Sequence
from typing import NamedTuple

from tpullm.measuring.problem_files import is_problem_file
from tpullm.measuring.question_files import is_question_file


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
