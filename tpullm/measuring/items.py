"""Questions with right answers, in the shapes in which people write and publish them.

JGLUE: Kurihara et al. 2022. SQuAD, whose form JSQuAD has: Rajpurkar et al. 2016.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpullm.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        text: the question, or what the instruction is about; may be empty if there is an instruction.
        answers: the right answers, which are equally right.
        choices: the answers to choose from; none if the answer is free.
        instruction: what to do with the text.
        parts: the texts that `text` is made of, if it is made of several; a copy of the task elsewhere has these.
    """

    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    instruction: str = ""
    parts: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def right_choice(self) -> int:
        """The number of the right choice."""
        return self.choices.index(self.answers[0])


def items(row: Row, where: str) -> list[Item]:
    """The questions of a row: one, or those about all paragraphs of an article.

    Raises:
        UserError: the row is of no known shape, or has a mistake.
    """
    for keys, read in SHAPES.items():
        if all(row.get(key) is not None for key in keys):
            return read(row, where)
    shapes = "; ".join(", ".join(keys) for keys in SHAPES)
    raise UserError(f"{where}: has the keys {', '.join(map(str, row))}; a question has one of these sets: {shapes}")


def _with_choices(row: Row, where: str) -> list[Item]:
    choices, labels = row["choices"], list(string.ascii_uppercase)
    if isinstance(choices, dict):  # as AI2 publishes ARC
        choices, labels = choices.get("text"), choices.get("label")
    if not _texts(choices) or not 2 <= len(choices) <= 26 or not _texts(labels) or len(set(choices)) < len(choices):
        raise UserError(f"{where}: 'choices' is not a list of 2 to 26 different texts; write one")
    right = _chosen(row["answer"], choices, labels)
    if right is None:
        raise UserError(
            f"{where}: 'answer' is {row['answer']!r:.60} and no choice; write the text of a choice, its number from 0 "
            f"to {len(choices) - 1}, or its letter"
        )
    return [Item(_text(row, "question", where), (choices[right],), tuple(choices))]


def _chosen(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """The number of the choice that an answer names."""
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(choices) else None
    if answer in choices:
        return choices.index(answer)
    return labels.index(answer) if answer in labels[: len(choices)] else None


def _free(row: Row, where: str) -> list[Item]:
    answers = [row["answer"]] if isinstance(row["answer"], str | int | float) else row["answer"]
    if not answers or not isinstance(answers, list):
        raise UserError(f"{where}: 'answer' is {row['answer']!r:.60}; write a text, or a list of right answers")
    return [Item(_text(row, "question", where), tuple(map(str, answers)))]


def _instruction(row: Row, where: str) -> list[Item]:
    text = _text(row, "input", where) if row.get("input") else ""
    return [Item(text, (_text(row, "output", where),), instruction=_text(row, "instruction", where))]


def _jcommonsenseqa(row: Row, where: str) -> list[Item]:
    choices = [row[key] for key in (f"choice{number}" for number in range(5)) if key in row]
    return _with_choices({"question": row["question"], "choices": choices, "answer": row["label"]}, where)


def _jnli(row: Row, where: str) -> list[Item]:
    text = f"前提: {_text(row, 'sentence1', where)}\n仮説: {_text(row, 'sentence2', where)}"
    labels, parts = ("entailment", "contradiction", "neutral"), (row["sentence1"], row["sentence2"])
    return [replace(_labelled(text, row, labels, "前提と仮説の関係を答えてください。", where), parts=parts)]


def _marc(row: Row, where: str) -> list[Item]:
    instruction = "製品のレビューが肯定的か否定的かを答えてください。"
    return [_labelled(_text(row, "text", where), row, ("positive", "negative"), instruction, where)]


def _labelled(text: str, row: Row, labels: tuple[str, ...], instruction: str, where: str) -> Item:
    if row["label"] not in labels:
        raise UserError(f"{where}: 'label' is {row['label']!r:.60} and none of {', '.join(labels)}; correct it")
    return Item(text, (row["label"],), labels, instruction)


def _squad(row: Row, where: str) -> list[Item]:
    try:
        return [
            Item(
                f"{(context := _paragraph(paragraph['context']))}\n質問: {asked['question']}",
                tuple(dict.fromkeys(answers)),
                parts=(context, str(asked["question"])),
            )
            for paragraph in row["paragraphs"]
            for asked in paragraph["qas"]
            if (answers := [str(answer["text"]) for answer in asked["answers"]])  # SQuAD 2.0: some have none
        ]
    except (KeyError, TypeError):
        raise UserError(f"{where}: 'paragraphs' are not those of SQuAD's form; copy the file again") from None


def _paragraph(context: str) -> str:
    """JSQuAD has the title before a mark of BERT, which no other model reads."""
    return str(context).replace(" [SEP] ", "\n")


def _text(row: Row, key: str, where: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise UserError(f"{where}: {key!r} is {row[key]!r:.60} and no text; write one")
    return row[key]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


# The keys of a shape, the most telling first, and what makes questions of such a row.
SHAPES: dict[tuple[str, ...], Callable[[Row, str], list[Item]]] = {
    ("question", "choices", "answer"): _with_choices,
    ("question", "choice0", "choice1", "label"): _jcommonsenseqa,
    ("sentence1", "sentence2", "label"): _jnli,
    ("paragraphs",): _squad,
    ("instruction", "output"): _instruction,
    ("question", "answer"): _free,
    ("text", "label"): _marc,
}
