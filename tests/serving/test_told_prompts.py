"""Completions with `echo` and `logprobs`: how likely the model holds a text that it is given."""

import json

import numpy as np
import pytest

STOP = 319  # `<|im_end|>` of the tests' tokenizer
NO_END = dict.fromkeys(("317", "318", "319"), -100)
ASK = {"model": "small", "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 2, "logit_bias": NO_END}


def told(served, prompt, **changes):
    answer = json.loads(served.ask("/v1/completions", ASK | {"prompt": prompt} | changes).text)
    return answer["choices"][0], answer["usage"]


def table(served):
    logits_VV = served.engine._table_VV
    return logits_VV - np.logaddexp.reduce(logits_VV, axis=1, keepdims=True)


@pytest.mark.parametrize("text", ["The cat sat.", "猫が🐈いる。", "a"])
def test_each_token_of_the_prompt_has_the_probability_that_it_had(served, chat_tokenizer, text):
    choice, usage = told(served, text)
    ids, found = chat_tokenizer.encode(text), choice["logprobs"]
    expected = [table(served)[before, token] for before, token in zip(ids, ids[1:], strict=False)]
    assert choice["text"].startswith(text)
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    np.testing.assert_allclose(found["token_logprobs"][1 : len(ids)], expected, rtol=1e-9)
    assert len(found["tokens"]) == len(ids) + 3
    assert usage == {"prompt_tokens": len(ids), "completion_tokens": 3, "total_tokens": len(ids) + 3}


def test_the_likeliest_next_tokens_are_those_without_an_echo(served):
    (choice, _), (plain, _) = (told(served, "The cat", max_tokens=1, logprobs=20, echo=echo) for echo in (True, False))
    assert choice["text"] == "The cat" + plain["text"]
    assert choice["logprobs"]["top_logprobs"][-1] == plain["logprobs"]["top_logprobs"][0]
    assert "".join(choice["logprobs"]["tokens"][:-1]) == "The cat"


def test_a_text_that_begins_with_a_token_of_its_own_has_a_probability_for_each(served, chat_tokenizer, monkeypatch):
    monkeypatch.setattr(chat_tokenizer, "begin", [5])
    choice, usage = told(served, "The cat")
    ids = chat_tokenizer.encode("The cat")
    assert choice["logprobs"]["token_logprobs"][0] == pytest.approx(table(served)[5, ids[0]])
    assert choice["text"].startswith("The cat") and usage["prompt_tokens"] == len(ids) + 1
    choice, _ = told(served, ids)
    assert choice["logprobs"]["token_logprobs"][0] is None, "these ids don't begin with it"


def test_the_token_that_ends_the_text_is_told(served, chat_tokenizer):
    choice, usage = told(served, "The cat 猫", max_tokens=5, logit_bias={str(STOP): 100})
    found, ids = choice["logprobs"], chat_tokenizer.encode("The cat 猫")
    assert choice["finish_reason"] == "stop" and choice["text"] == "The cat 猫"
    assert found["tokens"][len(ids) :] == ["<|im_end|>"] and found["text_offset"][-1] == len("The cat 猫")
    assert found["token_logprobs"][-1] == pytest.approx(table(served)[ids[-1], STOP])
    assert usage["completion_tokens"] == 1


def test_several_prompts_and_answers_in_a_stream(served):
    """A text that would end within the prompt is refused."""
    assert served.ask("/v1/completions", ASK | {"prompt": "The cat", "stop": "x"}).status == 400
    body = ASK | {"prompt": ["The cat", "A dog"], "n": 2, "stream": True}
    events = served.ask("/v1/completions", body).text.decode().strip().split("\n\n")
    texts = dict.fromkeys(range(4), "")
    for event in events[:-1]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    assert [text[:5] for text in texts.values()] == ["The c", "The c", "A dog", "A dog"]


def test_a_token_that_ends_texts_does_not_end_the_prompt(served):
    choice, usage = told(served, [40, STOP, 41])
    expected = [table(served)[at] for at in ((40, STOP), (STOP, 41))]
    assert choice["logprobs"]["token_logprobs"][1:3] == pytest.approx(expected)
    assert usage == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
