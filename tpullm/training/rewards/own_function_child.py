"""Calls the user's own reward: the process that `own_function.py` starts."""

import functools
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


def serve_rewards() -> None:
    """Answer requests until the pipe is closed: `load` a function once, and `score` a batch with it."""
    pipes, own, file = Pipes(prints=2), None, ""
    threading.Thread(target=pipes.end_with_parent, daemon=True).start()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the accelerator is the training's
    for kind, seconds, *given in pipes.requests():
        # The parent ends a call that takes too long; if the parent is gone too, this does, also in native code.
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
        if kind == "score":
            reply = score_answers(own, file, *given)
        else:
            file = given[0]
            try:
                own = own or load_own_function(*given)
                reply = ["loaded"]
            except BaseException as error:
                reply = ["refused", f"{describe_own_error(error, file)}; correct it"]
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipes.reply(json.dumps(reply))


def load_own_function(file: str, name: str, parameters: dict[str, Any]) -> Callable:
    """Import the file; the function with its parameters. Any error of the user's is raised."""
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
    return functools.partial(function, **parameters)


def score_answers(own: Callable, file: str, answers: list, prompts: list, fields: list) -> tuple[list[float], str]:
    """A finite number for each answer, or what is wrong."""
    try:
        returned = own(answers, prompts, fields)
    except BaseException as error:  # SystemExit too
        return [], f"raises {describe_own_error(error, file)}; correct it"
    try:
        values = list(returned)
    except TypeError:
        return [], f"returned a {type(returned).__name__}; return a list of {len(answers)} numbers"
    if len(values) != len(answers):
        return [], f"returned {len(values)} numbers for {len(answers)} answers; return one for each"
    # `item` is that of numpy, JAX and torch.
    values = [value.item() if hasattr(value, "item") and not isinstance(value, str) else value for value in values]
    for value in values:
        if not isinstance(value, int | float):
            return [], f"returned a {type(value).__name__}; return a number"
        if not math.isfinite(value):
            return [], f"returned {value}; return a finite number"
    return list(map(float, values)), ""


def describe_own_error(error: BaseException, file: str) -> str:
    """An error with the last line of the user's file that it came through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    lines += [error.lineno] if isinstance(error, SyntaxError) and error.filename == file else []
    return f"{type(error).__name__}: {error}{f' (line {lines[-1]})' if lines else ''}"
