"""A prompt and its answers are the tokens of whole conversations, in two parts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_conversations import CHATS, NUMBERS, characters, say  # noqa: F401
from tests.formats.huggingface.published import CHATML, change, directory
from tests.tokenizer.test_published import CALLED, CALLING, MARKED, THINKING, TOOLS
from tpullm.data.conversations import answer_ids, preference_ids
from tpullm.data.examples import Judged, Preference
from tpullm.system.errors import UserError
from tpullm.tokenizer.published import PublishedTokenizer

TEMPLATES = {
    "added": CHATML,
    "marked": MARKED,
    "thinking": THINKING,
    "calling": CALLING,
    "more after it": CHATML.replace("<|im_end|>", "<|im_end|>\n--"),
}


@pytest.fixture(scope="module", params=["trained", *TEMPLATES])
def tokenizer(request, tmp_path_factory, characters):  # noqa: F811
    if request.param == "trained":
        return characters
    folder = directory(tmp_path_factory.mktemp(request.param) / "model")
    change(folder / "tokenizer_config.json", chat_template=TEMPLATES[request.param])
    return PublishedTokenizer(folder, is_tried=True)


SAID = st.text(NUMBERS + "猫です。は？\n ", min_size=1, max_size=9).filter(lambda text: text == text.strip())


@settings(max_examples=25)
@given(st.lists(SAID, min_size=1, max_size=3).filter(lambda said: len(said) % 2), SAID, SAID)
def test_both_conversations_begin_with_the_prompt_that_the_model_is_asked(tokenizer, asked, chosen, other):
    asked, answers = say(*asked), [say("", said)[1] for said in (chosen, f"{other}{chosen}")]
    prompt, *both = preference_ids(Preference(asked, *answers), tokenizer, "talk")
    assert prompt == tokenizer.chat_template(asked, add_generation_prompt=True)[0]
    for said, ids in zip(answers, both, strict=True):
        whole, weights = tokenizer.last_answer([*asked, said])
        assert whole[: len(prompt) + len(ids)] == prompt + ids
        assert weights == [0.0] * len(prompt) + [1.0] * len(ids) + [0.0] * (len(whole) - len(prompt + ids))
        assert ids[-1] in tokenizer.stop_ids and said["content"] in tokenizer.decode(ids)
        assert answer_ids(Judged(asked, said, True), said, tokenizer, "talk") == (prompt, ids)


def test_the_answer_to_a_longer_talk_is_the_last_alone(tokenizer):
    talk = [*CHATS[3], *CHATS[5]]
    prompt, said = answer_ids(Judged(talk[:3], talk[3], False), talk[3], tokenizer, "talk")
    shown = tokenizer.decode(prompt)
    assert CHATS[3][1]["content"] in shown and CHATS[5][0]["content"] in shown
    assert tokenizer.decode(said).strip().removeprefix("<think>\n\n</think>").strip() == talk[3]["content"]


def test_a_pair_may_call_tools(tmp_path):
    folder = directory(tmp_path / "model")
    change(folder / "tokenizer_config.json", chat_template=CALLING)
    tokenizer = PublishedTokenizer(folder, is_tried=True)
    prompt, chosen, _ = preference_ids(Preference(CALLED[:1], CALLED[1], CALLED[3], TOOLS), tokenizer, "talk")
    assert "sky" in tokenizer.decode(prompt) and "東京" in tokenizer.decode(chosen)
    assert prompt + chosen == tokenizer.last_answer(CALLED[:2], TOOLS)[0][: len(prompt + chosen)]


HIDING = {
    "no end": (CHATML.replace("<|im_end|>\n{%", "\n{%"), "hides where an answer ends"),
    "both alike": (CHATML.replace("message['content']", "message['content'] | upper"), "shows both answers alike"),
    "grows": (CHATML.replace("<|im_start|>{{", "<|im_start|>{{ messages | length }}{{"), "as it grows"),
    "no answer": (
        MARKED.replace("{{ message['content'] }}<|im_end|>{% endgen", "{% endgen"),
        "shows nothing of (an|the) answer",
    ),
    "another prompt": (
        MARKED.replace("{% for message", "{{ messages[-1]['content'][0] }}{% for message", 1),
        "shows the prompt otherwise before its other answer",
    ),
}


@pytest.mark.parametrize("fault", HIDING)
def test_a_template_that_hides_an_answer_is_refused(tmp_path, fault):
    source, told = HIDING[fault]
    folder = directory(tmp_path / "model")
    change(folder / "tokenizer_config.json", chat_template=source)
    preference = Preference(say("What? " + "x" * 40), say("", "a cat")[1], say("", "A CAT")[1])
    with pytest.raises(UserError, match=f"^talk: the prompt that begins with 'What\\? x{{14}}': .*{told}"):
        preference_ids(preference, PublishedTokenizer(folder), "talk")


def test_the_template_of_a_trained_tokenizer_shows_no_tools(characters):  # noqa: F811
    for messages, tools in ((CALLED[:2], None), (CALLED[2:], None), (CHATS[0], TOOLS)):
        for show in (characters.chat_template, characters.last_answer):
            with pytest.raises(UserError, match="the chat template of this model shows no tools"):
                show(messages, tools=tools)
