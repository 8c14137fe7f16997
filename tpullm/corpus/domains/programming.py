"""Programming: questions about the library of the running Python, and functions to complete.

The documents are those of a `python` source (`python_library.py`), with the docstrings that most answers are in. A
function of the library is held out with all questions about it: tuning never asks about it.
"""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpullm.corpus import python_library
from tpullm.corpus.domains import completions
from tpullm.corpus.question import Question, form, some

MOST = 500  # questions of a kind: no more than of functions to complete, from which a small model learns most
LENGTHS = range(15, 121)  # characters of a sentence that says what a function does
LONGEST_ARGUMENTS = 60  # characters


@dataclass(frozen=True)
class Function:
    """A function of the library: its module, name, arguments, and the first sentence of its docstring ("": none)."""

    module: str
    name: str
    arguments: str
    purpose: str

    @property
    def path(self) -> str:
        """Its name as a program writes it."""
        return f"{self.module}.{self.name}"


def questions() -> list[Question]:
    """Every question, in a fixed order."""
    functions = [function for path in python_library.files(python_library.CODE) for function in read(path)]
    return questions_about(functions) + completions.questions()


def read(path: Path) -> list[Function]:
    """The public functions and classes at the top of a module; none if the module is private or can't be parsed."""
    module = python_library.module_name(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError):
        return []
    if any(part.startswith("_") for part in module.split(".")):
        return []
    return [
        Function(module, node.name, _arguments(node), _purpose(ast.get_docstring(node) or ""))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def _arguments(node: ast.AST) -> str:
    """The arguments of a function as the documents have them; "" for a class, and where a decorator may change them."""
    return "" if isinstance(node, ast.ClassDef) or node.decorator_list else ast.unparse(node.args)


def _purpose(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = inspect.cleandoc(docstring).partition("\n\n")[0]
    return re.split(r"(?<=[.])\s", " ".join(paragraph.split()))[0]


def questions_about(functions: Sequence[Function]) -> list[Question]:
    """The questions about these functions and classes, in a fixed order. None is about what is defined twice."""
    often = Counter(function.path for function in functions)
    once = [function for function in functions if often[function.path] == 1]
    found = []
    for kind in (_modules, _purposes, _functions, _argument_lists):
        found += some(kind(once), MOST)
    return found


def _modules(functions: Sequence[Function]) -> Iterator[Question]:
    """The module of a name that one module alone defines."""
    forms = (
        "Which module of Python's library defines `{}`?",
        "In which module of Python's library is `{}`?",
        "`{}` is in which module of Python's library?",
        "Pythonの標準ライブラリで`{}`を定義しているモジュールはどれですか。",
    )
    often = Counter(function.name for function in functions)
    for function in functions:
        if often[function.name] == 1:
            asked = form(forms, function.path).format(function.name)
            yield Question(asked, (function.module,), "module", function.path)


def _purposes(functions: Iterable[Function]) -> Iterator[Question]:
    forms = ("What does `{}` do?", "What is `{}` for?", "Describe `{}` in one sentence.")
    for function in _described(functions):
        asked = form(forms, function.path).format(function.path)
        yield Question(asked, (function.purpose,), "purpose", function.path)


def _functions(functions: Iterable[Function]) -> Iterator[Question]:
    forms = (
        "What in Python's library is this: “{}”",
        "Name this part of Python's library: “{}”",
        "Which function or class of Python's library is described so: “{}”",
    )
    for function in _described(functions):
        asked = form(forms, function.path).format(function.purpose)
        yield Question(asked, (function.path,), "function", function.path)


def _described(functions: Iterable[Function]) -> list[Function]:
    """Those with a docstring whose first sentence is not too long, and no other has it."""
    often = Counter(function.purpose.lower() for function in functions)
    return [
        function
        for function in functions
        if len(function.purpose) in LENGTHS and function.purpose.isascii() and often[function.purpose.lower()] == 1
    ]


def _argument_lists(functions: Iterable[Function]) -> Iterator[Question]:
    forms = (
        "What are the arguments of `{}`?",
        "Which arguments does `{}` take?",
        "How is `{}` called: with which arguments?",
        "`{}`の引数は何ですか。",
    )
    for function in _described(functions):
        if 0 < len(function.arguments) <= LONGEST_ARGUMENTS:
            asked = form(forms, function.path).format(function.path)
            yield Question(asked, (function.arguments,), "arguments", function.path)
