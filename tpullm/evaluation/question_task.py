"""A file of questions, put to a model: the likelihood of each choice, and the text that it writes.

The likelihoods are those of the choices after the question alone. Before it writes, the model is shown the choices. A
choice is the likeliest by four rules, and right texts are counted beside, because models differ in which they are good
at.
"""

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import MeasuredModel, Writing
from tpullm.evaluation.prompt_forms import PromptForm, as_text, conversation, encoded, form_of
from tpullm.evaluation.question_files import Item, QuestionFile, character_f1, is_exact, normalized
from tpullm.evaluation.statistics import of_mean, wilson
from tpullm.system.errors import UserError

RULES = ("likelihood", "per token", "per byte", "pmi")  # by which a choice is the likeliest


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Args:
        shots: examples with their answers before each question.
        seed: chooses them.
        limit: the most questions; 0 is all.
        chat: as conversations, by the chat template of the model.
    """

    shots: int = 0
    seed: int = 0
    limit: int = 0
    chat: bool = False


@dataclass(frozen=True)
class Asked:
    """The questions of a file as they are asked: all after the same examples, so a row holds these once."""

    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    form: PromptForm
    tokens: int


def prepare(file: QuestionFile, asking: Asking, context: int) -> Asked:
    """Choose the examples and the questions. Examples are drawn from the questions, which are then not asked, unless
    the file has them apart.

    Raises:
        UserError: the file has too few questions.
    """
    random, items, examples = np.random.default_rng(asking.seed), file.items, file.examples
    if not examples:
        order = random.permutation(len(items))[: asking.shots].tolist()
        examples = tuple(items[number] for number in order)
        items = tuple(item for number, item in enumerate(items) if number not in set(order))
    examples = examples[: asking.shots]
    if len(examples) < asking.shots or not items:
        raise UserError(
            f"--shots: {asking.shots}, and {file.name} has {len(file.items)} questions and {len(file.examples)} "
            "examples; take fewer"
        )
    items = items[: asking.limit or None]
    return Asked(items, examples, form_of(file.items), min(file.tokens, context // 2))


def measure(model: MeasuredModel, file: QuestionFile, asking: Asking) -> dict[str, Any]:
    """The figures of a file, and what became of each question.

    Returns:
        `likelihood` by rule and `written`: `right`, `count`, `share` and `interval`, and of what is written `f1` with
        its interval, and `no_choice`, the share of answers that match no choice. `chance`: the share of right
        choices that guessing would give. `questions`: of each its answers. `probabilities`: of each question with
        choices, the model's probability of each. All else repeats the measurement.
    """
    asked = prepare(file, asking, model.session.context_length)
    table = [{"question": item.text or item.instruction, "answers": list(item.answers)} for item in asked.items]
    return {
        "file": file.file,
        "version": file.version,
        "settings": asdict(asking) | {"form": "chat" if asking.chat else asked.form.name, "tokens": asked.tokens},
        "prompt": _prompt(asked, asking.chat),
        **_by_likelihood(model, asked, asking.chat, table),
        "written": _by_writing(model, asked, asking.chat, table),
        "questions": table,
    }


def _prompt(asked: Asked, chat: bool) -> str:
    """What stands before the first answer that is written; of a conversation its turns, without the template."""
    if not chat:
        return asked.form.prompt(asked.items[0], asked.examples, True)
    return as_text(conversation(asked.form, asked.items[0], asked.examples, True))


def _by_likelihood(model: MeasuredModel, asked: Asked, chat: bool, table: list[dict]) -> dict[str, Any]:
    """The figures of the likelihoods of choices, if questions have choices; `table` gets the likeliest of each."""
    numbers = [number for number, item in enumerate(asked.items) if item.choices]
    if not numbers:
        return {}
    items = [asked.items[number] for number in numbers]
    scores = _scores(model, asked, items, chat)
    chosen = [dict(zip(RULES, by_rule.argmax(axis=1).tolist(), strict=True)) for by_rule in scores]
    for number, item, by_rule in zip(numbers, items, chosen, strict=True):
        likeliest = {rule: item.choices[choice] for rule, choice in by_rule.items()}
        table[number] |= {"choices": list(item.choices), "likeliest": likeliest}
    right = {
        rule: [by_rule[rule] == item.right_choice for item, by_rule in zip(items, chosen, strict=True)]
        for rule in RULES
    }
    chance = float(np.mean([1 / len(item.choices) for item in items]))
    shares = {rule: _share(right[rule]) for rule in RULES}
    return {"likelihood": shares, "chance": chance, "probabilities": [_softmax(by_rule[0]) for by_rule in scores]}


def _softmax(log_probabilities: np.ndarray) -> list[float]:
    """The probability of each choice, given that it is one of them."""
    likelier = np.exp(log_probabilities - log_probabilities.max())
    return (likelier / likelier.sum()).tolist()


def _by_writing(model: MeasuredModel, asked: Asked, chat: bool, table: list[dict]) -> dict[str, Any]:
    """The figures of what the model writes; `table` gets it."""
    said, items = _written(model, asked, chat), asked.items
    exact = [_is_right(text, item) for text, item in zip(said, items, strict=True)]
    f1 = [character_f1(text, item.answers) for text, item in zip(said, items, strict=True)]
    for row, text, is_right in zip(table, said, exact, strict=True):
        row |= {"written": text, "right": is_right}
    found = _share(exact) | {"f1": float(np.mean(f1)), "f1_interval": list(of_mean(f1))}
    none = [not _chosen(text, item) for text, item in zip(said, items, strict=True) if item.choices]
    return found | ({"no_choice": float(np.mean(none))} if none else {})


def _share(right: Sequence[bool]) -> dict[str, Any]:
    count, interval = len(right), list(wilson(sum(right), len(right)))
    return {"right": sum(right), "count": count, "share": sum(right) / count, "interval": interval}


def _is_right(said: str, item: Item) -> bool:
    if item.choices:
        return _chosen(said, item) == item.answers[0]
    return is_exact(said, item.answers)


def _chosen(said: str, item: Item) -> str:
    """The choice that was written, by its text or by its letter; empty if it is none."""
    named = dict(zip(string.ascii_uppercase, item.choices, strict=False))
    named |= {normalized(choice): choice for choice in item.choices}
    return named.get(normalized(said), "")


def _scores(model: MeasuredModel, asked: Asked, items: Sequence[Item], chat: bool) -> list[np.ndarray]:
    """Of each question, by each rule the score of each choice, `[rules, choices]`: the likeliest has the highest.

    By PMI it is the choice that the question makes the most likelier than it is after the cue alone (Holtzman et al.
    2021, "Surface Form Competition").
    """
    requests, sizes = [], []
    for item in items:
        for choice in item.choices:
            after = _pair(model, asked, item, choice, chat)
            alone = encoded(model.session.tokenizer, asked.form.cue, asked.form.space + choice)
            requests += [after, Continuation(*map(tuple, alone))]
            sizes.append([len(after.continuation), len(choice.encode())])
    scores = np.array([found.log_probability for found in model.likelihoods(requests)]).reshape(-1, 2)
    tokens, size = np.array(sizes, np.float64).T
    by_rule = np.stack([scores[:, 0], scores[:, 0] / tokens, scores[:, 0] / size, scores[:, 0] - scores[:, 1]])
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    return np.split(by_rule, ends, axis=1)


def _pair(model: MeasuredModel, asked: Asked, item: Item, answer: str, chat: bool) -> Continuation:
    tokenizer = model.session.tokenizer
    if chat:
        turns = conversation(asked.form, item, asked.examples, False)
        ids = tokenizer.chat_template(turns, add_generation_prompt=True)[0], tokenizer.encode(answer)
    else:
        ids = encoded(tokenizer, asked.form.prompt(item, asked.examples, False), asked.form.space + answer)
    return Continuation(*map(tuple, ids))


def _written(model: MeasuredModel, asked: Asked, chat: bool) -> list[str]:
    """The likeliest text after each question: one line, or in a conversation what the model says."""
    tokenizer, requests = model.session.tokenizer, []
    for item in asked.items:
        if chat:
            turns = conversation(asked.form, item, asked.examples, True)
            ids = tokenizer.chat_template(turns, add_generation_prompt=True)[0]
        else:
            ids = [*tokenizer.begin, *tokenizer.encode(asked.form.prompt(item, asked.examples, True))]
        requests.append(Writing(tuple(ids), asked.tokens, () if chat else ("\n",)))
    return model.written(requests)
