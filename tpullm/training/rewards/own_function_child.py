"""Calls the user's own reward: the process that `own_function.py` starts."""

import dataclasses
import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpullm.system.process.child import Pipes

GRACE_SECONDS = 5.0


class Wrong(Exception):
    """What the function returned is not a number for each answer; `number` is the answer, if it is one."""

    def __init__(self, number: int | None, why: str):
        super().__init__(why)
        self.number = number


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The function of a file, with its parameters."""

    file: str
    function: Callable
    parameters: dict[str, Any]

    def call(self, answers: list, prompts: list, fields: list) -> list[float]:
        """A number for each answer; `Wrong` if it raises or returns something else."""
        try:
            returned = self.function(answers, prompts, fields, **self.parameters)
        except BaseException as error:  # SystemExit too
            raise Wrong(None, f"raises {told(error, self.file)}; correct it") from None
        return numbers(returned, len(answers))


def serve() -> None:
    """Answer requests until the pipe is closed: `load` a function once, and `score` a batch with it."""
    pipes, own = Pipes(prints=2), None
    threading.Thread(target=pipes.end_with_parent, daemon=True).start()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the accelerator is the training's
    for kind, seconds, *given in pipes.requests():
        # The parent ends a call that takes too long; if the parent is gone too, this does, also in native code.
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
        if kind == "score":
            reply = scored(own, *given)
        else:
            try:
                own = own or loaded(*given)
                reply = ["loaded"]
            except BaseException as error:
                reply = ["refused", f"{told(error, given[0])}; correct it"]
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipes.reply(json.dumps(reply))


def loaded(file: str, name: str, parameters: dict[str, Any]) -> Loaded:
    """Import the file; any error of the user's is raised."""
    sys.path.insert(0, str(Path(file).parent))  # as if the file were run
    specification = importlib.util.spec_from_file_location(f"own_reward_{Path(file).stem}", file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise LookupError(f"no function {name} is in it (it has {', '.join(known) or 'none'})")
    inspect.signature(function).bind([], [], [], **parameters)  # a TypeError says which parameter is wrong
    return Loaded(file, function, parameters)


def scored(own: Loaded, answers: list, prompts: list, fields: list) -> list:
    """The scores, or what is wrong and with which answer, as the parent reads it."""
    try:
        return ["scores", own.call(answers, prompts, fields)]
    except Wrong as error:
        wrong = error
    if wrong.number is None:  # the first answer with which alone it goes wrong, if there is one
        for number, example in enumerate(zip(answers, prompts, fields, strict=True)):
            try:
                own.call(*([part] for part in example))
            except Wrong as alone:
                return ["wrong", number, str(alone)]
    return ["wrong", wrong.number, str(wrong)]


def numbers(returned: Any, count: int) -> list[float]:
    """`returned` as `count` finite numbers; `Wrong` if it is something else."""
    try:
        values = list(returned)
    except TypeError:
        raise Wrong(None, f"returned a {type(returned).__name__}; return a list of {count} numbers") from None
    if len(values) != count:
        raise Wrong(None, f"returned {len(values)} numbers for {count} answers; return one for each")
    return [_finite(number, value) for number, value in enumerate(values)]


def _finite(number: int, value: Any) -> float:
    value = value.item() if hasattr(value, "item") and not isinstance(value, str) else value  # of numpy, JAX, torch
    if not isinstance(value, int | float):
        raise Wrong(number, f"returned a {type(value).__name__}; return a number")
    if not math.isfinite(value):
        raise Wrong(number, f"returned {value}; return a finite number")
    return float(value)


def told(error: BaseException, file: str) -> str:
    """An error with the last line of the user's file that it came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == file else []
    return f"{type(error).__name__}: {error}{f' (line {lines[-1]})' if lines else ''}"
