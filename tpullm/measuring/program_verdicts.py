"""What becomes of programs that a model wrote: each runs with its tests, and the verdict is kept."""

import platform
from collections.abc import Callable, Sequence
from contextlib import closing

from tpullm import log
from tpullm.cluster import hosts
from tpullm.measuring.kept_answers import KeptAnswers, key_of
from tpullm.process.isolated import Outcome, cores
from tpullm.rewards.code_tests import ERROR, PASSED, VERDICTS, isolated_tests

SECONDS, MEMORY_MIB = 3, 1024  # of the processor (HumanEval's own has 3 s by the clock); beside Python's own memory
TIME = "time"
WORDS = (*VERDICTS, TIME)
PROTOCOL = 1  # of running programs; another one makes kept verdicts those of other programs


def verdicts(
    calls: Sequence[Sequence[str]], answers: KeptAnswers | None, between: Callable[[], None] = lambda: None
) -> list[str]:
    """One of `WORDS` for each call. With several hosts, all of them call this, and host 0 runs the programs.

    Args:
        calls: the program, its test, what it was given to continue, and its function (`code_tests.run_tests`).
        answers: where verdicts are kept, but for those that a busy machine or a missing package may have made.
        between: called now and then; what it raises ends the work.
    """
    settings = [PROTOCOL, SECONDS, MEMORY_MIB, platform.python_version()]
    keys = [key_of("program", [*settings, *call]) for call in calls]
    kept = answers.found(keys) if answers else [None] * len(keys)
    found = {key: word for key, word in zip(keys, kept, strict=True) if word in WORDS}
    missing = {key: call for key, call in zip(keys, calls, strict=True) if key not in found}
    names = list(missing)
    with (
        closing(isolated_tests(SECONDS, MEMORY_MIB << 20)) as isolated,
        log.progress("evaluate", len(names), "programs") as advance,
    ):
        at_a_time = hosts.broadcast("how many programs", cores)
        for first in range(0, len(names), at_a_time):
            between()
            part = names[first : first + at_a_time]
            asked = [[text, [test], *more] for text, test, *more in map(missing.get, part)]
            words = hosts.broadcast("programs", lambda asked=asked: list(map(_word, isolated.map(asked))))
            new = dict(zip(part, words, strict=True))
            found |= new
            if answers:
                answers.add({key: word for key, word in new.items() if word not in (ERROR, TIME)})
            advance(len(part))
    return [found[key] for key in keys]


def _word(outcome: Outcome) -> str:
    said = outcome.value[-1] if outcome.value else ERROR
    return TIME if outcome.late and said != PASSED else said
