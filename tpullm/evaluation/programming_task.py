"""A file of problems of programming, put to a model: its programs run with their tests, and pass@k says how many pass.

The protocol is HumanEval's (Chen et al. 2021). Each program that a model wrote runs with its tests, confined
(`system/process/isolated.py`), and its verdict is kept beside the answers of the model.
"""

import platform
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np

from tpullm.evaluation import statistics
from tpullm.evaluation.measured_model import KeptAnswers, MeasuredModel, Writing, request_key
from tpullm.evaluation.problem_files import Problem, ProblemFile
from tpullm.evaluation.prompt_forms import program_prompt, prompt_ids, prompt_text
from tpullm.evaluation.tasks import Asking
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system import log
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.process import cores
from tpullm.training.rewards.code_tests import ERROR, PASSED, TIME, VERDICTS, Judge, program_of_answer

SECONDS, MEMORY_MIB = 3, 1024  # of the processor (HumanEval's own has 3 s by the clock); beside Python's own memory
PROTOCOL = 1  # of running programs; another one makes kept verdicts those of other programs
TOKENS = 512  # of a program: the longest of HumanEval's right ones has 864 characters
COLUMNS = ("problem", "sample", "verdict", "written", "program")  # of `OUT/NAME.jsonl`
# Where a function is over that a model continues (Chen et al. 2021, section 3.2), or a program (Austin et al. 2021).
STOPS = {"continued": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), "task and tests": ("[DONE]",), "chat": ()}


def check_sampling(asking: Asking) -> None:
    """Refuse values out of range; `UserError` names the option."""
    if asking.samples < 1:
        raise UserError(f"--samples: {asking.samples} is below 1; use 1 or more")
    if not 0 <= asking.temperature < float("inf"):
        raise UserError(f"--temperature: {asking.temperature}: use 0 for the likeliest program, or more")
    if asking.samples > 1 and not asking.temperature:
        raise UserError(f"--samples: {asking.samples} at temperature 0 are the same; add --temperature 0.8")


def choose_problems(file: ProblemFile, asking: Asking) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """The problems that are asked, and the examples before each, which are drawn from the file and not asked.

    Raises:
        UserError: there are no examples in this form, or too few problems.
    """
    if asking.shots and file.is_continued:
        raise UserError(f"--shots: {asking.shots}, and {file.name} has programs to continue; leave the option out")
    if asking.shots >= len(file.problems):
        raise UserError(f"--shots: {asking.shots}, and {file.name} has {len(file.problems)} problems; take fewer")
    examples, rest = asking.drawn(file.problems)
    return rest[: asking.limit or None], examples


def measure_programs(model: MeasuredModel, file: ProblemFile, asking: Asking) -> dict[str, Any]:
    """The figures of a file, and what became of each program.

    Returns:
        `pass_at_k`, by k, with intervals; `verdicts`, how many programs had each; `questions`: each program with its
        problem, its number, what the model wrote and the verdict. All else repeats the measurement.
    """
    problems, examples = choose_problems(file, asking)
    session, samples = model.session, asking.samples
    sampling = Sampling(asking.temperature, top_p=0.95, min_p=0.0) if asking.temperature else GREEDY  # Chen et al., 3.2
    form = "chat" if asking.chat else "continued" if file.is_continued else "task and tests"
    settings = asdict(asking) | {
        **{"form": form, "tokens": min(TOKENS, session.context_length // 2), "stops": list(STOPS[form])},
        **{"top_p": sampling.top_p, "seconds": SECONDS, "memory_mib": MEMORY_MIB},
        "python": platform.python_version(),
    }
    # The seeds of the samples are those of every problem; another `--seed` has none in common.
    seeds = [int(np.random.default_rng((asking.seed, number)).integers(2**31)) for number in range(samples)]
    prompts = [program_prompt(problem, examples, asking.chat) for problem in problems]
    requests = [
        Writing(ids, settings["tokens"], STOPS[form], sampling, seed, not asking.chat)
        for ids in [prompt_ids(session.tokenizer, prompt) for prompt in prompts]
        for seed in seeds
    ]
    asked = [problem for problem in problems for _ in range(samples)]
    written = model.written(requests)
    programs = [program_of(*pair, asking.chat) for pair in zip(asked, written, strict=True)]
    calls = [
        (text, problem.test, problem.prompt if problem.shown is None else "", problem.entry)
        for text, problem in zip(programs, asked, strict=True)
    ]
    words = verdicts_of_programs(calls, model.answers, model.between)
    right = [words[first : first + samples].count(PASSED) for first in range(0, len(words), samples)]
    rows = zip([one.name for one in asked], [*range(samples)] * len(problems), words, written, programs, strict=True)
    return {
        "version": file.version,
        "file": file.file,
        "settings": settings,
        "prompt": prompt_text(prompts[0]),
        "pass_at_k": statistics.pass_at_k_figures(right, samples),
        "verdicts": {word: words.count(word) for word in VERDICTS},
        "questions": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
    }


def passed_programs(rows: Sequence[dict[str, Any]]) -> dict[str, list[bool]]:
    """Of each problem in `questions`, by its name, which of its programs passed."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        found.setdefault(row["problem"], []).append(row["verdict"] == PASSED)
    return found


def program_of(problem: Problem, said: str, chat: bool) -> str:
    """The program of what a model wrote.

    In a conversation it is the fenced block. What the prompt imports and defines stands before it, since a model rarely
    repeats that. A block that has only the body of the function continues the prompt.
    """
    if not chat:
        return f"{problem.prompt}{said}" if problem.shown is None else said
    block = program_of_answer(said)
    if problem.shown is not None:
        return block
    if re.search(rf"^def {problem.entry}\b", block, re.MULTILINE):
        return f"{problem.prompt}\n    pass\n\n\n{block}"
    return f"{problem.prompt}{block}"


def verdicts_of_programs(
    calls: Sequence[Sequence[str]], answers: KeptAnswers, between: Callable[[], None] = lambda: None
) -> list[str]:
    """One of `VERDICTS` for each call. With several hosts, all of them call this, and host 0 runs the programs.

    Args:
        calls: the program, its test, what it was given to continue, and its function (`code_tests.run_tests`).
        answers: where verdicts are kept, but for those that a busy machine or a missing package may have made.
        between: called now and then; what it raises ends the work.
    """
    settings = [PROTOCOL, SECONDS, MEMORY_MIB, platform.python_version()]
    keys = [request_key("program", [*settings, *call]) for call in calls]
    kept = answers.found(keys)
    found = {key: word for key, word in zip(keys, kept, strict=True) if word in VERDICTS}
    missing = {key: call for key, call in zip(keys, calls, strict=True) if key not in found}
    names, judging = list(missing), closing(Judge(SECONDS, MEMORY_MIB << 20))
    with judging as judge, log.progress("evaluate", len(names), "programs") as advance:
        at_a_time = hosts.broadcast("how many programs", cores)
        for first in range(0, len(names), at_a_time):
            between()
            part = names[first : first + at_a_time]
            asked = [[text, [test], *more] for text, test, *more in map(missing.get, part)]
            words = hosts.broadcast("programs", lambda asked=asked: [own[-1] for own in judge.verdicts(asked)])
            new = dict(zip(part, words, strict=True))
            found |= new
            answers.add({key: word for key, word in new.items() if word not in (ERROR, TIME)})
            advance(len(part))
    return [found[key] for key in keys]
