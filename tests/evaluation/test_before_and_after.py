"""Questions before and after tuning: what is right, and what one would get who always says the commonest answer."""

import pytest

from tpullm.corpus import tenki
from tpullm.corpus.question import Question
from tpullm.evaluation import before_and_after


def test_answers_are_right_word_for_word(monkeypatch):
    asked = tenki.split_questions(0.0, 0)[0][:3]
    said = {"base": ["", "?", " "], "tuned": [asked[0].answers[-1] + "\n", asked[1].answers[0], "?"]}
    monkeypatch.setattr(before_and_after, "answer_questions", lambda model, texts: said[model])
    with before_and_after.built_in_judge("tenki") as right:
        found = before_and_after.ask_before_and_after("base", "tuned", asked, asked, right)
    assert found["base"]["accuracy"] == 0 and found["tuned"] == {"accuracy": pytest.approx(2 / 3), "questions": 3}
    assert [row["right"] for row in found["answers"]] == [True, True, False]
    assert [row["expected"] for row in found["answers"]] == [question.answers[0] for question in asked]
    assert sum(kind["questions"] for kind in found["kinds"].values()) == 3
    assert sum(kind["tuned"] * kind["questions"] for kind in found["kinds"].values()) == pytest.approx(2)


def test_beside_the_shares_stands_that_of_the_commonest_answer_or_of_a_rule(monkeypatch):
    def made(kind, *pairs):
        return [Question(asked, (answer,), kind) for asked, answer in pairs]

    learned = made("word", ("a?", "No"), ("b?", "Yes"), ("c?", "Yes"), ("dですか。", "はい"), ("eですか。", "はい"))
    held_out = made("word", ("f?", "Yes"), ("g?", "No"), ("hですか。", "はい"), ("iですか。", "いいえ"))
    held_out += made("name", ("j?", "Yes"))
    held_out += [Question("k?", ("Yes",), "rule", guess="Yes"), Question("l?", ("No",), "rule", guess="Yes")]
    monkeypatch.setattr(before_and_after, "answer_questions", lambda model, texts: [model] * len(texts))
    with before_and_after.built_in_judge("law") as right:
        kinds = before_and_after.ask_before_and_after("base", "No", held_out, learned, right)["kinds"]
    assert kinds == {
        "word": {"base": 0, "tuned": 1 / 4, "guess": 1 / 2, "questions": 4},
        "name": {"base": 0, "tuned": 0, "guess": 0, "questions": 1},
        "rule": {"base": 0, "tuned": 1 / 2, "guess": 1 / 2, "questions": 2},
    }


def test_code_is_right_if_its_tests_pass():
    fields = {"prompt": "def double(n):\n", "tests": "assert double(2) == 4\nassert double(-1) == -2\n"}
    question = Question("complete", ("return 2 * n",), "completion", "double", fields)
    with before_and_after.built_in_judge("programming") as right:
        said = ["return n + n", "return n * n", "import os; os._exit(0)", "return ("]
        assert [right(question, text) for text in said] == [True, False, False, False]
        plain = Question("where?", ("math",), "module")
        assert right(plain, "`Math`.") and not right(plain, "maths")


def test_the_form_of_answers_is_judged_by_rule_whatever_they_say():
    rules = {"short": lambda said: len(said) < 9, "ends": lambda said: said.endswith(".")}
    answers = [
        {"base": "It is a long story", "tuned": "Add it.", "expected": "Add it."},
        {"base": "So.", "tuned": "Add it up", "expected": "Take the rest."},
    ]
    assert before_and_after.rules_kept(rules, answers) == {
        "short": {"base": 0.5, "tuned": 0.5},
        "ends": {"base": 0.5, "tuned": 0.5},
        "all of these": {"base": 0.5, "tuned": 0.5},
        # Of 5 and 2 words one is the same, of 1 and 3 none; of 2 and 2 both are.
        "words in common": {"base": pytest.approx(2 / 7 / 2), "tuned": 0.5},
    }
    assert before_and_after.rules_kept(rules, [])["short"] == {"base": 0, "tuned": 0}
