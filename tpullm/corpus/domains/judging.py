"""Judges answers: exactly, up to what does not matter, or by tests."""

import re
import textwrap
import unicodedata
from collections.abc import Callable, Mapping

from tpullm.corpus.question import Question

FENCE = re.compile(r"```(?:\w+)?\n(.*?)```", re.DOTALL)
INDENT = "    "


def is_right(question: Question, said: str, passes: Callable[[str, str], bool]) -> bool:
    """Whether an answer is right.

    Args:
        passes: whether a program passes tests; it runs both where they can do no harm.
    """
    if "tests" in question.fields:
        return passes(program(question.fields, said), question.fields["tests"])
    return normalized(said) in map(normalized, question.answers)


def normalized(text: str) -> str:
    """A text without what does not make an answer another one: case, spaces, quotes around it and a final stop."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip("。.").strip(" \"'`“”「」")


def program(fields: Mapping[str, str], said: str) -> str:
    """The function of an answer, which is the whole of it or its body, in a block of Markdown or not."""
    block = FENCE.search(said)
    code = textwrap.dedent(block[1] if block else said).strip("\n")
    name = re.search(r"def (\w+)", fields["prompt"])[1]
    if not re.search(rf"^def {name}\(", code, re.MULTILINE):
        code = fields["prompt"] + textwrap.indent(code, INDENT)
    return code
