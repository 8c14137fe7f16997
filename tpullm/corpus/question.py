"""A question with its right answer: what the sets of questions for tuning are made of (`tenki`, `domains`).

Questions are made by rule and chosen by hashes, so they are the same on every machine. An answer is judged exactly, up
to what does not matter, or by tests.
"""

import hashlib
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Form = TypeVar("Form")
Facts = Mapping[str, Iterable[tuple[str, str, str]]]  # of each its entity, the text for `{}` in the form, the answer
LONGEST = 500  # characters of a question and its answer: with a small vocabulary about 170 tokens
FENCE = re.compile(r"```(?:\w+)?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        question: what the user says.
        answers: the right answers, several only if they are equally right. Tuning learns the first.
        kind: the kind of question; results are counted by it.
        entity: what the question is about. All questions about an entity are held out, or none.
        fields: what else judges an answer. Of code `prompt`, the text that it completes, and `tests`, assertions. Of a
            casual answer `mentions`, what a right one says in any form.
        guess: the answer of a simple rule, to stand beside those of a model: where the question gives what to choose
            from, what has the most characters in common with what is sought. Without it, the commonest answer.
    """

    question: str
    answers: tuple[str, ...]
    kind: str
    entity: str = ""
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    guess: str = ""


def number_by_hash(text: str) -> float:
    """A number from 0 to 1 by the hash of a text. What is chosen by it is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def form_by_hash(forms: Sequence[Form], entity: str) -> Form:
    """One of several forms of a question, by the hash of its entity."""
    return forms[int(number_by_hash(f"form {entity}") * len(forms))]


def ask(facts: Facts, forms: Mapping[str, list[str]], most: int, form_by: Callable[[str], str] = str) -> list[Question]:
    """`some` of the questions of each kind: of each fact one, in one of the forms of its kind.

    Args:
        facts: of each kind.
        form_by: an entity → the text whose hash chooses the form.
    """
    found: list[Question] = []
    for kind, of_kind in facts.items():
        questions = (
            Question(form_by_hash(forms[kind], form_by(entity)).format(text), (answer,), kind, entity)
            for entity, text, answer in of_kind
        )
        found += questions_of_lowest_hashes(questions, most)
    return found


def questions_of_lowest_hashes(questions: Iterable[Question], most: int) -> list[Question]:
    """At most `most` of the questions that are short enough: those of the lowest hashes, in the order of the hashes."""
    short = [question for question in questions if len(question.question) + len(question.answers[0]) <= LONGEST]
    return sorted(short, key=lambda question: number_by_hash(f"asked {question.question}"))[:most]


def split(questions: Iterable[Question], held_out_fraction: float) -> tuple[list[Question], list[Question]]:
    """Questions to tune on, and held-out questions, by the hash of their entities.

    What is held out depends on nothing else: not on the recipe's seed, and not on the other questions. Only of a few
    entities, where the hash would hold out none or all, it is one, or all but one.
    """
    found = list(questions)
    numbers = sorted({number_by_hash(f"held out {question.entity}") for question in found})
    bound = held_out_fraction
    if 0 < bound < 1 and len(numbers) > 1:
        bound = max(numbers[1], min(bound, numbers[-1]))
    parts: tuple[list[Question], list[Question]] = ([], [])
    for question in found:
        parts[number_by_hash(f"held out {question.entity}") < bound].append(question)
    return parts


def messages(turns: Iterable[Question]) -> list[dict[str, str]]:
    """Questions and their answers, one after the other, as one conversation."""
    pairs = ((("user", turn.question), ("assistant", turn.answers[0])) for turn in turns)
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


def is_right(question: Question, said: str, passes: Callable[[str, str], bool]) -> bool:
    """Whether an answer is right.

    Args:
        passes: whether a program passes tests; it runs both where they can do no harm.
    """
    if "tests" not in question.fields:
        return normalized(said) in map(normalized, question.answers)
    # The answer is the whole function or its body, in a block of Markdown or not.
    prompt, block = question.fields["prompt"], FENCE.search(said)
    code = textwrap.dedent(block[1] if block else said).strip("\n")
    name = re.search(r"def (\w+)", prompt)[1]
    is_whole = re.search(rf"^def {name}\(", code, re.MULTILINE)
    return passes(code if is_whole else prompt + textwrap.indent(code, "    "), question.fields["tests"])


def normalized(text: str) -> str:
    """A text without what does not make an answer another one: case, spaces, quotes around it and a final stop."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip("。.").strip(" \"'`“”「」")
