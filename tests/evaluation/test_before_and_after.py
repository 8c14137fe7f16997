"""Questions before and after tuning: what is right, and what one would get who always says the commonest answer."""

from types import SimpleNamespace

import pytest

from tpullm.corpus import tenki
from tpullm.corpus.question import Question
from tpullm.corpus.tenki import conversation_set
from tpullm.evaluation import before_and_after

BASE, TUNED = (SimpleNamespace(name=name, talks=True) for name in ("base", "tuned"))


def test_answers_are_right_word_for_word(monkeypatch):
    asked = tenki.split_questions(0.0, 0)[0][:3]
    said = {"base": ["", "?", " "], "tuned": [asked[0].answers[-1] + "\n", asked[1].answers[0], "?"]}
    monkeypatch.setattr(before_and_after, "answer_questions", lambda model, texts: said[model.name])
    with before_and_after.built_in_judge("tenki") as right:
        found = before_and_after.ask_before_and_after(BASE, TUNED, asked, asked, right)
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
    monkeypatch.setattr(before_and_after, "answer_questions", lambda model, texts: [model.says] * len(texts))
    silent, no = SimpleNamespace(talks=True, says=""), SimpleNamespace(talks=True, says="No")
    with before_and_after.built_in_judge("law") as right:
        kinds = before_and_after.ask_before_and_after(silent, no, held_out, learned, right)["kinds"]
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


class Letters:
    """A tokenizer of which each character is a token."""

    begin, stop_ids = (1,), (2,)

    def encode(self, text):
        return list(map(ord, text))

    def decode(self, ids):
        return "".join(map(chr, ids))

    def chat_template(self, messages, add_generation_prompt):
        return self.encode("".join(f"{message['role'][0]}:{message['content']};" for message in messages)), []


def test_a_base_that_never_talked_is_shown_solved_questions(monkeypatch):
    """As many as fit before the answer; Japanese as one text, other languages a line each. Its first line counts."""
    prompts = []

    def written(model, asked):
        prompts.extend(model.tokenizer.decode(ids).removeprefix("\x01") for ids in asked)
        return [model.tokenizer.encode("はい。犬" if "猫" in prompt else "\nYes.\nNo.") for prompt in prompts]

    monkeypatch.setattr(before_and_after, "likeliest_continuations", written)
    base = SimpleNamespace(tokenizer=Letters(), talks=False, context_length=before_and_after.ANSWER_TOKENS + 30)
    learned = [Question(f"q{n}?", (f"a{n}",), "en") for n in range(9)] + [Question("犬が？", ("はい。",), "ja")]
    asked = [Question("q?", ("Yes.",), "en"), Question("猫が？", ("はい。",), "ja"), Question("x" * 99, ("",), "new")]
    found = before_and_after.few_shot_answers(base, asked, learned)
    shown = [question for question in learned[:9] if question.question in prompts[0]]
    assert len(shown) == before_and_after.SHOTS and prompts[0].endswith("\nq?\n")
    shown.sort(key=lambda question: prompts[0].index(question.question))
    assert prompts[0] == "".join(f"{q.question}\n{q.answers[0]}\n" for q in shown) + "q?\n"
    assert prompts[1] == "犬が？はい。猫が？" and len(prompts[2]) == base.context_length - 1
    assert found == ["Yes.", "はい。", "Yes."]
    long = [Question("q?" + "z" * 15, ("Yes.",), "en")]
    prompts.clear()
    before_and_after.few_shot_answers(base, long, learned)
    assert sum(question.question in prompts[0] for question in learned) == 1, "no more fit"


def test_in_a_conversation_the_model_reads_its_own_answers(monkeypatch):
    """It says the wrong thing at every third turn; what is left out of the context is whole turns."""
    config = SimpleNamespace(vocabulary_size=1 << 20)
    tuned = SimpleNamespace(tokenizer=Letters(), context_length=200, architecture=SimpleNamespace(config=config))
    questions, seen = tenki.split_questions(0.0, 0)[0], []
    right = {question.question.rstrip("。？"): question.answers[0] for question in questions}
    right |= {q.question: q.answers[0] for q in conversation_set.greetings()}

    def answers(model, prompts):
        seen.append(list(map(model.tokenizer.decode, prompts)))
        last = [prompt.rsplit("u:", 1)[1].rstrip(";").rstrip("。？") for prompt in seen[-1]]
        return [model.tokenizer.encode("?" if len(seen) % 3 == 0 else right[asked] + "\n") for asked in last]

    monkeypatch.setattr(before_and_after, "likeliest_continuations", answers)
    found = before_and_after.measure_conversations(tuned, questions, seed=0)
    assert found["right_by_turn"] == [float(turn % 3 != 0) for turn in range(1, before_and_after.TURNS + 1)]
    assert found["conversations"] == before_and_after.TALKS == len(seen[0])
    assert seen[3][0].endswith(";") and "a:?;" in seen[3][0] and seen[3][0].startswith("u:")
    most = tuned.context_length // 2
    assert all(len(prompt) <= most or prompt.count("u:") == 1 for prompts in seen for prompt in prompts)
    assert max(prompt.count("u:") for prompt in seen[-1]) > 1
