from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.evaluation.prompt_forms import ENGLISH, JAPANESE, encode_pair, question_form
from tpullm.evaluation.question_files import Item

CHOICE = Item("会社の長は？", ("社長",), ("社長", "教師"))
TOLD = Item("cat", ("猫",), instruction="訳してください。")


def test_prompts_and_conversations():
    before = "以下は、タスクを説明する指示と、その入力です。要求を満たす応答を書きなさい。\n\n"
    assert JAPANESE.prompt(CHOICE, [], False) == before + "### 指示:\n会社の長は？\n\n### 応答:\n"
    told = "### 指示:\n会社の長は？\n\n### 応答:\n社長\n\n### 指示:\n訳してください。\n\n### 入力:\ncat\n\n### 応答:\n"
    assert JAPANESE.prompt(TOLD, [CHOICE], False) == before + told
    listed = JAPANESE.prompt(CHOICE, [CHOICE], True)
    assert listed.count("\nA. 社長\nB. 教師\n\n### 応答:\n") == 2, "where the model writes"
    item = Item("{2} + {}?", ("4",))  # braces are text
    assert ENGLISH.prompt(item, [item], True) == "{2} + {}?\n\nAnswer: 4\n\n{2} + {}?\n\nAnswer:"
    said = JAPANESE.conversation(TOLD, [CHOICE], False)
    assert [turn["role"] for turn in said] == ["user", "assistant", "user"]
    assert said[1]["content"] == "社長" and said[2]["content"].endswith("### 入力:\ncat")
    english = Item("What is it?", ("It",))  # the form is that of most questions
    assert question_form([CHOICE, TOLD, english]) is JAPANESE and question_form([CHOICE, english]) is ENGLISH


@given(st.text("本をリンゴ。読み ab\n", min_size=1, max_size=8), st.text("本を読みab ", min_size=1, max_size=8))
def test_an_answer_is_scored_as_a_part_of_the_text(session, prompt, answer):
    """Both together are the tokens of the whole text, and the answer has one at least."""
    context, continuation = encode_pair(session.tokenizer, prompt, answer)
    assert [*context, *continuation] == [*session.tokenizer.begin, *session.tokenizer.encode(prompt + answer)]
    assert continuation and context


@pytest.mark.parametrize("prompt", ["", "本"])
def test_without_a_token_that_begins_a_text_the_one_that_ends_it_stands_before(session, prompt):
    without = SimpleNamespace(begin=[], eos_id=2, encode=session.tokenizer.encode)
    context, continuation = encode_pair(without, prompt, "を")
    assert context == (session.tokenizer.encode("本") if prompt else [2]) and continuation
