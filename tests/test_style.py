"""The rules of CONTRIBUTING.md that a program can hold: short functions and files, docstrings, no stray output."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tpullm").rglob("*.py"))
LONG_FUNCTIONS_ALLOWED = {"tpullm/training/loop.py"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, FUNCTION)]


def lines_of(function):
    return function.end_lineno - function.lineno + 1


def test_half_of_the_functions_fit_in_twelve_lines():
    lengths = [lines_of(function) for path in FILES for function in functions(path)]
    assert statistics.median(lengths) <= 12


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_over_80_lines(path):
    if name_of(path) in LONG_FUNCTIONS_ALLOWED:
        pytest.skip("the training loop reads better whole")
    assert [(function.name, lines_of(function)) for function in functions(path) if lines_of(function) > 80] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_over_500_lines(path):
    assert len(path.read_text("utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_has_a_docstring(path):
    module = ast.parse(path.read_text("utf-8"))
    public = [
        node
        for node in module.body
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_") and not is_overload(node)
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []
    assert ast.get_docstring(module) or not module.body


def is_overload(node):
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_commands_print(path):
    if name_of(path).startswith(("tpullm/commands/", "tpullm/cli.py", "tpullm/log.py")):
        pytest.skip("this is where output belongs")
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_error_is_swallowed(path):
    """`except: pass` and `except Exception: pass` hide a broken program; a named error may be expected."""
    handlers = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ExceptHandler)]
    assert [handler.lineno for handler in handlers if is_broad(handler) and does_nothing(handler)] == []


def is_broad(handler):
    return handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"}


def does_nothing(handler):
    return all(isinstance(node, ast.Pass | ast.Continue) for node in handler.body)
