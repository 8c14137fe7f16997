"""Built-in questions of a run, asked before tuning and after it: which share of the answers is right."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tpullm.corpus import domains
from tpullm.corpus.question import Question, is_right
from tpullm.data import examples
from tpullm.engine.generation import answer_questions
from tpullm.engine.session import Session
from tpullm.evaluation.prompt_forms import KANA
from tpullm.evaluation.statistics import wilson
from tpullm.recipe.schema import Recipe
from tpullm.training.rewards.code_tests import PASSED, Judge

SECONDS, MEMORY_BYTES = 2, 256 << 20  # of a program that answers a question


def measure_before_and_after(recipe: Recipe, base: Session, tuned: Session) -> dict[str, Any]:
    """The held-out questions of the first stage that learns built-in ones, before tuning and after all of it.

    Each share of right answers has its interval. Without such a stage there is nothing.
    """
    # A casual answer is a matter of style, and later stages may change it on purpose.
    names = [name for name in examples.BUILT_IN if name != "tenki_casual"]
    built_in = ((name, stage) for stage in recipe.finetune.values() for name in stage.conversations if name in names)
    name, stage = next(built_in, ("", None))
    if not name:
        return {}
    learned, asked = examples.questions(name, stage.held_out_fraction, recipe.seed, recipe.laws)
    if not base.tokenizer.has_template:  # a base that was never tuned to talk: it gets the tuned model's template
        base = dataclasses.replace(base, tokenizer=tuned.tokenizer)
    with built_in_judge(name) as right:
        found = ask_before_and_after(base, tuned, asked[: recipe.evaluate.questions or None], learned, right)
    for model in (found["base"], found["tuned"]):
        model["interval"] = wilson(model["accuracy"] * model["questions"], model["questions"])
    if rules := domains.RULES.get(name):
        found["rules"] = rules_kept(rules, found["answers"])
    return found


def rules_kept(rules: Mapping[str, Callable[[str], bool]], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The share of the answers that keep each rule, and of those that keep all, before tuning (`base`) and after it.

    What an answer says is left out of account, so a rule does not know which model it judges. `words in common` is the
    F1 of its words and of those expected (Rajpurkar et al. 2016), a mean.
    """
    every = {**rules, "all of these": lambda said: all(rule(said) for rule in rules.values())}
    shares = {
        name: {of: float(np.mean([rule(row[of]) for row in answers] or [0])) for of in ("base", "tuned")}
        for name, rule in every.items()
    }
    f1 = {of: [_word_f1(row[of], row["expected"]) for row in answers] for of in ("base", "tuned")}
    return shares | {"words in common": {of: float(np.mean(found or [0])) for of, found in f1.items()}}


def _word_f1(said: str, expected: str) -> float:
    one, other = (Counter(re.findall(r"\w+", text.casefold())) for text in (said, expected))
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


@contextlib.contextmanager
def built_in_judge(name: str) -> Iterator[Callable[[Question, str], bool]]:
    """What says whether an answer to a built-in question of this name is right.

    An answer to `tenki` is right word for word. The domains judge by what is meant, and code by its tests, in processes
    that can do little else.
    """
    if name.startswith("tenki"):
        yield lambda question, said: said.strip() in question.answers
        return
    with contextlib.closing(Judge(SECONDS, MEMORY_BYTES)) as programs:

        def passes(program: str, tests: str) -> bool:
            return programs.verdicts([[program, [tests]]]) == [[PASSED]]

        yield lambda question, said: is_right(question, said, passes)


def ask_before_and_after(
    base: Session,
    tuned: Session,
    questions: Sequence[Question],
    learned: Sequence[Question],
    right: Callable[[Question, str], bool],
) -> dict[str, Any]:
    """The share of right answers before and after tuning.

    Args:
        questions: the held-out questions to ask.
        learned: the questions of tuning. Their commonest answer, of a kind and a language, is what one who knows
            nothing else would say.

    Returns:
        `tuned` and `base`: `accuracy` and the number of `questions`; `kinds`: the same by the kind of question, and
        `guess`, the share of that commonest answer, or of a question's own `guess`; `answers`: all of them.
    """
    answers: dict[tuple[str, bool], Counter] = {}
    for question in learned:
        answers.setdefault(_kind_and_language(question), Counter())[question.answers[0]] += 1
    texts = [question.question for question in questions]
    said = {"base": answer_questions(base, texts), "tuned": answer_questions(tuned, texts), "guess": []}
    for question in questions:
        commonest = answers.get(_kind_and_language(question), Counter([""]))
        said["guess"].append(question.guess or commonest.most_common(1)[0][0])
    judged = {name: np.array(list(map(right, questions, found))) for name, found in said.items()}
    asked = len(questions)
    whole = {of: {"accuracy": float(judged[of].sum() / max(asked, 1)), "questions": asked} for of in ("base", "tuned")}
    kind_of, kinds = np.array([question.kind for question in questions]), {}
    for kind in dict.fromkeys(kind_of.tolist()):
        own = kind_of == kind
        kinds[kind] = {name: float(found[own].mean()) for name, found in judged.items()} | {"questions": int(own.sum())}
    table = [
        {"question": question.question, "expected": question.answers[0], "kind": question.kind,
         "base": said["base"][i], "tuned": said["tuned"][i], "right": bool(judged["tuned"][i])}
        for i, question in enumerate(questions)
    ]  # fmt: skip
    return whole | {"kinds": kinds, "answers": table}


def _kind_and_language(question: Question) -> tuple[str, bool]:
    """The kind of a question, and whether it is asked in Japanese, which has kana."""
    return question.kind, bool(KANA.search(question.question))
