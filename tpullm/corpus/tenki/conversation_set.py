"""Conversations about tenki's world: questions in a row, greetings, and questions that no text of tenki answers.

People do not ask one question and leave. So tuning learns from conversations of several turns, which `conversations`
draws from the questions of `question_set.py`, by hashes.
"""

import itertools
from collections.abc import Iterator, Sequence
from importlib import resources

import yaml

from tpullm.corpus.question import Question, form_by_hash, number_by_hash

UNKNOWN = "unknown"  # the kind of a question that no text of tenki answers
LEAST_TIMES, LEAST_OF_A_KIND = 3, 400  # turns in which a question stands, and turns with questions of its kind
MOST_QUESTIONS, MOST_CHARACTERS = 5, 150  # of a conversation: it fits the 256 tokens of the quickstart's context
_SMALL_TALK = yaml.safe_load(resources.files(__package__).joinpath("small_talk.yaml").read_text(encoding="utf-8"))
_OF_A_TOPIC = 2  # questions
_ENDS = ("。", "。", "。", "？", "")  # how people end a question
_GREETS, _ASKS_MORE = 0.3, 0.2  # shares: of the conversations, of the turns


def unknown_questions() -> Iterator[Question]:
    """Questions that no text of tenki answers, with the answer that says so. The entity is the topic."""
    for group in _SMALL_TALK["questions"]:
        for topic in group["topics"].split():
            forms = sorted(group["forms"], key=lambda form, topic=topic: number_by_hash(f"{form} {topic}"))
            for form in forms[:_OF_A_TOPIC]:
                yield Question(form.format(topic), (_SMALL_TALK["unknown"],), UNKNOWN, f"{UNKNOWN} {topic}")


def greetings() -> list[Question]:
    """Greetings and their answers. All are learned: one that was never heard could not be answered."""
    return [Question(said, (answer,), "greeting", said) for said, answer in _SMALL_TALK["greetings"].items()]


def conversations(questions: Sequence[Question], seed: int, turns: int = 0) -> Iterator[list[Question]]:
    """Conversations in which every question stands several times, with greetings between; each a list of turns.

    Args:
        questions: of all kinds; those of the kind `unknown` stand between the others.
        turns: of each conversation, without those that are left at the end; 0: as few as people need, by hash.
    """
    of_kind: dict[str, list[Question]] = {}
    for question in questions:
        of_kind.setdefault(question.kind, []).append(question)
    others = _endless(of_kind.pop(UNKNOWN, []), seed)
    greets, talk = _endless(greetings(), seed), []
    times = {kind: max(LEAST_TIMES, -(-LEAST_OF_A_KIND // len(found))) for kind, found in of_kind.items()}
    asked = [(question, n) for found in of_kind.values() for question in found for n in range(times[question.kind])]
    asked.sort(key=lambda pair: number_by_hash(f"{seed} {pair[1]} {pair[0].question}"))
    for place, (question, _) in enumerate(asked):
        drawn = f"{seed} {place}"
        if number_by_hash(f"greets {drawn}") < (_GREETS if not talk else _GREETS / MOST_QUESTIONS):
            talk.append(next(greets))
        if number_by_hash(f"asks {drawn}") < _ASKS_MORE and (other := next(others, None)):
            talk.append(_asked(other, drawn))
        talk.append(_asked(question, drawn))
        most = turns or 1 + int(number_by_hash(f"turns {drawn}") * MOST_QUESTIONS)
        is_long = sum(len(turn.question + turn.answers[0]) for turn in talk) > MOST_CHARACTERS
        if len(talk) >= most or is_long and not turns:
            yield talk[: turns or None]
            talk = []
    if talk and not turns:
        yield talk


def _asked(question: Question, drawn: str) -> Question:
    """The question as somebody types it: with its stop, with ？, or without either."""
    end = form_by_hash(_ENDS, f"{drawn} {question.question}")
    asked = question.question.removesuffix("。") + end if question.question.endswith("。") else question.question
    return Question(asked, question.answers, question.kind, question.entity)


def _endless(questions: Sequence[Question], seed: int) -> Iterator[Question]:
    return itertools.cycle(sorted(questions, key=lambda question: number_by_hash(f"{seed} {question.question}")))
