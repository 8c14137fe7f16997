"""Programming: the library of the running Python (PSF licence), and functions to complete.

Documents, those of a `python` source: the docstrings of the library and the pages of `help()` as English, and its
source without docstrings as code. Questions ask about its functions, and most answers are in the docstrings. A function
is held out with all questions about it: tuning never asks about it.

Functions to complete have the form of HumanEval (Chen et al. 2021): a signature and a docstring → the body. A function
combines which values it takes, what it makes of each, and what it returns: "the sum of the squares of the even
numbers". Held out are combinations that tuning never asks for, though it has each part. An answer is right if its
function passes the tests, whatever its text is. The tests are the results of the right function on fixed inputs, and
two functions that they do not tell apart are both left out. The library's own functions are not asked for: they need
the rest of their module, no inputs are known for them, and they differ between versions of Python.
"""

import ast
import inspect
import itertools
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tpullm.corpus.document import Raw
from tpullm.corpus.domains.packages import wording
from tpullm.corpus.question import Question, ask, form_by_hash
from tpullm.system.errors import UserError

DOCUMENTATION, CODE = "documentation", "code"
TOPICS = Path("pydoc_data", "topics.py")
# Folders that are not the library itself: tests, other packages, programs, tables.
SKIPPED = {
    "__pycache__", "_pyrepl", "test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "lib2to3",
    "turtledemo", "encodings", "pydoc_data", "ensurepip", "lib-dynload",
}  # fmt: skip
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def folder() -> Path:
    """Where the standard library is."""
    return Path(sysconfig.get_paths()["stdlib"])


def files(part: str) -> list[Path]:
    """The files of the library to read for `documentation`, `code` or both (""), in a fixed order."""
    if part not in ("", DOCUMENTATION, CODE):
        known = "documentation, code or nothing (both)"
        raise UserError(f"corpus.sources: path {part!r} of a python source is not {known}")
    library = folder()
    paths = [path for path in sorted(library.rglob("*.py")) if "config-" not in path.parent.name]
    modules = [path for path in paths if SKIPPED.isdisjoint(path.relative_to(library).parts)]
    if not modules:
        raise UserError(f"corpus.sources: {library} holds no source of this Python's library; remove the python source")
    return [path for path in [library / TOPICS] if path.exists() and part != CODE] + modules


def documents(path: Path, part: str) -> Iterator[Raw]:
    """The documents of one file of `files(part)`: its docstrings as English, and its source without docstrings as code.

    No docstring is in both: else held-out documentation would be trained on as code.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if path == folder() / TOPICS:  # the pages of `help()`: one dict literal
        pages = next(node.value for node in ast.parse(text).body if isinstance(node, ast.Assign))
        yield from (Raw(page.strip() + "\n", "en") for _, page in sorted(ast.literal_eval(pages).items()))
        return
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError):  # lib2to3 and the like keep files for other Pythons
        yield Raw(dropped="not Python")
        return
    described = [(title, ast.get_docstring(scope)) for scope, title in _scopes_with_titles(module, module_name(path))]
    docstrings = [f"{title}\n\n{inspect.cleandoc(docstring)}" for title, docstring in described if docstring]
    if part != CODE and docstrings:
        yield Raw("\n\n".join(docstrings) + "\n", "en")
    if part != DOCUMENTATION:
        yield Raw(_without_docstrings(module, text), "code")


def module_name(path: Path) -> str:
    """The name of the module of a file of the library."""
    parts = path.relative_to(folder()).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _scopes_with_titles(scope: Scope, title: str, prefix: str = "") -> Iterator[tuple[Scope, str]]:
    """`scope` and the classes and functions in it, the outer ones first, each with its name and arguments."""
    yield scope, title
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _scopes_with_titles(node, f"class {prefix}{node.name}", f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, f"{prefix}{node.name}({ast.unparse(node.args)})"


def _without_docstrings(module: ast.Module, text: str) -> str:
    """The source without the lines of its docstrings. A body that was only a docstring becomes `pass`."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(module):
        if not isinstance(node, Scope) or ast.get_docstring(node) is None:
            continue
        docstring = node.body[0]
        first, last = docstring.lineno - 1, docstring.end_lineno
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        indent = lines[first][: docstring.col_offset]
        if indent.strip():  # `def f(): "text"` on one line
            continue
        lines[first:last] = ([f"{indent}pass\n"] if alone else [""]) + [""] * (last - first - 1)
    return "".join(lines)


