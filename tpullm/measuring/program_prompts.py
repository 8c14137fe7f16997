"""How a problem of programming is put to a model, and what program its answer is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tpullm.measuring.problem_files import Problem
from tpullm.measuring.prompt_forms import KANA
from tpullm.rewards.code_tests import program

# Where a function is over that a model continues (Chen et al. 2021, section 3.2).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_STOPS = ("[DONE]",)
# Austin et al. 2021.
_MBPP = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n"
    "[BEGIN]\n"
)


@dataclass(frozen=True)
class Words:
    """What stands around a problem in a conversation."""

    complete: str
    solve: str


_ENGLISH = Words(
    "Complete this function. Answer with the whole function in a block of code.\n\n```python\n{}\n```",
    "{}\nAnswer with a block of code in Python. It should pass these tests:\n\n```python\n{}\n```",
)
_JAPANESE = Words(
    "次の関数を完成させてください。関数全体をコードブロックで答えてください。\n\n```python\n{}\n```",
    "{}\nPythonのコードブロックで答えてください。次のテストに通る必要があります。\n\n```python\n{}\n```",
)


def plain(problem: Problem, examples: Sequence[Problem]) -> str:
    """The text that a model continues: the beginning of a program, or a task after `examples` with their programs."""
    if problem.shown is None:
        return problem.prompt
    solved = "".join(f"{_task(example)}{example.solution.rstrip()}\n[DONE]\n\n" for example in examples)
    return solved + _task(problem)


def _task(problem: Problem) -> str:
    return _MBPP.format(text=problem.prompt.strip(), tests="\n".join(problem.shown))


def conversation(problem: Problem, examples: Sequence[Problem]) -> list[dict[str, str]]:
    """The turns up to where the model answers."""
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": _question(example)})
        turns.append({"role": "assistant", "content": f"```python\n{example.solution.rstrip()}\n```"})
    return [*turns, {"role": "user", "content": _question(problem)}]


def _question(problem: Problem) -> str:
    words = _JAPANESE if KANA.search(problem.prompt) else _ENGLISH
    if problem.shown is None:
        return words.complete.format(problem.prompt.rstrip())
    return words.solve.format(problem.prompt.strip(), "\n".join(problem.shown))


def program_of(problem: Problem, said: str, chat: bool) -> str:
    """The program of what a model wrote.

    In a conversation it is the fenced block. What the prompt imports and defines stands before it, since a model rarely
    repeats that. A block that has only the body of the function continues the prompt.
    """
    if not chat:
        return f"{problem.prompt}{said}" if problem.shown is None else said
    block = program(said)
    if problem.shown is not None:
        return block
    if re.search(rf"^def {problem.entry}\b", block, re.MULTILINE):
        return f"{problem.prompt}\n    pass\n\n\n{block}"
    return f"{problem.prompt}{block}"
