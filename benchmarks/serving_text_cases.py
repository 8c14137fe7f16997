"""The cases of `serving_conformance.py` about models and continued texts: functions of a client and a model's name."""

from serving_requests import PROMPT, chat, refused, stop_of, text


def case_models_are_listed(client, model):
    listed = client.models.list().data
    assert model in [one.id for one in listed] and all(one.object == "model" for one in listed)


def case_a_model_is_described(client, model):
    assert client.models.retrieve(model).id == model


def case_a_model_that_is_not_there(client, model):
    refused(404, client.models.retrieve, "no-such-model")


def case_a_text_is_continued(client, model):
    answer = text(client, model)
    assert answer.object == "text_completion" and len(answer.choices) == 1 and answer.choices[0].index == 0
    assert answer.choices[0].text and answer.choices[0].finish_reason in ("stop", "length")


def case_usage_counts_tokens(client, model):
    usage = text(client, model, max_tokens=3, logit_bias={}).usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 3


def case_one_token(client, model):
    answer = text(client, model, max_tokens=1)
    assert answer.usage.completion_tokens == 1


def case_sixteen_tokens_are_the_default(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT)
    assert answer.usage.completion_tokens <= 16


def case_prompts_in_a_list(client, model):
    answer = text(client, model, prompt=[PROMPT, "Once", PROMPT])
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.choices[0].text == answer.choices[2].text


def case_several_answers(client, model):
    answer = text(client, model, n=3, temperature=1, seed=5)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]


def case_several_answers_to_several_prompts(client, model):
    answer = text(client, model, n=2, prompt=[PROMPT, "Once"])
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text


def case_a_prompt_of_tokens(client, model):
    assert text(client, model, prompt=[20, 30, 40]).usage.prompt_tokens == 3


def case_prompts_of_tokens(client, model):
    assert len(text(client, model, prompt=[[20, 30, 40], [50]]).choices) == 2


def case_a_seed_repeats_a_text(client, model):
    one, two = (text(client, model, temperature=1, seed=7).choices[0].text for _ in range(2))
    assert one == two


def case_seeds_differ(client, model):
    texts = {text(client, model, temperature=1.5, seed=seed, max_tokens=16).choices[0].text for seed in range(4)}
    assert len(texts) > 1


def case_answers_to_one_prompt_differ(client, model):
    answer = text(client, model, temperature=1.5, seed=3, n=4, max_tokens=16)
    assert len({choice.text for choice in answer.choices}) > 1


def case_temperature_0_repeats_a_text(client, model):
    assert text(client, model).choices[0].text == text(client, model, seed=9).choices[0].text


def case_a_small_top_p_is_the_likeliest(client, model):
    assert text(client, model).choices[0].text == text(client, model, temperature=1, top_p=1e-6).choices[0].text


def case_a_stream_is_the_text(client, model):
    chunks = list(text(client, model, stream=True))
    joined = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert joined == text(client, model).choices[0].text


def case_a_stream_ends_with_a_reason(client, model):
    reasons = [choice.finish_reason for chunk in text(client, model, stream=True) for choice in chunk.choices]
    assert reasons[-1] in ("stop", "length") and not any(reasons[:-1])


def case_a_stream_has_one_id(client, model):
    assert len({chunk.id for chunk in text(client, model, stream=True)}) == 1


def case_a_stream_of_several_answers(client, model):
    chunks = list(text(client, model, stream=True, n=2, prompt=[PROMPT, "Once"]))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2, 3}


def case_usage_at_the_end_of_a_stream(client, model):
    *chunks, last = text(client, model, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks)


def case_no_usage_in_a_stream_that_did_not_ask(client, model):
    assert not any(chunk.usage for chunk in text(client, model, stream=True))


def case_a_stop_text_is_not_returned(client, model):
    whole = text(client, model, max_tokens=24).choices[0].text
    answer = text(client, model, max_tokens=24, stop=stop_of(whole))
    assert answer.choices[0].text == whole.partition(stop_of(whole))[0]
    assert answer.choices[0].finish_reason == "stop"


def case_a_stop_text_in_a_stream(client, model):
    whole = text(client, model, max_tokens=24).choices[0].text
    chunks = text(client, model, max_tokens=24, stop=[stop_of(whole), "\u2603"], stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.partition(stop_of(whole))[0]


def case_four_stop_texts(client, model):
    whole = text(client, model, max_tokens=24).choices[0].text
    stops = ["\u2603", "\u2604", "\u2605", whole[len(whole) // 2 :][:1]]
    assert text(client, model, max_tokens=24, stop=stops).choices[0].text == whole.partition(stops[3])[0]


def case_log_probabilities_of_a_text(client, model):
    found = text(client, model, logprobs=3).choices[0]
    told = found.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    assert all(value <= 0 for value in told.token_logprobs)


def case_the_likeliest_token_has_its_own_log_probability(client, model):
    told = text(client, model, logprobs=1).choices[0].logprobs
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert abs(top[token] - value) < 1e-6


def case_places_of_tokens_rise(client, model):
    places = text(client, model, logprobs=0).choices[0].logprobs.text_offset
    assert places == sorted(places)


def case_log_probabilities_of_a_stopped_text(client, model):
    whole = text(client, model, max_tokens=24).choices[0].text
    found = text(client, model, max_tokens=24, stop=stop_of(whole), logprobs=1).choices[0]
    assert all(place <= len(found.text) for place in found.logprobs.text_offset)


def case_a_bias_forces_a_token(client, model):
    told = text(client, model, logit_bias={"40": 100}, logprobs=0, max_tokens=4).choices[0].logprobs
    assert len(set(told.tokens)) == 1


def case_a_bias_bans_a_token(client, model):
    forced = text(client, model, logit_bias={"40": 100}, max_tokens=1).choices[0].text
    banned = text(client, model, logit_bias={"40": -100}, max_tokens=1).choices[0].text
    assert forced != banned


def case_an_echo(client, model):
    assert text(client, model, echo=True).choices[0].text == PROMPT + text(client, model).choices[0].text


def case_an_echo_in_a_stream(client, model):
    chunks = text(client, model, echo=True, stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices).startswith(PROMPT)


def case_bookkeeping_is_ignored(client, model):
    answer = chat(client, model, user="me", metadata={"a": "b"}, store=False, service_tier="auto")
    assert answer.choices[0].message.role == "assistant"


def case_null_is_nothing(client, model):
    empty = dict.fromkeys(("stop", "seed", "n", "logit_bias", "stream_options", "response_format", "tools", "user"))
    assert chat(client, model, **empty).choices


def case_penalties_make_a_token_rarer(client, model):
    asked = {"logit_bias": {"40": 100, "41": 100}, "logprobs": 0, "max_tokens": 24}
    plain, often, rarely = (
        text(client, model, **asked, presence_penalty=number, frequency_penalty=number).choices[0].logprobs.tokens
        for number in (0, -2.0, 2)
    )
    assert len(set(plain)) == 1 and often == plain and len(set(rarely)) == 2
