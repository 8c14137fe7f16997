"""A file of questions, put to a model: the likelihood of each choice, and the text that it writes.

The likelihoods are those of the choices after the question alone. Before it writes, the model is shown the choices.
What it writes is right if it is an answer, or a choice or its letter, after Unicode's normal form. A choice is the
likeliest by four rules, because models differ in which they are good at.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import MeasuredModel, Writing
from tpullm.evaluation.prompt_forms import Prompt, PromptForm, encode_pair, prompt_ids, prompt_text, question_form
from tpullm.evaluation.question_files import Item, QuestionFile
from tpullm.evaluation.statistics import of_mean, share_right
from tpullm.evaluation.tasks import Asking
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer

# By which a choice is the likeliest, and what tables call it, short enough for a terminal of 80 columns.
RULES = {
    "likelihood": "likeliest choice",
    "per token": "likeliest per token",
    "per byte": "likeliest per byte",
    "pmi": "likeliest by PMI",
}
WRITTEN = "written"  # the measure of what the model writes


@dataclass(frozen=True)
class Asked:
    """The questions of a file as they are asked: all after the same examples, so a row of a batch holds these once."""

    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    form: PromptForm
    tokens: int
    chat: bool

    def prompt(self, item: Item, lists_choices: bool) -> Prompt:
        """What stands before the answer."""
        return (self.form.conversation if self.chat else self.form.prompt)(item, self.examples, lists_choices)

    def continuation(self, tokenizer: Tokenizer, item: Item, answer: str) -> Continuation:
        """An answer after its question."""
        prompt = self.prompt(item, False)
        if self.chat:
            return Continuation(prompt_ids(tokenizer, prompt), tuple(tokenizer.encode(answer)))
        return Continuation(*map(tuple, encode_pair(tokenizer, prompt, self.form.space + answer)))


def choose_questions(file: QuestionFile, asking: Asking, context: int) -> Asked:
    """Choose the examples and the questions. Examples are drawn from the questions, which are then not asked, unless
    the file has them apart.

    Raises:
        UserError: the file has too few questions.
    """
    items, examples = file.items, file.examples
    if not examples:
        examples, items = asking.drawn(items)
    examples = examples[: asking.shots]
    if len(examples) < asking.shots or not items:
        raise UserError(
            f"--shots: {asking.shots}, and {file.name} has {len(file.items)} questions and {len(file.examples)} "
            "examples; take fewer"
        )
    items = items[: asking.limit or None]
    return Asked(items, examples, question_form(file.items), min(file.tokens, context // 2), asking.chat)


def measure_questions(model: MeasuredModel, file: QuestionFile, asking: Asking) -> dict[str, Any]:
    """The figures of a file, and what became of each question.

    Returns:
        `likelihood` by rule and `written`: `right`, `count`, `share` and `interval`, and of what is written `f1` with
        its interval, and `no_choice`, the share of answers that match no choice. `chance`: the share of right
        choices that guessing would give. `questions`: of each its answers. `probabilities`: of each question with
        choices, the model's probability of each. All else repeats the measurement.
    """
    asked = choose_questions(file, asking, model.session.context_length)
    table = [{"question": item.text or item.instruction, "answers": list(item.answers)} for item in asked.items]
    return {
        "file": file.file,
        "version": file.version,
        "settings": asking.of_questions()
        | {"form": "chat" if asking.chat else asked.form.name, "tokens": asked.tokens},
        "prompt": prompt_text(asked.prompt(asked.items[0], True)),
        **_by_likelihood(model, asked, table),
        "written": _by_writing(model, asked, table),
        "questions": table,
    }


def answers_by(rows: Sequence[dict[str, Any]], measure: str) -> list[tuple[dict[str, Any], str, bool]]:
    """Of `questions` those that a measure is of: each with its answer by this measure, and whether this is right.

    Args:
        measure: one of `RULES`, or `WRITTEN`.
    """
    if measure == WRITTEN:
        return [(row, row["written"], row["right"]) for row in rows]
    chosen = [(row, row["likeliest"][measure]) for row in rows if "likeliest" in row]
    return [(row, choice, choice == row["answers"][0]) for row, choice in chosen]


def _by_likelihood(model: MeasuredModel, asked: Asked, table: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the likelihoods of choices, if questions have choices; `table` gets the likeliest of each."""
    with_choices = [(row, item) for row, item in zip(table, asked.items, strict=True) if item.choices]
    if not with_choices:
        return {}
    tokenizer, requests, sizes = model.session.tokenizer, [], []
    for _, item in with_choices:
        for choice in item.choices:
            after = asked.continuation(tokenizer, item, choice)
            alone = encode_pair(tokenizer, asked.form.cue, asked.form.space + choice)
            requests += [after, Continuation(*map(tuple, alone))]
            sizes.append([len(after.continuation), len(choice.encode())])
    log_p, alone = np.array([found.log_probability for found in model.likelihoods(requests)]).reshape(-1, 2).T
    tokens, size = np.array(sizes, np.float64).T
    # By PMI it is the choice that the question makes the most likelier than it is after the cue alone (Holtzman et al.
    # 2021, "Surface Form Competition").
    by_rule = np.stack([log_p, log_p / tokens, log_p / size, log_p - alone])
    counts = np.array([len(item.choices) for _, item in with_choices])
    scores = np.split(by_rule, np.cumsum(counts)[:-1], axis=1)  # of each question `[rules, choices]`
    for (row, item), by_rule in zip(with_choices, scores, strict=True):
        likeliest = zip(RULES, by_rule.argmax(axis=1).tolist(), strict=True)
        row |= {"choices": list(item.choices), "likeliest": {rule: item.choices[choice] for rule, choice in likeliest}}
    # The probability of each choice, given that it is one of them.
    likelier = [np.exp(by_rule[0] - by_rule[0].max()) for by_rule in scores]
    return {
        "likelihood": {rule: share_right([right for _, _, right in answers_by(table, rule)]) for rule in RULES},
        "chance": float(np.mean(1 / counts)),
        "probabilities": [(each / each.sum()).tolist() for each in likelier],
    }


