"""Questions are asked in the form of their language, and answers judged by likelihood and by what is written."""

import dataclasses

import numpy as np
import pytest

from tests.evaluation.conftest import Guesses, guess
from tpullm.evaluation import likelihoods, measured_model, question_task
from tpullm.evaluation.measured_model import MeasuredModel, Writing
from tpullm.evaluation.prompt_forms import JAPANESE, encode_pair
from tpullm.evaluation.question_files import Item, QuestionFile
from tpullm.evaluation.question_task import RULES, answer_line, character_f1, choose_questions, measure_questions
from tpullm.evaluation.statistics import wilson
from tpullm.evaluation.tasks import Asking
from tpullm.system.errors import UserError

VERBS = ["読みます", "食べます", "飲みます", "買いました"]
ITEMS = tuple(
    Item(f"{thing}をどうしますか。", (VERBS[n % 3],), tuple(VERBS[: 2 + n % 3]) if n % 3 < 2 else ())
    for n, thing in enumerate(["本", "パン", "水", "リンゴ", "新聞", "お茶", "手紙", "肉", "牛乳", "雑誌"])
)
FILE = QuestionFile("verbs", "v", ITEMS, tokens=8)


def test_each_rule_is_what_it_says(wide):
    """The likelihood of a choice after its question, by token, by byte, and less that after the cue alone."""
    model, tokenizer = Guesses(wide), wide.tokenizer
    found = measure_questions(model, FILE, Asking(shots=1, seed=3))
    asked = choose_questions(FILE, Asking(shots=1, seed=3), 512)
    right = {rule: 0 for rule in RULES}
    for row, item in zip(found["questions"], asked.items, strict=True):
        assert ("likeliest" in row) == bool(item.choices)
        if item.choices:
            prompt = JAPANESE.prompt(item, asked.examples, False)
            after = [encode_pair(tokenizer, prompt, choice) for choice in item.choices]
            alone = [guess(*encode_pair(tokenizer, JAPANESE.cue, choice)) for choice in item.choices]
            tokens, size = [len(own) for _, own in after], [len(choice.encode()) for choice in item.choices]
            given, alone, tokens, size = map(np.array, ([guess(*pair) for pair in after], alone, tokens, size))
            for rule, score in zip(RULES, (given, given / tokens, given / size, given - alone), strict=True):
                assert row["likeliest"][rule] == item.choices[score.argmax()]
                right[rule] += item.choices[score.argmax()] == item.answers[0]
    count = sum(bool(item.choices) for item in asked.items)
    for rule in RULES:
        share = found["likelihood"][rule]
        assert (share["right"], share["count"]) == (right[rule], count)
        assert share["interval"] == wilson(right[rule], count)
    assert len({tuple(row["likeliest"].values()) for row in found["questions"] if "likeliest" in row}) > 1
    even = [1 / len(item.choices) for item in asked.items if item.choices]
    assert found["chance"] == pytest.approx(sum(even) / len(even))


def test_an_answer_is_right_by_its_text_or_its_letter(wide):
    items = (*[Item("どれ？", ("ろ",), ("い", "ろ", "１"))] * 5, *[Item("何？", ("猫", "ねこ"))] * 3)
    model = Guesses(wide, ["ろ", "Ｂ", "い", "何か", "1", "ねこ\n犬", "犬", "猫"])
    found = measure_questions(model, QuestionFile("own", "v", items, tokens=8), Asking())
    prompt = (*wide.tokenizer.begin, *wide.tokenizer.encode(JAPANESE.prompt(items[0], [], True)))
    assert model.asked[0] == Writing(prompt, 8, ("\n",)), "the likeliest line after the question"
    assert [row["right"] for row in found["questions"]] == [True, True, False, False, False, True, False, True]
    assert found["written"]["share"] == 4 / 8 and found["written"]["no_choice"] == 1 / 5
    assert found["written"]["f1"] == pytest.approx((1 + 0 + 0 + 0 + 0 + 1 + 0 + 1) / 8)


def test_what_is_asked():
    """Examples are drawn by the seed; those of the file go before these. An answer has half of a short context."""
    drawn = [choose_questions(FILE, Asking(shots=3, seed=seed), 512) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and drawn[0].examples != drawn[2].examples
    for asked in drawn:
        assert set(asked.items) | set(asked.examples) == set(ITEMS) and len(asked.items) == len(ITEMS) - 3
    asked = choose_questions(QuestionFile("given", "v", ITEMS, examples=ITEMS[:3]), Asking(shots=2), 512)
    assert asked.examples == ITEMS[:2] and asked.items == ITEMS
    assert choose_questions(FILE, Asking(), 12).tokens == 6 and choose_questions(FILE, Asking(), 512).tokens == 8
    for shots in (10, 11):
        with pytest.raises(UserError, match=f"--shots: {shots}, and verbs has 10 questions and 0 examples; take fewer"):
            choose_questions(FILE, Asking(shots=shots), 512)


def test_as_a_conversation(wide):
    """The prompts are those of the chat template, and what the model says is not cut at a line."""
    model = Guesses(wide, ["読みます"] * 9)
    found = measure_questions(model, FILE, Asking(shots=1, chat=True))
    assert found["settings"]["form"] == "chat"
    asked = choose_questions(FILE, Asking(shots=1), 512)
    example, item = asked.examples[0], asked.items[0]
    turns = [JAPANESE.question(example, True), example.answers[0], JAPANESE.question(item, True)]
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    assert model.asked[0].prompt == tuple(wide.tokenizer.chat_template(messages, add_generation_prompt=True)[0])
    assert model.asked[0].stops == ()


def test_longer_prompts_than_the_context_are_cut_and_counted(session, monkeypatch):
    """The context of 32 tokens holds no prompt, so each request is cut."""

    for module, name, answer in ((likelihoods, "likelihoods", (-1.0, True)), (measured_model, "write_texts", [8])):
        answers = lambda session, asked, done, answer=answer: done(dict.fromkeys(range(len(asked)), answer))  # noqa: E731
        monkeypatch.setattr(module, name, answers)
    model = MeasuredModel(session, parameters="x")
    items = tuple(dataclasses.replace(item, choices=tuple(VERBS[:2])) for item in ITEMS[:2])
    measure_questions(model, QuestionFile("verbs", "v", items, tokens=4), Asking())
    assert model.counts == {"requests": 2 * 2 * 2 + 2, "kept": 0, "cut": 2 * 2 + 2}


MEANT = {"１２３": "123", "ｱﾒﾘｶ": "アメリカ", "Ａ．　本": "A. 本", "㍻": "平成"}
MEANT |= {"\n\n  答え です \nそして": "答え です", "": "", " \n ": ""}


def test_what_is_written_differently_and_means_the_same():
    for said, means in MEANT.items():
        assert answer_line(said) == means and question_task.is_exact(said, ["other", means])
    assert not any(question_task.is_exact(*pair) for pair in (("12", ["123"]), ("123\n4", ["4"])))


def test_f1_of_characters():
    """東京都 and 東京: two characters in common of three and of two."""
    assert character_f1("東京都", ["東京"]) == pytest.approx(2 * 2 / (3 + 2))
    assert character_f1("東京都", ["大阪", "東京"]) == pytest.approx(0.8)  # the nearest answer
    assert character_f1("ああ", ["あ"]) == pytest.approx(2 / 3)  # a character counts as often as both have it
    assert character_f1("", ["あ"]) == 0 and character_f1("", [""]) == 1 and character_f1("い", ["あ"]) == 0
