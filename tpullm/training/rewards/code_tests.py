"""The judge of programs that a model wrote, and the reward `code`: each program runs with its tests.

Program and tests have a process each, which can do little else: what the program does to its own changes no verdict.
The reward, tasks of programming and questions about code have this one judge.
"""

import ast
import builtins
import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.process.isolated import Isolated
from tpullm.system.process.programs import Gone, Program
from tpullm.training.rewards.scorer import Example, check_process_limits

VERDICTS = PASSED, FAILED, ERROR, MEMORY, TIME = "passed", "failed", "error", "memory", "time"

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
        check_process_limits(seconds, memory_mib)
        self._judge = Judge(seconds, memory_mib << 20)

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`."""
        calls = []
        for example in examples:
            with example.named():
                tests = example.field("tests")
                if not (isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests)):
                    raise UserError(
                        "field `tests` is no list of texts; write [assert f(1) == 2, ...], each a text of Python"
                    )
            before = str(example.fields.get("before", ""))
            imports = _imports(before)  # the program might have another `math`
            calls.append([f"{before}{program_of_answer(example.answer)}", [f"{imports}{test}" for test in tests]])
        found = self._judge.verdicts(calls)
        return [words.count(PASSED) / len(tests) for words, (_, tests) in zip(found, calls, strict=True)]

    def close(self) -> None:
        """End the processes."""
        self._judge.close()


def _imports(before: str) -> str:
    """The import statements of what comes before a program, but `*`, which may name what the program is to define."""
    for end in ("", "\n    pass"):  # it may end with the first line of a function
        with contextlib.suppress(SyntaxError, ValueError):
            found = [node for node in ast.parse(before + end).body if isinstance(node, ast.Import | ast.ImportFrom)]
            return "".join(f"{ast.unparse(node)}\n" for node in found if node.names[0].name != "*")
    return ""


class Judge:
    """Runs programs with their tests, on all cores.

    Args:
        seconds: of the processor for a program and its tests.
        memory_bytes: for them, beside Python's own.
    """

    def __init__(self, seconds: int, memory_bytes: int):
        tests = "tpullm.training.rewards.code_tests:run_tests"
        self.isolated = Isolated(tests, seconds, memory_bytes, "tpullm.system.process.programs:serve_program")

    def verdicts(self, calls: Sequence[list]) -> list[list[str]]:
        """Of each call the verdicts of its tests, in their order, up to the one that ended it.

        Args:
            calls: the arguments of `run_tests` from `text` on.
        """
        found = []
        for value, late in self.isolated.map(calls):
            words = value or [ERROR]
            found.append([*words[:-1], TIME] if late and words[-1] != PASSED else words)
        return found

    def close(self) -> None:
        """End the processes."""
        self.isolated.close()


def program_of_answer(answer: str) -> str:
    """The fenced blocks of an answer that are Python, or name no language; without such a block, all of it."""
    blocks = [text for name, text in _BLOCK.findall(answer) if name.lower() in ("", "python", "py", "python3")]
    return "\n".join(blocks) if blocks else answer


def run_tests(
    report: Callable[[list[str]], None], descriptor: int, text: str, tests: list[str], given: str = "", entry: str = ""
) -> None:
    """Report the verdicts of the tests so far, after each; what the isolated process of the tests runs.

    Args:
        report: gets one of `VERDICTS` for each test; one alone if the program itself raises. `time` is the judge's.
        descriptor: of the socket to the process of the program.
        text: of the program.
        tests: in Python. A name that they do not define is Python's, or else the program's.
        given: what the program was to continue. Tests take what it defines from here, and not from the program.
        entry: the name that is the program's in any case.
    """
    program, verdicts = Program(descriptor), []
    try:
        if (verdict := _verdict_of_test(lambda: program.run(text))) != PASSED:
            return report([verdict])
        space = _Space(program)
        if entry:
            with contextlib.suppress(Exception):  # not every beginning of a program is one
                exec(compile(f"{given}\n    pass\n", "given", "exec"), space)
            space.pop(entry, None)
            space.own = entry
        for test in tests:
            verdicts.append(_verdict_of_test(lambda test=test: exec(compile(test, "test", "exec"), space)))
            if program.gone:  # and the test has caught that
                verdicts[-1] = ERROR
            report(verdicts)
    except Gone:
        report([*verdicts, ERROR])


def _verdict_of_test(work: Callable[[], Any]) -> str:
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
