"""Held-out questions with right answers, asked before and after tuning."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from tpullm.corpus.question import Question, is_right
from tpullm.engine.generation import answer
from tpullm.engine.session import Session
from tpullm.training.rewards.code_tests import PASSED, isolated_tests

SECONDS, MEMORY_BYTES = 2, 256 << 20  # of a program that answers a question

KANA = re.compile("[\u3041-\u30ff]")

Judge = Callable[[Question, str], bool]


@contextlib.contextmanager
def judge(name: str) -> Iterator[Judge]:
    """What says whether an answer to a built-in question of this name is right.

    An answer to `tenki` is right word for word. The domains judge by what is meant, and code by its tests, in processes
    that can do little else.
    """
    if name.startswith("tenki"):
        yield lambda question, said: said.strip() in question.answers
        return
    with contextlib.closing(isolated_tests(SECONDS, MEMORY_BYTES)) as isolated:

        def passes(program: str, tests: str) -> bool:
            return isolated.map([[program, [tests]]])[0].value == [PASSED]

        yield lambda question, said: is_right(question, said, passes)


def asked(
    base: Session, tuned: Session, questions: Sequence[Question], learned: Sequence[Question], right: Judge
) -> dict:
    """The share of right answers before and after tuning.

    Args:
        questions: the held-out questions to ask.
        learned: the questions of tuning. Their commonest answer, of a kind and a language, is what one who knows
            nothing else would say.

    Returns:
        `tuned` and `base`: `accuracy` and the number of `questions`; `kinds`: the same by the kind of question, and
        `guess`, the share of that commonest answer; `answers`: all of them.
    """
    texts = [question.question for question in questions]
    said = {"base": answer(base, texts), "tuned": answer(tuned, texts)}
    judged = {
        name: [right(question, text) for question, text in zip(questions, found, strict=True)]
        for name, found in said.items()
    }
    table = [
        {"question": question.question, "expected": question.answers[0], "kind": question.kind,
         "base": said["base"][i], "tuned": said["tuned"][i], "right": judged["tuned"][i]}
        for i, question in enumerate(questions)
    ]  # fmt: skip
    kinds, commonest = {}, _commonest(learned)
    for kind in dict.fromkeys(question.kind for question in questions):
        places = [i for i, question in enumerate(questions) if question.kind == kind]
        shares = {name: sum(found[i] for i in places) / len(places) for name, found in judged.items()}
        guessed = sum(right(questions[i], commonest.get(_asked_how(questions[i]), "")) for i in places) / len(places)
        kinds[kind] = shares | {"guess": guessed, "questions": len(places)}
    whole = {
        name: {"accuracy": sum(found) / max(len(found), 1), "questions": len(questions)}
        for name, found in judged.items()
    }
    return whole | {"kinds": kinds, "answers": table}


def _commonest(questions: Iterable[Question]) -> dict[tuple[str, bool], str]:
    """The answer that most questions have, by how they are asked; of several the first."""
    answers: dict[tuple[str, bool], Counter] = {}
    for question in questions:
        answers.setdefault(_asked_how(question), Counter())[question.answers[0]] += 1
    return {how: counts.most_common(1)[0][0] for how, counts in answers.items()}


def _asked_how(question: Question) -> tuple[str, bool]:
    """The kind of a question, and whether it is asked in Japanese, which has kana."""
    return question.kind, bool(KANA.search(question.question))