MOST = 500  # questions of a kind: no more than of functions to complete, from which a small model learns most
LENGTHS = range(15, 121)  # characters of a sentence that says what a function does


class Function(NamedTuple):
    """A public function or class of the library.

    Args:
        module, name: of it.
        arguments: as the documents have them; "" of a class, and where a decorator may change them.
        purpose: the first sentence of its docstring, on one line; "" if it has none.
    """

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
    functions = [function for path in files(CODE) for function in read(path)]
    return questions_about(functions) + completions()


def read(path: Path) -> list[Function]:
    """The public functions and classes at the top of a module; none if the module is private or can't be parsed."""
    module = module_name(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in tree.body if not any(part.startswith("_") for part in module.split(".")) else ():
        if isinstance(node, Scope) and not node.name.startswith("_"):
            is_plain = not isinstance(node, ast.ClassDef) and not node.decorator_list
            paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            purpose = re.split(r"(?<=[.])\s", paragraph)[0]
            found.append(Function(module, node.name, ast.unparse(node.args) if is_plain else "", purpose))
    return found


def questions_about(functions: Sequence[Function]) -> list[Question]:
    """The questions about these functions and classes, in a fixed order. None is about what is defined twice.

    The module is asked for if that name is in no other one; the rest, if the first sentence of the docstring is not too
    long and no other function has it.
    """
    defined = Counter(function.path for function in functions)
    once = [function for function in functions if defined[function.path] == 1]
    named = Counter(function.name for function in once)
    said = Counter(function.purpose.lower() for function in once)
    plain = [one for one in once if len(one.purpose) in LENGTHS and one.purpose.isascii()]
    described = [one for one in plain if said[one.purpose.lower()] == 1]
    called = [one for one in described if 0 < len(one.arguments) <= 60]
    facts = {
        "module": ((one.path, one.name, one.module) for one in once if named[one.name] == 1),
        "purpose": ((one.path, one.path, one.purpose) for one in described),
        "function": ((one.path, one.purpose, one.path) for one in described),
        "arguments": ((one.path, one.path, one.arguments) for one in called),
    }
    return ask(facts, wording("programming")["forms"], MOST)


class Part(NamedTuple):
    """A part of a function: English words, Japanese words, code, and its word in the function's name."""

    english: str
    japanese: str
    code: str
    name: str


def completions() -> list[Question]:
    """A question for each combination of parts, in a fixed order. Combinations with the same results are left out."""
    made = []
    for family in wording("programming")["families"]:
        parts = [[Part(*part) for part in family[kind]] for kind in ("choices", "changes", "results")]
        argument = family["argument"]
        for choice, change, result in itertools.product(*parts):
            condition = f" if {choice.code}" if choice.code else ""
            values = f"{change.code} for {family['each']} in {family['values']}{condition}"
            expression = result.code.format(values=values)
            function = eval(f"lambda {argument}: {expression}")  # our own words, all of them in the YAML file
            results = tuple(_python_literal(function(given)) for given in family["inputs"])
            name = "_".join(part.name for part in (result, change, choice) if part.name)
            calls = [f"{name}({given!r})" for given in family["inputs"]]
            asked = form_by_hash(wording("programming")["complete"], name)
            if asked.isascii():
                what = " ".join(part.english for part in (result, change, choice) if part.english)
                says = f"Return {what} in {argument}."
            else:
                what = "の".join(part.japanese for part in (choice, change, result) if part.japanese)
                says = f"{argument}の{what}を返す。"
            prompt = f'def {name}({argument}):\n    """{says}\n\n    >>> {calls[0]}\n    {results[0]}\n    """\n'
            tests = "".join(f"assert {call} == {value}\n" for call, value in zip(calls, results, strict=True))
            answer, fields = (f"return {expression}",), {"prompt": prompt, "tests": tests}
            made.append((Question(f"{asked}\n\n{prompt}", answer, "completion", name, fields), results))
    often = Counter(results for _, results in made)
    return [question for question, results in made if often[results] == 1]


def _python_literal(value: object) -> str:
    """A value as Python writes it; a set in sorted order, since Python's own order differs from run to run."""
    return f"{{{', '.join(map(repr, sorted(value)))}}}" if isinstance(value, set) else repr(value)
