"""The rules of CONTRIBUTING.md that a program can hold: short functions and files, docstrings, no stray output."""

import ast
import functools
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tpullm").rglob("*.py"))
PRINTING_ALLOWED = ("tpullm/cli/", "tpullm/system/log.py")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by the name of its file."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in FILES}


def found(kind) -> list[tuple[str, ast.AST]]:
    """Every node of a kind, with the name of its file."""
    return [(name, node) for name, module in modules().items() for node in ast.walk(module) if isinstance(node, kind)]


def test_functions_and_files_are_short():
    lines = [(node.end_lineno - node.lineno + 1, name, node.name) for name, node in found(FUNCTION)]
    assert statistics.median(count for count, *_ in lines) <= 12
    assert [place for place in lines if place[0] > 80] == []
    assert [path for path in FILES if len(path.read_text("utf-8").splitlines()) > 500] == []


def test_what_is_public_has_a_docstring():
    places = [(name, node) for name, module in modules().items() for node in module.body]
    public = [(name, node) for name, node in places if isinstance(node, (*FUNCTION, ast.ClassDef))]
    without = [node for _, node in public if not ast.get_docstring(node) and "overload" not in str(decorators(node))]
    assert [node.name for node in without if not node.name.startswith("_")] == []
    assert [name for name, module in modules().items() if module.body and not ast.get_docstring(module)] == []


def decorators(node):
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def test_only_commands_print():
    calls = [(name, node.lineno) for name, node in found(ast.Call) if ast.unparse(node.func) == "print"]
    assert [place for place in calls if not place[0].startswith(PRINTING_ALLOWED)] == []


def test_no_error_is_swallowed():
    """`except: pass` and `except Exception: pass` hide a broken program; a named error may be expected."""
    handlers = [
        (name, node.lineno, node.type and ast.unparse(node.type), node) for name, node in found(ast.ExceptHandler)
    ]
    broad = [each for each in handlers if each[2] in (None, "Exception", "BaseException")]
    nothing = ast.Pass | ast.Continue
    assert [each[:3] for each in broad if all(isinstance(node, nothing) for node in each[3].body)] == []
