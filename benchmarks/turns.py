"""Programs that take turns: each is warm in its own process and waits while another one runs.

All figures are thus from the same minutes of the same machine, and a disturbance affects every program. As a script,
this file is such a process: it reads the number of units from stdin and writes the time that they took to stdout, a
JSON line each.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Program:
    """What a process runs.

    Args:
        run: does `count` units of work before it returns; its result is part of the answer.
        facts: of the program, such as its number of parameters; reported once.
    """

    run: Callable[[int], dict | None]
    facts: dict


class WorkerError(Exception):
    """A program failed; the message is its last line."""


class Worker:
    """A process that holds a program.

    Args:
        program: `module:function`; the function makes a `Program` and warms it up.
        arguments: of that function.
        environment: variables of the program's process, beside those of this one.
        python: of the environment that it runs in.
    """

    def __init__(self, program: str, arguments: Mapping, environment: Mapping[str, str], python: str = sys.executable):
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [python, __file__, program, json.dumps(dict(arguments))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | dict(environment),
            text=True,
        )

    def facts(self) -> dict:
        """Wait until the program is warm, and return its facts. Call it once, first."""
        return self._answer()

    def run(self, count: int) -> dict:
        """Do `count` units; returns their `seconds` and the program's result."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        raise WorkerError(lines[-1] if lines else f"ended with code {self._process.returncode}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Warm(NamedTuple):
    """Ready workers, the facts of each, and why others could not be started; all by name."""

    workers: dict[str, Worker]
    facts: dict[str, dict]
    failed: dict[str, str]


@contextlib.contextmanager
def warm(
    programs: Mapping[str, tuple[str, Mapping]],
    environment: Mapping[str, str],
    required: str,
    tell: Callable[[float, str], None],
) -> Iterator[Warm]:
    """Workers for `programs` (`module:function` and its arguments, by name); they end with the block.

    They are started one after the other: torch's threads wait in loops, and two programs that wait for each other's
    core took longer together (118 s for five that decode) than in turn.

    Args:
        required: the program that must run; of the others, one is enough.
        tell: gets the share of workers that are ready, and a message.
    """
    with contextlib.ExitStack() as stack:
        workers, facts, failed = {}, {}, {}
        for number, (name, (program, arguments)) in enumerate(programs.items(), 1):
            worker = stack.enter_context(Worker(program, arguments, environment))
            try:
                facts[name] = worker.facts()
                workers[name] = worker
            except WorkerError as error:
                if name == required:
                    raise
                failed[name] = str(error)
            tell(number / len(programs), f"{name} {failed.get(name, 'is compiled and warm')}")
        if len(facts) < 2:
            raise WorkerError(f"nothing to compare with: {failed}")
        yield Warm(workers, facts, failed)


def take_turns(workers: Mapping[str, Worker], rounds: int, count: Mapping[str, int]) -> Iterator[dict[str, dict]]:
    """Each round: every worker runs once, one after the other; yields their answers by name."""
    for _ in range(rounds):
        yield {name: worker.run(count[name]) for name, worker in workers.items()}


def serve(program: str, arguments: str) -> None:
    """Serve as a worker until stdin ends. The output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, function = program.split(":")
    made = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(made.facts), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        added = made.run(int(line)) or {}
        print(json.dumps({"seconds": time.perf_counter() - start, **added}), file=answers, flush=True)


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except Exception as error:
        traceback.print_exc()
        # JAX ends its own messages with advice, torch spreads them over many lines: the last line has to say it.
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
