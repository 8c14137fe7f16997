"""Scores an answer to a task of reasoning-gym: what an isolated process runs. It imports the package once.

Some families evaluate an answer as Python or as an expression of sympy, in the process that reports the score. So what
is evaluated meanwhile may compute and call functions of mathematics, and reach nothing else.
"""

import ast
import builtins
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import reasoning_gym  # noqa: F401  before the process is confined

from tpullm.data.examples.reasoning_tasks import dataset

_NODES = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Call)
_NODES += (ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)
_NODES += (ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
_BUILTINS = {"abs", "bool", "complex", "divmod", "float", "int", "len", "list", "max", "min", "pow", "range", "round"}
_BUILTINS |= {"set", "sorted", "str", "sum", "tuple", "False", "None", "True"}
_OF_SYMPY = "from sympy import *"  # with which sympy itself begins
_watch = {"on": False}


def score_reasoning(report: Callable[[float], None], task: dict[str, Any], answer: str) -> None:
    """Report the score of `answer`. The task is made again: not all of what it holds is JSON."""
    index = task.pop("index")
    made = dataset(**task)
    entry = made[index]
    with _only_mathematics():
        score = float(made.score_answer(answer, entry))
    report(score)


@contextlib.contextmanager
def _only_mathematics() -> Iterator[None]:
    _watch["on"] = True
    try:
        yield
    finally:
        _watch["on"] = False


def _check_evaluated(event: str, arguments: tuple) -> None:
    """Python's audit hook. Python's own library evaluates what it has made itself, or imports."""
    if event != "compile" or not _watch["on"]:
        return
    caller = sys._getframe(1).f_code.co_filename
    if caller.startswith((os.path.dirname(os.__file__), "<frozen importlib")) and "site-packages" not in caller:
        return
    source = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
    if source != _OF_SYMPY and not (isinstance(source, str) and _is_mathematics(source)):
        raise ValueError("an answer that evaluates more than mathematics")


def _is_mathematics(source: str) -> bool:
    """Whether this is one expression of numbers, texts, lists and calls of functions that reach nothing else."""
    nodes = [*ast.walk(ast.parse(source.strip(), mode="eval"))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    return (
        all(isinstance(node, _NODES) for node in nodes)
        and all(isinstance(function, ast.Name) for function in calls)
        and not any("__" in name or (hasattr(builtins, name) and name not in _BUILTINS) for name in names)
    )


sys.addaudithook(_check_evaluated)
