"""The rules of CONTRIBUTING.md that a program can hold: short functions and files, docstrings, no stray output."""

import ast
import functools
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tpullm").rglob("*.py"))
PRINTING_ALLOWED = ("tpullm/cli/", "tpullm/system/log.py")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by the name of its file."""
    return {name_of(path): ast.parse(path.read_text("utf-8")) for path in FILES}


def found(kind) -> list[tuple[str, ast.AST]]:
    """Every node of a kind, with the name of its file."""
    return [(name, node) for name, module in modules().items() for node in ast.walk(module) if isinstance(node, kind)]


def lines_of(function):
    return function.end_lineno - function.lineno + 1


def test_half_of_the_functions_fit_in_twelve_lines():
    assert statistics.median(lines_of(function) for _, function in found(FUNCTION)) <= 12


def test_no_function_over_80_lines():
    assert [(name, node.name, lines_of(node)) for name, node in found(FUNCTION) if lines_of(node) > 80] == []


def test_no_file_over_500_lines():
    assert [name_of(path) for path in FILES if len(path.read_text("utf-8").splitlines()) > 500] == []


def test_what_is_public_has_a_docstring():
    public = [
        (name, node)
        for name, module in modules().items()
        for node in module.body
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_") and not is_overload(node)
    ]
    assert [(name, node.name) for name, node in public if not ast.get_docstring(node)] == []
    assert [name for name, module in modules().items() if module.body and not ast.get_docstring(module)] == []


def is_overload(node):
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def test_only_commands_print():
    prints = [(name, node.lineno) for name, node in found(ast.Call) if is_print(node)]
    assert [place for place in prints if not place[0].startswith(PRINTING_ALLOWED)] == []


def is_print(call):
    return isinstance(call.func, ast.Name) and call.func.id == "print"


def test_no_error_is_swallowed():
    """`except: pass` and `except Exception: pass` hide a broken program; a named error may be expected."""
    handlers = found(ast.ExceptHandler)
    assert [(name, node.lineno) for name, node in handlers if is_broad(node) and does_nothing(node)] == []


def is_broad(handler):
    return handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"}


def does_nothing(handler):
    return all(isinstance(node, ast.Pass | ast.Continue) for node in handler.body)
