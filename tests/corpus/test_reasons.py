"""Every reason that a filter gives has a meaning, and no meaning is left over."""

import ast
from pathlib import Path

from tpullm.corpus import document
from tpullm.corpus.document import REASONS
from tpullm.corpus.files import warc
from tpullm.corpus.filters import gopher

FILES = "verdicts quality gopher address_lists document_files document warc programming source_files".split()
FOLDER = Path(document.__file__).parent


def nodes(name):
    (path,) = FOLDER.rglob(f"{name}.py")
    return list(ast.walk(ast.parse(path.read_text("utf-8"))))


def strings(found):
    return {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def returned(name):
    """The sentences that the functions of a file return, alone or in a conditional."""
    values = [node.value for node in nodes(name) if isinstance(node, ast.Return) and node.value is not None]
    branches = [node for value in values for node in ast.walk(value) if isinstance(node, ast.IfExp)]
    return strings([*values, *(part for node in branches for part in (node.body, node.orelse))]) - {""}


def test_every_reason_has_a_meaning_and_no_meaning_is_left_over():
    given = set().union(*(strings(nodes(name)) for name in FILES))
    given |= {f"reserved ({word})" for word in ("noai", "noimageai", "tdm-reservation")}
    assert set(REASONS) - given == set()
    known = set(REASONS)
    for name in ("gopher", "quality", "verdicts", "address_lists"):
        assert returned(name) - known == set()
    assert {*gopher.DROPPING} <= known
    assert {*document.BAD, document.NOT_UTF8.dropped, warc.NOT_A_PAGE, warc.NO_SUCCESS} <= known
    assert {"repeated lines", "repeated phrases"} <= returned("gopher") and gopher.limits("en")
