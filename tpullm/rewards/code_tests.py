"""The reward `code`: a Python program passes its tests, each program in a process that can do little else."""

import re
from collections.abc import Callable, Sequence

from tpullm.errors import UserError
from tpullm.process.isolated import Isolated
from tpullm.rewards.scorer import Example

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


class CodeTests:
    """The share of the tests that pass, in their order, in one process; 0 if the program itself raises.

    The field `tests` is a list of Python texts, such as `assert add(1, 2) == 3`. The program is the answer, or its
    fenced blocks in Python one after the other. If there is a field `before` (imports, the signature that the answer
    completes), it comes before the program.

    Args:
        seconds: of the processor for a program and its tests. What passed before the time is over counts.
        memory_mib: for them.
    """

    def __init__(self, seconds: int = 1, memory_mib: int = 256):
        if seconds < 1 or memory_mib < 16:
            raise UserError(f"seconds {seconds}, memory_mib {memory_mib}: give at least 1 second and 16 MiB")
        self._isolated = Isolated("tpullm.rewards.code_tests:run_tests", seconds, memory_mib << 20)

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`."""
        tests = [_tests(example) for example in examples]
        programs = [f"{example.fields.get('before', '')}{program(example.answer)}" for example in examples]
        passed = self._isolated.map([list(call) for call in zip(programs, tests, strict=True)])
        # What a program reports itself is not trusted: it is a number from 0 to all.
        counts = [count if type(count) is int else 0 for count in passed]
        return [min(max(count, 0), len(own)) / len(own) for count, own in zip(counts, tests, strict=True)]

    def close(self) -> None:
        """End the processes."""
        self._isolated.close()


def _tests(example: Example) -> list[str]:
    try:
        tests = example.field("tests")
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from None
    if not (isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests)):
        raise UserError(
            f"{example.where}: field `tests` is no list of texts; write [assert f(1) == 2, ...], each a text of Python"
        )
    return tests


def program(answer: str) -> str:
    """The fenced blocks of an answer that are Python, or name no language; without such a block, all of it."""
    blocks = [text for name, text in _BLOCK.findall(answer) if name.lower() in ("", "python", "py", "python3")]
    return "\n".join(blocks) if blocks else answer


def run_tests(report: Callable[[int], None], program: str, tests: list[str]) -> None:
    """Report how many of `tests` passed so far, after each; what the isolated process runs."""
    space = {"__name__": "answer"}
    exec(compile(program, "answer", "exec"), space)
    passed = 0
    for test in tests:
        passed += _passes(test, space)
        report(passed)


def _passes(test: str, space: dict) -> bool:
    try:
        exec(compile(test, "test", "exec"), space)
    except BaseException:  # an assertion, or whatever the program raises; SystemExit too
        return False
    return True
