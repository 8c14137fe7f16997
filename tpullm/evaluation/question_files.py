"""Files of questions with right answers: JSON Lines, JSON or Parquet, in the shapes in which people publish them.

JGLUE: Kurihara et al. 2022. SQuAD, whose form JSQuAD has: Rajpurkar et al. 2016. A file of llm-jp-eval 1.x is one
object: `instruction` for all questions, `few_shots` and `samples` of `input` and `output`, and perhaps `output_length`.
"""

import hashlib
import io
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tpullm.corpus.files.json_text import JsonText, parse_json
from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension
from tpullm.data.examples.example_rows import READERS, rows_of_file
from tpullm.system import storage
from tpullm.system.errors import UserError

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


def items_of_row(row: Row, where: str) -> list[Item]:
    """The questions of a row: one, or those about all paragraphs of an article.

    Raises:
        UserError: the row is of no known shape, or has a mistake.
    """
    for keys, read in SHAPES.items():
        if all(row.get(key) is not None for key in keys):
            return read(row, where)
    shapes = "; ".join(", ".join(keys) for keys in SHAPES)
    raise UserError(f"{where}: has the keys {', '.join(map(str, row))}; a question has one of these sets: {shapes}")


def _choice_items(row: Row, where: str) -> list[Item]:
    choices, labels = row["choices"], list(string.ascii_uppercase)
    if isinstance(choices, dict):  # as AI2 publishes ARC
        choices, labels = choices.get("text"), choices.get("label")
    if not _texts(choices) or not 2 <= len(choices) <= 26 or not _texts(labels) or len(set(choices)) < len(choices):
        raise UserError(f"{where}: 'choices' is not a list of 2 to 26 different texts; write one")
    answer = row["answer"]  # the text of a choice, its letter or its number
    right = next((names.index(answer) for names in (choices, labels[: len(choices)]) if answer in names), answer)
    if type(right) is not int or not 0 <= right < len(choices):
        raise UserError(
            f"{where}: 'answer' is {answer!r:.60} and no choice; write the text of a choice, its number from 0 "
            f"to {len(choices) - 1}, or its letter"
        )
    return [Item(text_at(row, "question", where), (choices[right],), tuple(choices))]


def _free_answer_items(row: Row, where: str) -> list[Item]:
    answers = [row["answer"]] if isinstance(row["answer"], str | int | float) else row["answer"]
    if not answers or not isinstance(answers, list):
        raise UserError(f"{where}: 'answer' is {row['answer']!r:.60}; write a text, or a list of right answers")
    return [Item(text_at(row, "question", where), tuple(map(str, answers)))]


def _instruction_items(row: Row, where: str) -> list[Item]:
    text = text_at(row, "input", where) if row.get("input") else ""
    return [Item(text, (text_at(row, "output", where),), instruction=text_at(row, "instruction", where))]


def _jcommonsenseqa(row: Row, where: str) -> list[Item]:
    choices = [row[key] for key in (f"choice{number}" for number in range(5)) if key in row]
    return _choice_items({"question": row["question"], "choices": choices, "answer": row["label"]}, where)


def _jnli(row: Row, where: str) -> list[Item]:
    parts = (text_at(row, "sentence1", where), text_at(row, "sentence2", where))
    asked = {"question": f"前提: {parts[0]}\n仮説: {parts[1]}", "answer": row["label"]}
    (item,) = _choice_items(asked | {"choices": ["entailment", "contradiction", "neutral"]}, where)
    return [replace(item, instruction="前提と仮説の関係を答えてください。", parts=parts)]


def _marc(row: Row, where: str) -> list[Item]:
    asked = {"question": text_at(row, "text", where), "choices": ["positive", "negative"], "answer": row["label"]}
    (item,) = _choice_items(asked, where)
    return [replace(item, instruction="製品のレビューが肯定的か否定的かを答えてください。")]


def _squad(row: Row, where: str) -> list[Item]:
    try:
        return [
            Item(
                # JSQuAD has the title before a mark of BERT, which no other model reads.
                f"{(context := str(paragraph['context']).replace(' [SEP] ', chr(10)))}\n質問: {asked['question']}",
                tuple(dict.fromkeys(answers)),
                parts=(context, str(asked["question"])),
            )
            for paragraph in row["paragraphs"]
            for asked in paragraph["qas"]
            if (answers := [str(answer["text"]) for answer in asked["answers"]])  # SQuAD 2.0: some have none
        ]
    except (KeyError, TypeError):
        raise UserError(f"{where}: 'paragraphs' are not those of SQuAD's form; copy the file again") from None


