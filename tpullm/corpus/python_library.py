"""The documentation and the source code of the running Python: text that every machine has (PSF licence)."""

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.errors import UserError

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
