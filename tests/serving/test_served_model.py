"""Conversations as a model reads them: which of its turns fit, and whether it reads messages of the system."""

import json

import pytest

from tests.formats.huggingface import published
from tests.serving.stand_in import session_of
from tpullm.serving.refusal import Refusal
from tpullm.serving.served_model import ServedModel
from tpullm.tokenizer.published import PublishedTokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
TURN = [{"role": "user", "content": "The cat sat."}, {"role": "assistant", "content": "Yes."}]
LAST = {"role": "user", "content": "And the dog?"}


def test_as_few_old_turns_are_left_out_as_leave_room_for_the_answer(chat_tokenizer):
    model = ServedModel("small", session_of(chat_tokenizer, 256), 256)
    ids, left_out = model.fitted_chat_ids([SYSTEM, *TURN * 9, LAST], None, 100)
    assert 0 < left_out < 9 and len(ids) <= 156
    assert ids == model.chat_ids([SYSTEM, *TURN * (9 - left_out), LAST], None)
    assert len(model.chat_ids([SYSTEM, *TURN * (10 - left_out), LAST], None)) > 156
    half, fewer = model.fitted_chat_ids(
        [SYSTEM, *TURN * 9, LAST], None, 10**6
    )  # room for half of the context is enough
    assert len(half) <= 128 and fewer >= left_out
    assert model.fitted_chat_ids([LAST], None, 10**6) == (model.chat_ids([LAST], None), 0)


def test_a_last_turn_that_is_too_long_is_refused(chat_tokenizer):
    model = ServedModel("small", session_of(chat_tokenizer, 256), 256)
    with pytest.raises(Refusal, match="shorten it") as refused:
        model.fitted_chat_ids([*TURN * 3, LAST | {"content": "dog " * 400}], None, 10)
    assert refused.value.code == "context_length_exceeded"


def test_old_turns_are_left_out_if_that_is_asked_for_and_the_answer_says_how_many(served):
    asked = {"model": "small", "messages": [*TURN * 90, LAST], "max_tokens": 4, "temperature": 0}
    assert served.ask("/v1/chat/completions", asked).status == 400
    told = json.loads(served.ask("/v1/chat/completions", asked | {"truncation": "auto"}).text)
    assert told["turns_left_out"] > 0 and told["usage"]["prompt_tokens"] <= 1024 - 4
    events = served.ask("/v1/chat/completions", asked | {"truncation": "auto", "stream": True}).text.split(b"\n\n")
    assert json.loads(events[0].removeprefix(b"data: "))["turns_left_out"] == told["turns_left_out"]
    short = served.ask("/v1/chat/completions", asked | {"truncation": "auto", "messages": [LAST]})
    assert "turns_left_out" not in json.loads(short.text)


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        (published.CHATML, True),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", False),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}a{% endfor %}",
            False,
        ),
    ],
)
def test_whether_a_model_takes_a_system_prompt_is_what_its_template_does_with_one(tmp_path, template, takes):
    tokenizer = PublishedTokenizer(published.directory(tmp_path / "model", layers=1), template)
    assert ServedModel("small", session_of(tokenizer), 64).takes_system is takes
