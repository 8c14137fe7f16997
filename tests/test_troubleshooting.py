"""The troubleshooting pages quote messages as the program prints them, and the same ones in every language."""

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*/troubleshooting.md"))
ANY = "\0"  # what a placeholder stands for
LEAST_WORDS, LEAST_SHARE = 3, 0.25  # of a message's words and letters, that are not a placeholder's


def quoted(page: Path) -> list[str]:
    """The lines of the page's blocks of text: each is a message, `…` where some of it is left out."""
    blocks = re.findall(r"```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def variants(node: ast.AST, constants: dict[str, str]) -> list[str]:
    """Every text that an expression can be, with `ANY` for what is known only when it runs."""

    def joined(*parts: ast.AST) -> list[str]:
        return ["".join(texts) for texts in itertools.product(*(variants(part, constants) for part in parts))]

    match node:
        case ast.Constant(value=str(text)):
            return [re.sub(r"\{\w+(:\w+)?\}", ANY, text)]  # what `format` fills in
        case ast.Name(id=name):
            return [constants.get(name, ANY)]
        case ast.JoinedStr(values=parts):
            return joined(*parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return joined(left, right)
        case ast.IfExp(body=body, orelse=otherwise):
            return joined(body) + joined(otherwise)
        case ast.FormattedValue(value=ast.IfExp() | ast.Name() as value):
            return joined(value)
    return [ANY]


def _of_python(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: value.value
        for node in tree.body
        for targets, value in [(getattr(node, "targets", ()), getattr(node, "value", None))]
        for target in targets
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    }
    said = [node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]
    return {text for node in said for text in variants(node, constants)}


def _of_shell(path: Path) -> set[str]:
    script = path.read_text(encoding="utf-8").replace("\\\n", "")
    for substitution in (r"\$\(\(.*?\)\)", r"\$\([^()]*(?:\([^()]*\)[^()]*)*\)", r"\$\{[^}]*\}|\$\w+"):
        script = re.sub(substitution, ANY, script)
    return set(re.findall(r'\b(?:die|say|echo) "((?:\\.|[^"\\])*)"', script))


def _letters(text: str) -> int:
    return len(re.sub(r"[\W\d_]", "", text))


@cache
def templates() -> list[tuple[re.Pattern, int]]:
    """A pattern for every text of the code that could be a message, and how many letters are its own."""
    texts = set().union(*map(_of_python, (ROOT / "tpullm").rglob("*.py")), _of_shell(ROOT / "launch" / "local.sh"))
    return [
        (re.compile("(?:[^:]+: )*?" + ".*?".join(map(re.escape, " ".join(text.split()).split(ANY)))), _letters(text))
        for text in texts
        if len(re.findall(r"(?<![\w.])[A-Za-z]+(?![\w.])", text)) >= LEAST_WORDS
    ]


def is_in_the_code(message: str) -> bool:
    """Whether some text of the code, its placeholders filled in, is the message."""
    said = message.removeprefix("local.sh: ").removeprefix("tpullm: ")
    least = LEAST_SHARE * _letters(said)
    return any(letters >= least and pattern.fullmatch(said) for pattern, letters in templates())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_message_is_one_of_the_program(page):
    missing = [message for message in quoted(page) if not is_in_the_code(message)]
    assert quoted(page) and not missing, "\n".join(missing)


def test_the_pages_quote_the_same_messages():
    messages = {page.parent.name: quoted(page) for page in PAGES}
    assert {"en", "ja"} <= set(messages)
    assert all(of_page == messages["en"] for of_page in messages.values())


@pytest.mark.parametrize("message", ["tpullm: corpus.sources: novels has no licenses; add", "tpullm: all is well"])
def test_a_message_of_no_program_is_noticed(message):
    assert not is_in_the_code(message)
