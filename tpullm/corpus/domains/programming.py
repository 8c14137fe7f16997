"""Programming: questions about the library of the running Python, and functions to complete.

The documents are those of a `python` source (`python_library.py`), with the docstrings that most answers are in. A
function of the library is held out with all questions about it: tuning never asks about it.

Functions to complete, in the form of HumanEval (Chen et al. 2021): a signature and a docstring → the body.

A function combines which values it takes, what it makes of each, and what it returns: "the sum of the squares of the
even numbers". Held out are combinations that tuning never asks for, though it has each part. An answer is right if its
function passes the tests, whatever its text is. The tests are the results of the right function on fixed inputs, and
two functions that they do not tell apart are both left out.

The library's own functions are not asked for: they need the rest of their module, no inputs are known for them, and
they differ between versions of Python.

The documentation and the source code of the running Python: text that every machine has (PSF licence).
"""

import ast
import inspect
import itertools
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.question import Question, form, some
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Part:
    """A part of a function: English words, Japanese words, code, and its word in the function's name."""

    english: str
    japanese: str
    code: str
    name: str = ""


@dataclass(frozen=True)
class Family:
    """Functions of one argument: all combinations of a choice, a change and a result.

    Args:
        argument: the name of the argument.
        each: the name of one value, in code.
        values: code for all values.
        choices: which values it takes; the code is a condition, or "" for all.
        changes: what it makes of each value; the code is an expression.
        results: what it returns; the code has `{values}`, a generator without parentheses.
        inputs: the arguments of the tests. The first makes the example in the docstring.
    """

    argument: str
    each: str
    values: str
    choices: tuple[Part, ...]
    changes: tuple[Part, ...]
    results: tuple[Part, ...]
    inputs: tuple[object, ...]


NUMBERS = Family(
    "numbers",
    "n",
    "numbers",
    (
        Part("the numbers", "数", "", "numbers"),
        Part("the even numbers", "偶数", "n % 2 == 0", "even"),
        Part("the odd numbers", "奇数", "n % 2 == 1", "odd"),
        Part("the positive numbers", "正の数", "n > 0", "positive"),
        Part("the negative numbers", "負の数", "n < 0", "negative"),
        Part("the multiples of 3", "3の倍数", "n % 3 == 0", "threes"),
        Part("the multiples of 5", "5の倍数", "n % 5 == 0", "fives"),
        Part("the numbers above 4", "4より大きい数", "n > 4", "large"),
        Part("the numbers below 4", "4より小さい数", "n < 4", "small"),
        Part("the numbers from 1 to 9", "1から9までの数", "1 <= n <= 9", "digits"),
    ),
    (
        Part("", "", "n"),
        Part("the squares of", "二乗", "n * n", "squares"),
        Part("the cubes of", "三乗", "n ** 3", "cubes"),
        Part("the doubles of", "二倍", "n * 2", "doubles"),
        Part("the opposites of", "符号を変えた値", "-n", "opposites"),
        Part("the absolute values of", "絶対値", "abs(n)", "sizes"),
        Part("the successors of", "次の整数", "n + 1", "successors"),
        Part("the remainders by 7 of", "7で割った余り", "n % 7", "remainders"),
    ),
    (
        Part("a list of", "リスト", "[{values}]", "all"),
        Part("a sorted list of", "昇順のリスト", "sorted({values})", "ascending"),
        Part("the set of", "集合", "set({values})", "distinct"),
        Part("the sum of", "合計", "sum({values})", "total"),
        Part("the largest of", "最大値", "max({values})", "largest"),
        Part("the smallest of", "最小値", "min({values})", "smallest"),
    ),
    (
        [6, -5, 3, 10],
        [5, 8, -3, 10, 6, -4, 1, 8],
        [4, 15, -9, 3, 2, -10, 7],
        [-6, 30, 9, -15, 5, 12, -1, -2],
        [1, -5, 6, 45, -8, -30],
    ),
)
WORDS = Family(
    "text",
    "word",
    "text.split()",
    (
        Part("the words", "単語", "", "words"),
        Part("the words of more than 4 letters", "4文字より長い単語", "len(word) > 4", "long"),
        Part("the words of less than 4 letters", "4文字より短い単語", "len(word) < 4", "short"),
        Part("the words that begin with b", "bで始まる単語", 'word.startswith("b")', "begin_b"),
        Part("the words that end with e", "eで終わる単語", 'word.endswith("e")', "end_e"),
        Part("the words that contain a", "aを含む単語", '"a" in word', "with_a"),
    ),
    (
        Part("", "", "word"),
        Part("the upper case of", "大文字にしたもの", "word.upper()", "upper"),
        Part("the first letters of", "最初の文字", "word[0]", "first"),
        Part("the last letters of", "最後の文字", "word[-1]", "last"),
        Part("the reverses of", "逆順にしたもの", "word[::-1]", "reversed"),
        Part("the lengths of", "長さ", "len(word)", "lengths"),
    ),
    (
        Part("a list of", "リスト", "[{values}]", "all"),
        Part("a sorted list of", "昇順のリスト", "sorted({values})", "ascending"),
        Part("the set of", "集合", "set({values})", "distinct"),
        Part("the largest of", "最大値", "max({values})", "largest"),
        Part("the smallest of", "最小値", "min({values})", "smallest"),
    ),
    (
        "a brave bee",
        "the big blue apple is a bit bare",
        "brave cats be at the same old gate bat",
        "one bad bee ate some late bread and a tree",
        "baboon tie bone an able mango sea be banana",
    ),
)
FAMILIES = (NUMBERS, WORDS)
JAPANESE = "この関数の本体を書いてください。"
FORMS = ("Complete this function.", "Write the body of this function.", "What is missing here?", JAPANESE)