def text_at(row: Row, key: str, where: str) -> str:
    """Return the text under a key of a row; `UserError` if it is empty or not text."""
    if not isinstance(row.get(key), str) or not row[key].strip():
        raise UserError(f"{where}: {key!r} is {row.get(key)!r:.60} and no text; write one")
    return row[key]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


# The keys of a shape, the most telling first, and what makes questions of such a row.
SHAPES: dict[tuple[str, ...], Callable[[Row, str], list[Item]]] = {
    ("question", "choices", "answer"): _choice_items,
    ("question", "choice0", "choice1", "label"): _jcommonsenseqa,
    ("sentence1", "sentence2", "label"): _jnli,
    ("paragraphs",): _squad,
    ("instruction", "output"): _instruction_items,
    ("question", "answer"): _free_answer_items,
    ("text", "label"): _marc,
}


MOST_BYTES = 64 << 20  # of a file that is one object
TOKENS = 64  # of an answer, if the file does not say
# 48 questions that come with tpullm, in English: what a model should still know after it was tuned to something else.
EVERYDAY, EVERYDAY_TOKENS = "everyday", 8


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file.

    Args:
        name: of the file, without its folder and its extension.
        version: the hash of its questions, so that a figure names what it was measured on.
        items: the questions.
        examples: questions for few-shot prompts, if the file has them apart.
        tokens: the most tokens of an answer that is written.
        file: its name with its extension, or `everyday`.
    """

    name: str
    version: str
    items: tuple[Item, ...]
    examples: tuple[Item, ...] = ()
    tokens: int = TOKENS
    file: str = ""


def is_question_file(name: str) -> bool:
    """Whether a word after `--tasks` names a file of questions."""
    return name == EVERYDAY or extension(storage.path(name)) in READERS


def read_questions(name: str) -> QuestionFile:
    """The questions of a file.

    Raises:
        UserError: there is no such file, no question in it, or a row has a mistake; the error says where.
    """
    path = Path(__file__).with_name(f"{EVERYDAY}.jsonl") if name == EVERYDAY else storage.path(name)
    if not path.is_file():
        raise UserError(f"--tasks: {path}: no such file of questions; correct the name")
    whole = _one_object(path)
    if whole is not None and isinstance(whole.get("samples"), list):
        examples, asked, tokens = _llm_jp_eval(whole, path)
    else:
        asked = [item for where, row in rows_of_file(path) for item in items_of_row(row, where)]
        examples, tokens = [], EVERYDAY_TOKENS if name == EVERYDAY else TOKENS
    if not asked:
        raise UserError(f"{path}: has no question; write one JSON object a line, with question and answer")
    version = hashlib.sha256(repr((examples, asked, tokens)).encode()).hexdigest()[:16]
    file = name if name == EVERYDAY else path.name
    return QuestionFile(path.name.split(".")[0], version, tuple(asked), tuple(examples), tokens, file)


def _one_object(path: Path) -> dict[str, Any] | None:
    """The value of a file of JSON that is one object, and not a list or JSON Lines."""
    if extension(path) != ".json":
        return None
    with readable(path), open_bytes(storage.local_copy(path)) as file:
        begin = file.read(MOST_BYTES + 1)
    if not begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") or JsonText(io.BytesIO(begin), str(path)).is_lines():
        return None
    if len(begin) > MOST_BYTES:
        raise UserError(f"{path}: is one object of more than {MOST_BYTES >> 20} MiB; write one question a line")
    try:
        return parse_json(begin.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; convert the file") from None


def _llm_jp_eval(whole: dict[str, Any], path: Path) -> tuple[list[Item], list[Item], int]:
    """The examples, the questions and the length of an answer."""
    instruction, tokens = whole.get("instruction"), whole.get("output_length", TOKENS)
    if not isinstance(instruction, str) or not isinstance(tokens, int) or not 0 < tokens <= 4096:
        raise UserError(f"{path}: its instruction or output_length is not llm-jp-eval's; copy the file again")
    found = {}
    for key in ("few_shots", "samples"):
        found[key] = []
        for number, row in enumerate(whole.get(key) or [], 1):
            where = f"{path}: {key}: row {number}"
            if not isinstance(row, dict) or "output" not in row:
                raise UserError(f"{where}: is no object with input and output; copy the file again")
            found[key] += items_of_row({**row, "instruction": instruction}, where)
    return found["few_shots"], found["samples"], tokens
