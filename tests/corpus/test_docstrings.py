"""Questions about docstrings: first sentences of this Python's own, in one form, read without importing anything."""

import builtins
import importlib
import inspect
import sys

import pytest

from tests.corpus.test_domains import check
from tpullm.corpus import question
from tpullm.corpus.domains import docstrings


@pytest.fixture(scope="module")
def asked():
    return docstrings.questions()


def test_they_are_enough_and_each_answer_is_a_sentence_of_its_own(asked):
    check(asked)
    assert len(asked) == docstrings.MOST == 625
    learned, held_out = question.split(asked, 0.2)
    assert 450 < len(learned) < 550 and 80 < len(held_out) < 170
    assert all(keeps(one.answers[0]) for one in asked for keeps in docstrings.RULES.values())
    assert len({one.answers[0].lower() for one in asked}) == len({one.entity for one in asked}) == len(asked)


def test_an_answer_is_what_the_object_itself_says(asked):
    """Of built-in types, and of some modules that are harmless to import and have no version in C."""
    modules, seen = ("statistics", "textwrap", "random", "shutil", "calendar", "urllib.parse"), set()
    for one in asked:
        module = next((name for name in modules if one.entity.startswith(f"{name}.")), "builtins")
        path = one.entity.removeprefix(f"{module}.").split(".")
        if module == "builtins" and not hasattr(builtins, path[0]):
            continue
        found = importlib.import_module(module)
        for name in path:
            found = getattr(found, name)
        assert " ".join(inspect.getdoc(found).split()).startswith(one.answers[0]), one.entity
        seen.add(module)
    assert seen == {*modules, "builtins"}


def test_nothing_is_imported(asked):
    assert not {"turtle", "tkinter", "imaplib", "poplib"} & set(sys.modules)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum.\n\nMore of it.", "Return the sum."),
        ("\n    Return the\n    sum.  It is exact.\n    ", "Return the sum."),
        ("Read from sys.stdin until it ends.", "Read from sys.stdin until it ends."),
        ("No full stop", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring, sentence):
    assert docstrings.first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Return the sum of all values.", (True, True, True, True)),
        (" Return the sum of all values.\n", (True, True, True, True)),
        ("The `sum` function returns the sum. It takes a list.", (False, False, True, True)),
        ("Return this:\n- a list\n- a set of them", (False, True, False, True)),
        ("Return it.", (True, True, True, False)),
        ("Return " + "it and " * 20 + "it.", (True, True, True, False)),
        ("", (True, False, False, False)),
    ],
)
def test_the_rules_look_at_the_form(said, kept):
    assert tuple(rule(said) for rule in docstrings.RULES.values()) == kept
