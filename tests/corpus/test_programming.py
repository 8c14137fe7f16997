"""Questions about the library have one right answer, and functions to complete are told apart by their tests."""

import ast
from collections import Counter

import pytest

from tests.corpus.test_domains import check
from tpullm.corpus import domains, question
from tpullm.corpus.domains import judging, programming
from tpullm.corpus.domains.programming import Function


def of(asked, kind):
    return {question.entity: question for question in asked if question.kind == kind}


def test_functions_are_read_with_their_arguments_and_purpose():
    found = {function.path: function for function in programming.read(programming.folder() / "textwrap.py")}
    purpose = "Remove any common leading whitespace from every line in `text`."
    assert found["textwrap.dedent"] == Function("textwrap", "dedent", "text", purpose)
    assert found["textwrap.fill"].arguments == "text, width=70, **kwargs"
    assert found["textwrap.TextWrapper"].arguments == ""
    assert not any("._" in path for path in found)


def test_private_modules_and_what_is_not_python_have_no_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(programming, "folder", lambda: tmp_path)
    for name, text in (("_private.py", "def f(): pass"), ("broken.py", "def f(:"), ("a.py", "def f(): pass")):
        (tmp_path / name).write_text(text)
    found = [programming.read(tmp_path / name) for name in ("_private.py", "broken.py", "a.py")]
    assert found == [[], [], [Function("a", "f", "", "")]]


FUNCTIONS = [
    Function("tea", "brew", "leaves, minutes=3", "Pour hot water over the leaves."),
    Function("tea", "drink", "cup", "Empty the cup slowly."),
    Function("soup", "drink", "bowl", "Empty the bowl slowly."),
    Function("soup", "stir", "", "Move the spoon around."),
    Function("soup", "cook", "pot", "Do it."),
    Function("stew", "mix", "pot", "move the spoon around."),
]


def test_questions_about_functions():
    asked = programming.questions_about(FUNCTIONS)
    check(asked)
    assert asked == programming.questions_about(FUNCTIONS)
    modules = {path: question.answers[0] for path, question in of(asked, "module").items()}
    assert modules == {"tea.brew": "tea", "soup.stir": "soup", "soup.cook": "soup", "stew.mix": "stew"}
    purposes = {"tea.brew", "tea.drink", "soup.drink"}
    assert set(of(asked, "purpose")) == set(of(asked, "function")) == purposes, "too short, or said of two"
    assert of(asked, "purpose")["tea.drink"].answers == ("Empty the cup slowly.",)
    assert of(asked, "function")["tea.drink"].answers == ("tea.drink",)
    arguments = {path: question.answers[0] for path, question in of(asked, "arguments").items()}
    assert arguments == {"tea.brew": "leaves, minutes=3", "tea.drink": "cup", "soup.drink": "bowl"}


COMPLETIONS = programming.completions()


def passes(program, tests):
    try:
        exec(f"{program}\n{tests}", {})
    except AssertionError:
        return False
    return True


def test_the_right_body_passes_its_tests():
    check(COMPLETIONS)
    for asked in COMPLETIONS:
        assert domains.is_right(asked, asked.answers[0], passes)
        ast.parse(asked.fields["prompt"])
        assert asked.question.endswith(f"\n\n{asked.fields['prompt']}")


def test_the_body_of_another_function_fails():
    """Whatever is said: all bodies with the same argument have other results."""
    by_argument = {}
    for asked in COMPLETIONS:
        argument = ast.parse(asked.fields["prompt"]).body[0].args.args[0].arg
        by_argument.setdefault(argument, []).append(asked)
    assert set(by_argument) == {"numbers", "text"}
    for of_one in by_argument.values():
        for number in range(0, len(of_one), 60):
            right = [domains.is_right(of_one[number], other.answers[0], passes) for other in of_one]
            assert [place for place, is_right in enumerate(right) if is_right] == [number]


def test_functions_that_the_tests_do_not_tell_apart_are_not_asked():
    """The largest and the smallest first letter of the words that begin with b are both b."""
    names = {asked.entity for asked in COMPLETIONS}
    assert not names & {"largest_first_begin_b", "smallest_first_begin_b"}
    assert {"largest_upper_begin_b", "total_squares_even", "all_numbers", "distinct_first_begin_b"} <= names
    assert len(names) == len(COMPLETIONS) > 500


def test_a_function_to_complete_reads_as_in_humaneval():
    found = {asked.entity: asked for asked in COMPLETIONS}
    asked = found["total_squares_even"]
    assert asked.answers == ("return sum(n * n for n in numbers if n % 2 == 0)",)
    english, japanese = (
        "Return the sum of the squares of the even numbers in numbers.",
        "numbersの偶数の二乗の合計を返す。",
    )
    head, example = "def total_squares_even(numbers):\n", ">>> total_squares_even([6, -5, 3, 10])\n    136\n"
    assert asked.fields["prompt"] in (f'{head}    """{says}\n\n    {example}    """\n' for says in (english, japanese))
    assert asked.fields["tests"].startswith("assert total_squares_even([6, -5, 3, 10]) == 136\nassert ")
    assert asked.fields["tests"].count("\n") == 5
    assert "== {'a', 'b'}\n" in found["distinct_first_words"].fields["tests"]


def test_every_part_of_a_held_out_function_is_learned():
    learned, held_out = question.split(COMPLETIONS, 0.2)
    assert 0.15 < len(held_out) / len(COMPLETIONS) < 0.25
    parts = {part for asked in learned for part in asked.entity.split("_")}
    assert {part for asked in held_out for part in asked.entity.split("_")} <= parts


def test_a_japanese_question_has_a_japanese_docstring():
    for asked in COMPLETIONS:
        assert asked.question.startswith(programming.JAPANESE) == ("を返す。" in asked.question)


@pytest.mark.slow
def test_the_library_makes_questions():
    found = domains.questions("programming")
    check(found)
    kinds = Counter(asked.kind for asked in found)
    assert set(kinds) == {"module", "purpose", "function", "arguments", "completion"} and min(kinds.values()) > 300
    for asked in found[:100] + found[-100:]:
        assert judging.normalized(asked.answers[0])
