"""Files of questions: JSON Lines, JSON or Parquet, in the shapes of `items.py`, and llm-jp-eval's.

A file of llm-jp-eval 1.x is one object: `instruction` for all questions, `few_shots` and `samples` of `input` and
`output`, and perhaps `output_length`.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension
from tpullm.data.examples.example_rows import READERS, rows
from tpullm.data.examples.json_rows import JsonText, parse
from tpullm.errors import UserError
from tpullm.measuring.items import Item, items

MOST_BYTES = 64 << 20  # of a file that is one object
TOKENS = 64  # of an answer, if the file does not say


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file.

    Args:
        name: of the file, without its folder and its extension.
        version: the hash of its questions, so that a figure names what it was measured on.
        items: the questions.
        examples: questions for few-shot prompts, if the file has them apart.
        tokens: the most tokens of an answer that is written.
        file: its name with its extension.
    """

    name: str
    version: str
    items: tuple[Item, ...]
    examples: tuple[Item, ...] = ()
    tokens: int = TOKENS
    file: str = ""


def is_question_file(name: str) -> bool:
    """Whether a word after `--tasks` names a file of questions."""
    return extension(storage.path(name)) in READERS


def read(name: str) -> QuestionFile:
    """The questions of a file.

    Raises:
        UserError: there is no such file, no question in it, or a row has a mistake; the error says where.
    """
    path = storage.path(name)
    if not path.is_file():
        raise UserError(f"--tasks: {path}: no such file of questions; correct the name")
    whole = _one_object(path)
    if whole is not None and isinstance(whole.get("samples"), list):
        found = _llm_jp_eval(whole, path)
    else:
        found = [], [item for where, row in rows(path) for item in items(row, where)], TOKENS
    examples, asked, tokens = found
    if not asked:
        raise UserError(f"{path}: has no question; write one JSON object a line, with question and answer")
    version = hashlib.sha256(repr((examples, asked, tokens)).encode()).hexdigest()[:16]
    return QuestionFile(path.name.split(".")[0], version, tuple(asked), tuple(examples), tokens, path.name)


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
        return parse(begin.decode("utf-8-sig"), str(path))
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
            found[key] += items({**row, "instruction": instruction}, where)
    return found["few_shots"], found["samples"], tokens
