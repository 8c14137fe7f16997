"""A question with its right answer: what the sets of questions for tuning are made of (`tenki`, `domains`)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Form = TypeVar("Form")
LONGEST = 500  # characters of a question and its answer: with a small vocabulary about 170 tokens


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
    """

    question: str
    answers: tuple[str, ...]
    kind: str
    entity: str = ""
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)


def conversations(questions: Iterable[Question]) -> Iterator[dict]:
    """Each question and its answer as one conversation: {"messages": [{"role", "content"}, …]}, and its fields."""
    for question in questions:
        user = {"role": "user", "content": question.question}
        messages = [user, {"role": "assistant", "content": question.answers[0]}]
        yield {"messages": messages} | ({"fields": dict(question.fields)} if question.fields else {})


def place(text: str) -> float:
    """A number from 0 to 1 by the hash of a text. What is chosen by it is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def form(forms: Sequence[Form], entity: str) -> Form:
    """One of several forms of a question, by the hash of its entity."""
    return forms[int(place(f"form {entity}") * len(forms))]


def split(questions: Iterable[Question], held_out_fraction: float) -> tuple[list[Question], list[Question]]:
    """Questions to tune on, and held-out questions, by the hash of their entities.

    What is held out depends on nothing else: not on the recipe's seed, and not on the other questions.
    """
    parts: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        parts[place(f"held out {question.entity}") < held_out_fraction].append(question)
    return parts


def some(questions: Iterable[Question], most: int) -> list[Question]:
    """At most `most` of the questions that are short enough: those of the lowest hashes, in the order of the hashes."""
    short = [question for question in questions if len(question.question) + len(question.answers[0]) <= LONGEST]
    return sorted(short, key=lambda question: place(f"asked {question.question}"))[:most]