def completions() -> list[Question]:
    """A question for each combination of parts, in a fixed order. Combinations with the same results are left out."""
    made = [(_question(family, *parts), _results(family, *parts)) for family in FAMILIES for parts in _parts(family)]
    often = Counter(results for _, results in made)
    return [question for question, results in made if often[results] == 1]


def _parts(family: Family) -> Iterator[tuple[Part, Part, Part]]:
    return itertools.product(family.choices, family.changes, family.results)


def _body(family: Family, choice: Part, change: Part, result: Part) -> str:
    condition = f" if {choice.code}" if choice.code else ""
    values = f"{change.code} for {family.each} in {family.values}{condition}"
    return f"return {result.code.format(values=values)}"


def _results(family: Family, *parts: Part) -> tuple[str, ...]:
    """What the right function returns for each input, as Python writes it."""
    expression = _body(family, *parts).removeprefix("return ")
    function = eval(f"lambda {family.argument}: {expression}")  # our own words, all of them in this file
    return tuple(_literal(function(given)) for given in family.inputs)


def _literal(value: object) -> str:
    """A value as Python writes it; a set in sorted order, since Python's own order differs from run to run."""
    return f"{{{', '.join(map(repr, sorted(value)))}}}" if isinstance(value, set) else repr(value)


def _question(family: Family, choice: Part, change: Part, result: Part) -> Question:
    name = "_".join(part.name for part in (result, change, choice) if part.name)
    results = _results(family, choice, change, result)
    calls = [f"{name}({given!r})" for given in family.inputs]
    asked = form(FORMS, name)
    if asked == JAPANESE:
        what = "の".join(part.japanese for part in (choice, change, result) if part.japanese)
        says = f"{family.argument}の{what}を返す。"
    else:
        what = " ".join(part.english for part in (result, change, choice) if part.english)
        says = f"Return {what} in {family.argument}."
    prompt = f'def {name}({family.argument}):\n    """{says}\n\n    >>> {calls[0]}\n    {results[0]}\n    """\n'
    tests = "".join(f"assert {call} == {value}\n" for call, value in zip(calls, results, strict=True))
    fields = {"prompt": prompt, "tests": tests}
    return Question(f"{asked}\n\n{prompt}", (_body(family, choice, change, result),), "completion", name, fields)


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
        raise UserError(
            f"corpus.sources: path {part!r} of a python source is not documentation, code or nothing (both)"
        )
    library = folder()
    modules = [
        path
        for path in sorted(library.rglob("*.py"))
        if not SKIPPED.intersection(path.relative_to(library).parts) and "config-" not in path.parent.name
    ]
    if not modules:
        raise UserError(f"corpus.sources: {library} holds no source of this Python's library; remove the python source")
    return [path for path in [library / TOPICS] if path.exists() and part != CODE] + modules


def documents(path: Path, part: str) -> Iterator[Raw]:
    """The documents of one file of `files(part)`: its docstrings as English, and its source without docstrings as code.

    No docstring is in both: else held-out documentation would be trained on as code.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if path == folder() / TOPICS:
        yield from (Raw(topic, "en") for topic in _topics(text))
        return
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError):  # lib2to3 and the like keep files for other Pythons
        yield Raw(dropped="not Python")
        return
    docstrings = _docstrings(module, module_name(path))
    if part != CODE and docstrings:
        yield Raw(docstrings, "en")
    if part != DOCUMENTATION:
        yield Raw(_without_docstrings(module, text), "code")


def _topics(source: str) -> list[str]:
    """The pages of `help()`, as they are kept in `pydoc_data/topics.py`: one dict literal."""
    value = next(node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return [text.strip() + "\n" for _, text in sorted(ast.literal_eval(value).items())]


def module_name(path: Path) -> str:
    """The name of the module of a file of the library."""
    parts = path.relative_to(folder()).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _docstrings(module: ast.Module, name: str) -> str:
    """The docstrings of a module, in its order, each under the name of its module, class or function."""
    parts = []
    for scope, title in _scopes(module, name):
        docstring = ast.get_docstring(scope)
        if docstring:
            parts.append(f"{title}\n\n{inspect.cleandoc(docstring)}")
    return "\n\n".join(parts) + "\n" if parts else ""


def _scopes(scope: Scope, title: str, prefix: str = "") -> Iterator[tuple[Scope, str]]:
    """`scope` and the classes and functions in it, the outer ones first, each with its name and arguments."""
    yield scope, title
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _scopes(node, f"class {prefix}{node.name}", f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, f"{prefix}{node.name}({ast.unparse(node.args)})"


def _with_body(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and the compound statements in it. `ast.walk` visits expressions too and takes seven times as long."""
    yield node
    for branch in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, branch, ()):
            if hasattr(child, "body"):
                yield from _with_body(child)


def _without_docstrings(module: ast.Module, text: str) -> str:
    """The source without the lines of its docstrings. A body that was only a docstring becomes `pass`."""
    lines = text.splitlines(keepends=True)
    for node in _with_body(module):
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
    functions = [function for path in files(CODE) for function in read(path)]
    return questions_about(functions) + completions()


def read(path: Path) -> list[Function]:
    """The public functions and classes at the top of a module; none if the module is private or can't be parsed."""
    module = module_name(path)
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
