"""A reward of the user's own: a function in a file, called in a process of its own, which it may crash or block."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.log import one_line
from tpullm.system.process.child import Child, Ended, NoAnswer, TooLong, TooMuch
from tpullm.training.rewards.scorer import Example

START_SECONDS = 120  # of the child, with what the file imports


class OwnFunction:
    """`path/to/file.py:function`, called as `function(answers, prompts, fields, **parameters)`.

    It returns one finite number for each answer. The file is imported once, in a process with the user's environment,
    and what it prints goes to stderr.

    Args:
        where: the file and the function.
        seconds: for one call, by the clock.
        processes: more than one share the answers of a batch, so each answer has to be scored by itself.
        parameters: for the function.
    """

    def __init__(self, where: str, seconds: float, processes: int, parameters: dict[str, Any]):
        file, _, name = where.rpartition(":")
        if not file or not name.isidentifier():
            raise UserError(f"function: {where} is not FILE.py:FUNCTION; write rewards.py:score, say")
        if not Path(file).is_file():
            raise UserError(f"function: {file}: no such file; give the path of a Python file")
        if not (isinstance(seconds, int | float) and seconds > 0 and isinstance(processes, int) and processes > 0):
            raise UserError(f"seconds {seconds}, processes {processes}: give more than 0 seconds, and 1 or more")
        self._order = [str(Path(file).absolute()), name, parameters]
        self._where, self._seconds = where, seconds
        self._children = [
            Child("tpullm.training.rewards.own_function_child:serve_rewards", foreign=False) for _ in range(processes)
        ]
        self._load(self._children[0])

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`."""
        size = math.ceil(len(examples) / len(self._children)) or 1
        parts = [examples[begin : begin + size] for begin in range(0, len(examples), size)]
        with ThreadPoolExecutor(len(self._children)) as threads:
            calls = [threads.submit(self._call, *work) for work in zip(self._children, parts, strict=False)]
            try:
                return [score for call in calls for score in call.result()]
            except BaseException:  # an error in one part, or Ctrl-C: the others are not waited for
                self.close()
                raise

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()

    def _call(self, child: Child, examples: Sequence[Example]) -> list[float]:
        """The scores; `UserError` names the first example with which alone it goes wrong too, if there is one.

        Twice the time of a call is spent on looking for it.
        """
        scores, problem = self._ask(child, examples)
        if not problem:
            return scores
        deadline = time.monotonic() + 2 * self._seconds
        for example in examples:
            if time.monotonic() > deadline:
                break
            if alone := self._ask(child, [example])[1]:
                raise UserError(f"{self._where}: {example.where}: {one_line(alone)}")
        raise UserError(f"{self._where}: {one_line(problem)}")

    def _load(self, child: Child) -> None:
        """Have the child import the file, if it has not yet."""
        try:
            reply = child.ask(["load", START_SECONDS, *self._order], START_SECONDS)
        except Ended as end:
            raise UserError(f"function: {self._where}: {_how_ended(end, START_SECONDS)} while it is imported") from None
        if reply != ["loaded"]:
            self.close()
            raise UserError(f"function: {self._where}: {reply[1]}")

    def _ask(self, child: Child, examples: Sequence[Example]) -> tuple[list[float], str]:
        """The scores, or what is wrong."""
        batch = [[getattr(example, name) for example in examples] for name in ("answer", "prompt", "fields")]
        self._load(child)
        try:
            return child.ask(["score", self._seconds, *batch], self._seconds)
        except Ended as end:
            how = _how_ended(end, self._seconds)
            if len(examples) == 1:
                return [], f"{how}; correct it, or raise `seconds`"
            more = "make it faster, raise `seconds`, or share the answers by `processes`"
            return [], f"{len(examples)} answers: {how}; {more}"


def _how_ended(end: Ended, seconds: float) -> str:
    if isinstance(end, TooLong):
        return f"takes more than {seconds:g} s"
    if isinstance(end, TooMuch | NoAnswer):
        return "gives no answer that can be read"
    return f"ends its process ({f'signal {-end.code}' if (end.code or 0) < 0 else f'exit code {end.code}'})"
