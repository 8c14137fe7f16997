"""Built-in questions of a run, asked before tuning and after it: which share of the answers is right.

A base that was never tuned to talk does not know the marks of a conversation. It is shown solved questions as plain
text, and its answer is the next line: few-shot prompting (Brown et al. 2020). So "before" is what it knows.
"""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tpullm.corpus import domains, tenki
from tpullm.corpus.question import Question, is_right, number_by_hash
from tpullm.data import examples
from tpullm.engine.generation import (
    ANSWER_TOKENS,
    CHAT_TOKENS,
    answer_questions,
    conversation_ids,
    likeliest_continuations,
)
from tpullm.engine.session import Session
from tpullm.evaluation.prompt_forms import KANA
from tpullm.evaluation.statistics import wilson
from tpullm.recipe.schema import Recipe
from tpullm.training.rewards.code_tests import PASSED, Judge

SHOTS = 3  # solved questions that a base is shown
TALKS, TURNS = 50, 20  # conversations, and their questions
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
    with built_in_judge(name) as right:
        found = ask_before_and_after(base, tuned, asked[: recipe.evaluate.questions or None], learned, right)
    if name == "tenki":
        found["conversation"] = measure_conversations(tuned, [*learned, *asked], recipe.seed)
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
        `tuned` and `base`: `accuracy` and the number of `questions`, and of a base that can't talk the `shots` that it
        was shown before each; `kinds`: the same by the kind of question, and
        `guess`, the share of that commonest answer, or of a question's own `guess`; `answers`: all of them.
    """
    answers: dict[tuple[str, bool], Counter] = {}
    for question in learned:
        answers.setdefault(_kind_and_language(question), Counter())[question.answers[0]] += 1
    texts = [question.question for question in questions]
    before = answer_questions(base, texts) if base.talks else few_shot_answers(base, questions, learned)
    said = {"base": before, "tuned": answer_questions(tuned, texts), "guess": []}
    for question in questions:
        commonest = answers.get(_kind_and_language(question), Counter([""]))
        said["guess"].append(question.guess or commonest.most_common(1)[0][0])
    judged = {name: np.array(list(map(right, questions, found))) for name, found in said.items()}
    asked = len(questions)
    whole = {of: {"accuracy": float(judged[of].sum() / max(asked, 1)), "questions": asked} for of in ("base", "tuned")}
    whole["base"] |= {} if base.talks else {"shots": SHOTS}
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


def few_shot_answers(base: Session, questions: Sequence[Question], learned: Sequence[Question]) -> list[str]:
    """What a base writes after each question, before which solved questions of its kind stand, as many as fit.

    Each stands in a line of its own. Japanese has no lines: it is a text whose sentences follow each other.

    Args:
        learned: the solved questions are of these, `SHOTS` at most, chosen by hash.
    """
    tokenizer, prompts = base.tokenizer, []
    shown: dict[str, list[Question]] = {}
    for question in sorted(learned, key=lambda question: number_by_hash(f"shown {question.question}")):
        of_kind = shown.setdefault(question.kind, [])
        if len(of_kind) < SHOTS:
            of_kind.append(question)
    for question in questions:
        end = "" if KANA.search(question.question) else "\n"
        shots = [f"{shot.question}{end}{shot.answers[0]}{end}" for shot in shown.get(question.kind, [])]
        for first in range(len(shots) + 1):
            ids = [*tokenizer.begin, *tokenizer.encode("".join([*shots[first:], question.question, end]))]
            if len(ids) + ANSWER_TOKENS <= base.context_length:
                break
        prompts.append(ids[-(base.context_length - 1) :])
    written = map(tokenizer.decode, likeliest_continuations(base, prompts))
    return [re.match(r"[^。\n]*。?", text.lstrip("\n"))[0] for text in written]


def measure_conversations(tuned: Session, questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Conversations of `TURNS` turns, as `tpullm chat --temperature 0` holds them: the share right at each turn.

    The model reads its own earlier answers. What no longer fits its context is left out.
    """
    talks = list(itertools.islice(tenki.conversations(questions, seed, TURNS), TALKS))
    said: list[list[dict[str, str]]] = [[] for _ in talks]
    right: list[float] = []
    for turn in range(TURNS):
        for messages, asked in zip(said, talks, strict=True):
            messages.append({"role": "user", "content": asked[turn].question})
        prompts = [conversation_ids(tuned, messages, CHAT_TOKENS)[0] for messages in said]
        answers = list(map(tuned.tokenizer.decode, likeliest_continuations(tuned, prompts)))
        for messages, answer in zip(said, answers, strict=True):
            messages.append({"role": "assistant", "content": answer})
        pairs = zip(answers, talks, strict=True)
        right.append(float(np.mean([answer.strip() in asked[turn].answers for answer, asked in pairs])))
    return {"conversations": len(talks), "right_by_turn": right}


def _kind_and_language(question: Question) -> tuple[str, bool]:
    """The kind of a question, and whether it is asked in Japanese, which has kana."""
    return question.kind, bool(KANA.search(question.question))