def _by_writing(model: MeasuredModel, asked: Asked, table: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the likeliest text after each question: one line, or in a conversation what the model says.

    `table` gets the texts.
    """
    stops = () if asked.chat else ("\n",)
    prompts = [prompt_ids(model.session.tokenizer, asked.prompt(item, True)) for item in asked.items]
    written = model.written([Writing(ids, asked.tokens, stops) for ids in prompts])
    none = []
    for row, text, item in zip(table, written, asked.items, strict=True):
        # By its text, or by its letter.
        named = dict(zip(string.ascii_uppercase, item.choices, strict=False))
        named |= {answer_line(choice): choice for choice in item.choices}
        chosen = named.get(answer_line(text), "")
        row |= {"written": text, "right": chosen == item.answers[0] if item.choices else is_exact(text, item.answers)}
        none += [not chosen] if item.choices else []
    f1 = [character_f1(row["written"], row["answers"]) for row in table]
    found = share_right([row["right"] for row in table]) | {"f1": float(np.mean(f1)), "f1_interval": of_mean(f1)}
    return found | ({"no_choice": float(np.mean(none))} if none else {})


def answer_line(text: str) -> str:
    """The first line that is not empty, in Unicode's form NFKC (１２ is 12, ｱ is ア), with single spaces."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in unicodedata.normalize("NFKC", text).splitlines())
    return next(filter(None, lines), "")


def is_exact(text: str, answers: Iterable[str]) -> bool:
    """Whether the answer is one of the right ones."""
    return answer_line(text) in map(answer_line, answers)


def character_f1(text: str, answers: Iterable[str]) -> float:
    """The F1 of the characters that an answer has in common with the right one that is nearest.

    As SQuAD's of words (Rajpurkar et al. 2016), but of characters, since Japanese has no spaces between words.
    """
    one, scores = answer_line(text), [0.0]
    for other in map(answer_line, answers):
        common = (Counter(one) & Counter(other)).total()
        scores.append(2 * common / (len(one) + len(other)) if one and other else float(one == other))
    return max(scores)
