"""A file of problems of programming, put to a model: its programs run with their tests, and pass@k says how many pass.

The protocol is HumanEval's (Chen et al. 2021).
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from tpullm.errors import UserError
from tpullm.inference.sampling_options import GREEDY, Sampling
from tpullm.inference.session import Session
from tpullm.measuring import pass_at_k, program_prompts
from tpullm.measuring.measured_model import MeasuredModel
from tpullm.measuring.problem_files import Problem, ProblemFile
from tpullm.measuring.program_verdicts import MEMORY_MIB, SECONDS, WORDS, verdicts
from tpullm.measuring.prompt_forms import as_text
from tpullm.measuring.question_task import Asking
from tpullm.measuring.written_texts import Writing
from tpullm.rewards.code_tests import PASSED

TOKENS = 512  # of a program: the longest of HumanEval's right ones has 864 characters
TOP_P = 0.95  # Chen et al. 2021, section 3.2
COLUMNS = ("problem", "sample", "verdict", "written", "program")  # of `OUT/NAME.jsonl`
_STOPS = {"continued": program_prompts.STOPS, "task and tests": program_prompts.MBPP_STOPS, "chat": ()}


@dataclass(frozen=True)
class Attempts:
    """How often a model tries.

    Args:
        samples: programs for each problem.
        temperature: of sampling, which also takes the likeliest tokens of `TOP_P` alone; 0 is the likeliest program.
    """

    samples: int = 1
    temperature: float = 0.0

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, top_p=TOP_P, min_p=0.0) if self.temperature else GREEDY


ONCE = Attempts()


def check(attempts: Attempts) -> Attempts:
    """Refuse values out of range; `UserError` names the option."""
    if attempts.samples < 1:
        raise UserError(f"--samples: {attempts.samples} is below 1; use 1 or more")
    if not 0 <= attempts.temperature < float("inf"):
        raise UserError(f"--temperature: {attempts.temperature}: use 0 for the likeliest program, or more")
    if attempts.samples > 1 and not attempts.temperature:
        raise UserError(f"--samples: {attempts.samples} at temperature 0 are the same; add --temperature 0.8")
    return attempts


def prepare(file: ProblemFile, asking: Asking) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """The problems that are asked, and the examples before each, which are drawn from the file and not asked.

    Raises:
        UserError: there are no examples in this form, or too few problems.
    """
    if asking.shots and file.is_continued:
        raise UserError(f"--shots: {asking.shots}, and {file.name} has programs to continue; leave the option out")
    if asking.shots >= len(file.problems):
        raise UserError(f"--shots: {asking.shots}, and {file.name} has {len(file.problems)} problems; take fewer")
    order = np.random.default_rng(asking.seed).permutation(len(file.problems))[: asking.shots].tolist()
    rest = [problem for number, problem in enumerate(file.problems) if number not in set(order)]
    return tuple(rest[: asking.limit or None]), tuple(file.problems[number] for number in order)


def measure(model: MeasuredModel, file: ProblemFile, asking: Asking, attempts: Attempts) -> dict[str, Any]:
    """The figures of a file, and what became of each program.

    Returns:
        `pass_at_k`, by k, with intervals; `verdicts`, how many programs had each; `questions`: each program with its
        problem, its number, what the model wrote and the verdict. All else repeats the measurement.
    """
    problems, examples = prepare(file, asking)
    session, samples = model.session, attempts.samples
    form = "chat" if asking.chat else "continued" if file.is_continued else "task and tests"
    settings = {
        **{"form": form, "tokens": min(TOKENS, session.context_length // 2), "stops": list(_STOPS[form])},
        **{"top_p": attempts.sampling.top_p, "seconds": SECONDS, "memory_mib": MEMORY_MIB},
        "python": platform.python_version(),
    }
    asked = [problem for problem in problems for _ in range(samples)]
    numbers = [*range(samples)] * len(problems)
    ids = {problem.name: _ids(session, problem, examples, asking.chat) for problem in problems}
    written = model.written(
        [
            Writing(ids[problem.name], settings["tokens"], _STOPS[form], attempts.sampling, seed, not asking.chat)
            for problem, seed in zip(asked, map(partial(_seed, asking.seed), numbers), strict=True)
        ]
    )
    programs = [program_prompts.program_of(*pair, asking.chat) for pair in zip(asked, written, strict=True)]
    calls = [_call(*pair) for pair in zip(programs, asked, strict=True)]
    words = verdicts(calls, model.answers, model.between)
    right = [words[first : first + samples].count(PASSED) for first in range(0, len(words), samples)]
    names = [problem.name for problem in asked]
    rows = zip(names, numbers, words, written, programs, strict=True)
    return {
        "version": file.version,
        "file": file.file,
        "settings": asdict(asking) | asdict(attempts) | settings,
        "prompt": _text(problems[0], examples, asking.chat),
        "pass_at_k": pass_at_k.figures(right, samples),
        "verdicts": {word: words.count(word) for word in WORDS},
        "questions": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
    }


def _text(problem: Problem, examples: Sequence[Problem], chat: bool) -> str:
    if chat:
        return as_text(program_prompts.conversation(problem, examples))
    return program_prompts.plain(problem, examples)


def _ids(session: Session, problem: Problem, examples: Sequence[Problem], chat: bool) -> tuple[int, ...]:
    if chat:
        turns = program_prompts.conversation(problem, examples)
        return tuple(session.tokenizer.chat_template(turns, add_generation_prompt=True)[0])
    return (*session.tokenizer.begin, *session.tokenizer.encode(program_prompts.plain(problem, examples)))


def _call(program: str, problem: Problem) -> tuple[str, str, str, str]:
    """What runs: the arguments of `program_verdicts.verdicts`."""
    return program, problem.test, problem.prompt if problem.shown is None else "", problem.entry


def _seed(seed: int, number: int) -> int:
    """The seed of one sample of every problem; another `--seed` has none in common."""
    return int(np.random.default_rng((seed, number)).integers(2**31))
