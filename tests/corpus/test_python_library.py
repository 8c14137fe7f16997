"""The documentation and the code of the running Python, with no sentence in both."""

import ast

import pytest

from tpullm.corpus.domains import programming
from tpullm.system.errors import UserError


def _documents(name, part):
    return list(programming.documents(programming.folder() / name, part))


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
    original = (programming.folder() / "textwrap.py").read_text(encoding="utf-8")
    assert {node.name for node in scopes[1:]} == {
        node.name for node in ast.walk(ast.parse(original)) if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def test_a_body_that_is_only_a_docstring_stays_a_body():
    source = 'class A(Exception):\n    """Text.\n\n    More.\n    """\n\ndef f(): "one line"\n'
    code = programming._without_docstrings(ast.parse(source), source)
    assert code == 'class A(Exception):\n    pass\n\ndef f(): "one line"\n'


def test_files_are_sorted_and_hold_no_tests():
    files = programming.files("")
    assert files[0].name == "topics.py" and files[1:] == sorted(files[1:])
    assert programming.files("code") == files[1:]
    assert not any("test" in path.relative_to(programming.folder()).parts for path in files)


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="documentation, code or nothing"):
        programming.files("tests")


SOURCE = '''"""Of the module."""

class A:
    """Of the class."""

    def f(self, x, *, y=1):
        """Of the method.

            Indented.
        """

        def inner():
            """Of nothing that a reader sees."""

    class B:
        async def g(self): ...


def undocumented():
    def h():
        """Deep."""


if True:
    def conditional():
        """In a branch."""
        return 1
'''


def test_docstrings_stand_under_the_names_that_a_reader_sees():
    told = programming._docstrings(ast.parse(SOURCE), "package.module")
    assert told == (
        "package.module\n\nOf the module.\n\nclass A\n\nOf the class.\n\n"
        "A.f(self, x, *, y=1)\n\nOf the method.\n\nIndented.\n"
    )
    assert [title for _, title in programming._scopes(ast.parse(SOURCE), "m")] == [
        "m", "class A", "A.f(self, x, *, y=1)", "class A.B", "A.B.g(self)", "undocumented()",
    ]  # fmt: skip
    assert programming._docstrings(ast.parse("x = 1"), "m") == ""


def test_every_docstring_is_gone_from_the_code_and_nothing_else():
    code = programming._without_docstrings(ast.parse(SOURCE), SOURCE)
    assert '"""' not in code
    kept = ast.parse(code)
    assert [node.name for node in ast.walk(kept) if hasattr(node, "name")] == [
        node.name for node in ast.walk(ast.parse(SOURCE)) if hasattr(node, "name")
    ]
    lines = [
        line for line in SOURCE.split("\n") if line.startswith(("class", "def", "if", "    def", "        return"))
    ]
    assert all(line in code.split("\n") for line in lines)
    assert code.count("pass") == 2  # the bodies that were a docstring alone
    plain = "x = 1\n\ndef f():\n    return 'text'\n"
    assert programming._without_docstrings(ast.parse(plain), plain) == plain


def test_a_module_is_named_as_it_is_imported():
    folder = programming.folder()
    assert programming.module_name(folder / "json" / "__init__.py") == "json"
    assert programming.module_name(folder / "json" / "decoder.py") == "json.decoder"


@pytest.mark.parametrize(("part", "languages"), [("", ["en", "code"]), ("documentation", ["en"]), ("code", ["code"])])
def test_a_part_of_the_library_is_its_documentation_or_its_code(part, languages):
    assert [raw.language for raw in _documents("textwrap.py", part)] == languages


def test_a_file_of_another_python_is_dropped(tmp_path):
    (tmp_path / "old.py").write_text("print 'text'\n")
    assert [raw.dropped for raw in programming.documents(tmp_path / "old.py", "")] == ["not Python"]
