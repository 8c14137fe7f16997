"""The library's documentation and code share no sentence, questions have one right answer, and tests tell functions
to complete apart."""

import ast

import pytest

from tests.corpus.test_domains import answers, by_entity, check, passes
from tpullm.corpus import question
from tpullm.corpus.domains import programming
from tpullm.corpus.domains.programming import Function
from tpullm.system.errors import UserError


def _documents(name, part):
    return list(programming.documents(programming.folder() / name, part))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Makes a file of a small library: name and text → the documents of its documentation and of its code."""
    monkeypatch.setattr(programming, "folder", lambda: tmp_path)

    def read(name, text):
        (tmp_path / name).write_text(text)
        return [[raw.text for raw in _documents(name, part)] for part in ("documentation", "code")]

    return read


def test_topics_are_one_document_each_and_come_before_the_modules():
    topics = _documents("pydoc_data/topics.py", "documentation")
    assert len(topics) > 50
    assert any(raw.text.startswith('The "assert" statement\n') for raw in topics)
    assert {raw.language for raw in topics} == {"en"}
    files = programming.files("")  # they are sorted and hold no tests
    assert files[0].name == "topics.py" and files[1:] == sorted(files[1:])
    assert programming.files("code") == files[1:]
    assert not any("test" in path.relative_to(programming.folder()).parts for path in files)
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


def test_docstrings_stand_under_the_names_that_a_reader_sees_and_none_in_the_code(library):
    [documentation], [code] = library("m.py", SOURCE)
    assert [raw.language for raw in _documents("m.py", "")] == ["en", "code"]
    shown = ["m", "Of the module.", "class A", "Of the class.", "A.f(self, x, *, y=1)", "Of the method.", "Indented.\n"]
    assert documentation.split("\n\n") == shown and '"""' not in code
    named = [[node.name for node in ast.walk(ast.parse(text)) if hasattr(node, "name")] for text in (code, SOURCE)]
    assert named[0] == named[1]
    kept = [line for line in SOURCE.split("\n") if line.startswith(("class", "def", "if", "    def", "        return"))]
    assert all(line in code.split("\n") for line in kept)
    assert code.count("pass") == 2  # the bodies that were a docstring alone
    plain = "x = 1\n\ndef f():\n    return 'text'\n"
    assert library("m.py", plain) == [[], [plain]]
    [_], [code] = library("n.py", 'class A(Exception):\n    """Text.\n\n    More.\n    """\n\ndef f(): "one line"\n')
    assert code == 'class A(Exception):\n    pass\n\ndef f(): "one line"\n'


def test_functions_are_read_with_their_arguments_and_purpose():
    found = {function.path: function for function in programming.read(programming.folder() / "textwrap.py")}
    purpose = "Remove any common leading whitespace from every line in `text`."
    assert found["textwrap.dedent"] == Function("textwrap", "dedent", "text", purpose)
    assert found["textwrap.fill"].arguments == "text, width=70, **kwargs"
    assert found["textwrap.TextWrapper"].arguments == "" and not any("._" in path for path in found)
    assert programming.read(programming.folder() / "json" / "__init__.py")[0].module == "json"


def test_private_modules_and_what_is_not_python_have_no_functions(library, tmp_path):
    library("_private.py", "def f(): pass")
    library("b.py", "@cache\ndef f(x): 'Do. More.'")
    library("broken.py", "def f(:")
    found = [programming.read(tmp_path / name) for name in ("_private.py", "broken.py", "b.py")]
    assert found == [[], [], [Function("b", "f", "", "Do.")]]
    assert [raw.dropped for raw in programming.documents(tmp_path / "broken.py", "")] == ["not Python"]


def test_questions_about_functions():
    functions = [
        Function("tea", "brew", "leaves, minutes=3", "Pour hot water over the leaves."),
        Function("tea", "drink", "cup", "Empty the cup slowly."),
        Function("soup", "drink", "bowl", "Empty the bowl slowly."),
        Function("soup", "stir", "", "Move the spoon around."),
        Function("soup", "cook", "pot", "Do it."),
        Function("stew", "mix", "pot", "move the spoon around."),
    ]
    asked = programming.questions_about(functions)
    check(asked)
    assert answers(asked, "module") == {"tea.brew": "tea", "soup.stir": "soup", "soup.cook": "soup", "stew.mix": "stew"}
    purposes = {"tea.brew", "tea.drink", "soup.drink"}
    assert set(by_entity(asked, "purpose")) == set(by_entity(asked, "function")) == purposes, "too short, or said twice"
    assert answers(asked, "purpose")["tea.drink"] == "Empty the cup slowly."
    assert answers(asked, "function")["tea.drink"] == "tea.drink"
    assert answers(asked, "arguments") == {"tea.brew": "leaves, minutes=3", "tea.drink": "cup", "soup.drink": "bowl"}


COMPLETIONS = programming.completions()


def test_the_right_body_passes_its_tests_and_that_of_another_function_fails():
    """Whatever is said: all bodies with the same argument have other results."""
    check(COMPLETIONS)
    by_argument = {}
    for asked in COMPLETIONS:
        assert question.is_right(asked, asked.answers[0], passes)
        assert asked.question.endswith(f"\n\n{asked.fields['prompt']}")
        assert asked.question.startswith("この") == ("を返す。" in asked.question)
        argument = ast.parse(asked.fields["prompt"]).body[0].args.args[0].arg
        by_argument.setdefault(argument, []).append(asked)
    assert set(by_argument) == {"numbers", "text"}
    for of_one in by_argument.values():
        for number in range(0, len(of_one), 60):
            right = [question.is_right(of_one[number], other.answers[0], passes) for other in of_one]
            assert [place for place, is_right in enumerate(right) if is_right] == [number]


def test_a_function_to_complete_reads_as_in_humaneval_and_is_told_apart_by_its_tests():
    found = {asked.entity: asked for asked in COMPLETIONS}
    # The largest and the smallest first letter of the words that begin with b are both b.
    assert not found.keys() & {"largest_first_begin_b", "smallest_first_begin_b"}
    assert {"largest_upper_begin_b", "all_numbers", "distinct_first_begin_b"} <= found.keys()
    assert len(found) == len(COMPLETIONS) > 500
    asked = found["total_squares_even"]
    assert asked.answers == ("return sum(n * n for n in numbers if n % 2 == 0)",)
    says = ("Return the sum of the squares of the even numbers in numbers.", "numbersの偶数の二乗の合計を返す。")
    head, example = "def total_squares_even(numbers):\n", ">>> total_squares_even([6, -5, 3, 10])\n    136\n"
    assert asked.fields["prompt"] in (f'{head}    """{one}\n\n    {example}    """\n' for one in says)
    assert asked.fields["tests"].startswith("assert total_squares_even([6, -5, 3, 10]) == 136\nassert ")
    assert asked.fields["tests"].count("\n") == 5
    assert "== {'a', 'b'}\n" in found["distinct_first_words"].fields["tests"]


def test_every_part_of_a_held_out_function_is_learned():
    learned, held_out = question.split(COMPLETIONS, 0.2)
    assert 0.15 < len(held_out) / len(COMPLETIONS) < 0.25
    parts = {part for asked in learned for part in asked.entity.split("_")}
    assert {part for asked in held_out for part in asked.entity.split("_")} <= parts
