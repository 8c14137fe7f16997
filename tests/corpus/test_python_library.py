"""The documentation and the code of the running Python, with no sentence in both."""

import ast

import pytest

from tpullm.corpus import python_library
from tpullm.errors import UserError


def _documents(name, part):
    return list(python_library.documents(python_library.folder() / name, part))


def test_topics_are_one_document_each():
    topics = _documents("pydoc_data/topics.py", "documentation")
    assert len(topics) > 50
    assert any(raw.text.startswith('The "assert" statement\n') for raw in topics)
    assert {raw.language for raw in topics} == {"en"}


def test_docstrings_say_what_help_says():
    [documentation] = _documents("textwrap.py", "documentation")
    assert documentation.text.startswith("textwrap\n\nText wrapping and filling.")
    assert "dedent(text)\n\nRemove any common leading whitespace" in documentation.text


def test_code_is_the_module_without_its_docstrings():
    [code] = _documents("textwrap.py", "code")
    assert code.language == "code"
    module = ast.parse(code.text)
    scopes = [node for node in ast.walk(module) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    assert all(ast.get_docstring(scope) is None for scope in scopes)
    assert "Remove any common leading whitespace" not in code.text
    original = (python_library.folder() / "textwrap.py").read_text(encoding="utf-8")
    assert {node.name for node in scopes[1:]} == {
        node.name for node in ast.walk(ast.parse(original)) if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def test_a_body_that_is_only_a_docstring_stays_a_body():
    source = 'class A(Exception):\n    """Text.\n\n    More.\n    """\n\ndef f(): "one line"\n'
    code = python_library._without_docstrings(ast.parse(source), source)
    assert code == 'class A(Exception):\n    pass\n\ndef f(): "one line"\n'


def test_files_are_sorted_and_hold_no_tests():
    files = python_library.files("")
    assert files[0].name == "topics.py" and files[1:] == sorted(files[1:])
    assert python_library.files("code") == files[1:]
    assert not any("test" in path.relative_to(python_library.folder()).parts for path in files)


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="documentation, code or nothing"):
        python_library.files("tests")
