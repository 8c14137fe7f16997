"""The reward `code`: a Python program passes its tests, in processes that can do little else.

Program and tests have a process each, so what the program does to its own changes no verdict.
"""

import builtins
import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.process.isolated import Isolated
from tpullm.system.process.programs import Gone, Program
from tpullm.training.rewards.scorer import Example

VERDICTS = PASSED, FAILED, ERROR, MEMORY = "passed", "failed", "error", "memory"

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


class CodeTests:
    """The share of the tests that pass, in their order, of one run of the program; 0 if the program itself raises.

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
        self._isolated = isolated_tests(seconds, memory_mib << 20)

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`."""
        tests = [_tests(example) for example in examples]
        programs = [f"{example.fields.get('before', '')}{program(example.answer)}" for example in examples]
        found = self._isolated.map([list(call) for call in zip(programs, tests, strict=True)])
        return [(one.value or []).count(PASSED) / len(own) for one, own in zip(found, tests, strict=True)]

    def close(self) -> None:
        """End the processes."""
        self._isolated.close()


def isolated_tests(seconds: int, memory_bytes: int) -> Isolated:
    """The processes that call `run_tests`; what they are given is its arguments from `text` on."""
    return Isolated(
        "tpullm.training.rewards.code_tests:run_tests",
        seconds,
        memory_bytes,
        "tpullm.system.process.programs:serve_program",
    )


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


def run_tests(
    report: Callable[[list[str]], None], descriptor: int, text: str, tests: list[str], given: str = "", entry: str = ""
) -> None:
    """Report the verdicts of the tests so far, after each; what the isolated process of the tests runs.

    Args:
        report: gets one of `VERDICTS` for each test; one alone if the program itself raises.
        descriptor: of the socket to the process of the program.
        text: of the program.
        tests: in Python. A name that they do not define is Python's, or else the program's.
        given: what the program was to continue. Tests take what it defines from here, and not from the program.
        entry: the name that is the program's in any case.
    """
    program, verdicts = Program(descriptor), []
    try:
        if (verdict := _verdict(lambda: program.run(text))) != PASSED:
            return report([verdict])
        space = _Space(program)
        if entry:
            with contextlib.suppress(Exception):  # not every beginning of a program is one
                exec(compile(f"{given}\n    pass\n", "given", "exec"), space)
            space.pop(entry, None)
            space.own = entry
        for test in tests:
            verdicts.append(_verdict(lambda test=test: exec(compile(test, "test", "exec"), space)))
            if program.gone:  # and the test has caught that
                verdicts[-1] = ERROR
            report(verdicts)
    except Gone:
        report([*verdicts, ERROR])


def _verdict(work: Callable[[], Any]) -> str:
    """How `work` ends."""
    try:
        work()
    except Gone:
        raise
    except AssertionError:
        return FAILED
    except MemoryError:
        return MEMORY
    except BaseException:  # whatever a test or the program raises
        return ERROR
    return PASSED


class _Space(dict):
    """The names of the tests: their own, then Python's, then the program's.

    A program that defines a name of Python's has all tests fail that use it. Otherwise its `len` or `all` could make
    any test pass.
    """

    def __init__(self, program: Program):
        super().__init__({"__name__": "test"})
        self._program, self._defined, self.own = program, set(program.names()), ""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) and name != self.own:
            if name in self._defined:
                raise NameError(f"the program defines {name}, which is Python's")
            raise KeyError(name)
        return self._program.ask("name", name)
