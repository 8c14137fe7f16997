"""Asks a server as OpenAI's client for Python does, and says where it answers otherwise than OpenAI's API.

    python benchmarks/serving_conformance.py --url http://127.0.0.1:8000/v1 --key KEY [--model NAME] [--only chat]

Each case is a function of a client and the name of a model that talks; it holds for any model, since nothing is known
of what a model says. The model needs a context of 1,024 tokens and a chat template that shows tools:
`benchmarks/random_model.py` makes such a model. tests/serving runs the cases too.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

PROMPT = "The cat sat on"
ASK = [{"role": "user", "content": "How is the weather today?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Tokyo", "Paris"]}, "celsius": {"type": "boolean"}},
            "required": ["city", "celsius"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"enum": [{}]}}}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["sun", "雨"]}, "sure": {"type": "boolean"}, "days": {"enum": [1, 2, 3]}},
    "required": ["kind", "sure", "days"],
    "additionalProperties": False,
}


def text(client, model: str, **changes) -> Any:
    """A continuation, the likeliest unless `changes` say more."""
    return client.completions.create(**{"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | changes)


def chat(client, model: str, **changes) -> Any:
    """A message, the likeliest unless `changes` say more."""
    asked = {"model": model, "messages": ASK, "max_tokens": 12, "temperature": 0}
    return client.chat.completions.create(**asked | changes)


def said(answer) -> str:
    """The first message."""
    return answer.choices[0].message.content


def shown(chunks, index: int = 0) -> str:
    """What a stream of messages says."""
    parts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(part or "" for part in parts)


def refused(status: int, ask: Callable, *arguments, **named) -> dict:
    """The error with which a request is refused, in the form of OpenAI's."""
    try:
        ask(*arguments, **named)
    except openai.APIStatusError as error:
        assert error.status_code == status, f"status {error.status_code}, not {status}"
        body = error.response.json()["error"]
        assert body["message"] and body["type"], body
        return body
    raise AssertionError(f"was answered, not refused with {status}")


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


def _stop_of(whole: str) -> str:
    """Three characters of the middle of a text, wherever its tokens end."""
    return whole[len(whole) // 2 :][:3]


def case_a_stop_text_is_not_returned(client, model):
    whole = text(client, model, max_tokens=24).choices[0].text
    answer = text(client, model, max_tokens=24, stop=_stop_of(whole))
    assert answer.choices[0].text == whole.partition(_stop_of(whole))[0]
    assert answer.choices[0].finish_reason == "stop"


def case_a_stop_text_in_a_stream(client, model):
    whole = text(client, model, max_tokens=24).choices[0].text
    chunks = text(client, model, max_tokens=24, stop=[_stop_of(whole), "\u2603"], stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.partition(_stop_of(whole))[0]


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
    found = text(client, model, max_tokens=24, stop=_stop_of(whole), logprobs=1).choices[0]
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


def case_a_message(client, model):
    answer = chat(client, model)
    assert answer.object == "chat.completion" and answer.model
    assert answer.choices[0].message.role == "assistant" and isinstance(said(answer), str)


def case_usage_of_a_message(client, model):
    usage = chat(client, model, max_tokens=2).usage
    assert usage.completion_tokens <= 2 and usage.prompt_tokens > 0


def case_max_completion_tokens(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, max_completion_tokens=2)
    assert answer.usage.completion_tokens <= 2


def case_a_message_cut_off(client, model):
    answer = chat(client, model, max_tokens=1)
    assert answer.choices[0].finish_reason in ("length", "stop")


def case_a_stream_begins_with_the_role(client, model):
    first = next(iter(chat(client, model, stream=True)))
    assert first.object == "chat.completion.chunk" and first.choices[0].delta.role == "assistant"


def case_a_stream_is_the_message(client, model):
    assert shown(chat(client, model, stream=True)) == said(chat(client, model))


def case_a_stream_of_messages_ends_with_a_reason(client, model):
    reasons = [choice.finish_reason for chunk in chat(client, model, stream=True) for choice in chunk.choices]
    assert reasons[-1] and not any(reasons[:-1])


def case_usage_at_the_end_of_a_stream_of_messages(client, model):
    *_, last = chat(client, model, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens > last.usage.completion_tokens > 0


def case_several_messages(client, model):
    assert len(chat(client, model, n=2, temperature=1).choices) == 2


def case_several_messages_in_a_stream(client, model):
    chunks = list(chat(client, model, n=2, stream=True))
    assert shown(chunks, 0) == shown(chunks, 1)


def case_a_seed_repeats_a_message(client, model):
    assert said(chat(client, model, temperature=1, seed=4)) == said(chat(client, model, temperature=1, seed=4))


def case_a_stop_text_of_a_message(client, model):
    whole = said(chat(client, model, max_tokens=24))
    answer = chat(client, model, max_tokens=24, stop=_stop_of(whole))
    assert said(answer) == whole.partition(_stop_of(whole))[0] and answer.choices[0].finish_reason == "stop"


def case_log_probabilities_of_a_message(client, model):
    told = chat(client, model, logprobs=True).choices[0].logprobs.content
    assert told and all(one.logprob <= 0 and one.top_logprobs == [] for one in told)


def case_likely_tokens_of_a_message(client, model):
    told = chat(client, model, logprobs=True, top_logprobs=5).choices[0].logprobs.content
    assert all(len(one.top_logprobs) == 5 for one in told)
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[-1].logprob for one in told)


def case_the_bytes_of_tokens_are_the_message(client, model):
    choice = chat(client, model, logprobs=True).choices[0]
    held = b"".join(bytes(one.bytes or b"") for one in choice.logprobs.content)
    assert held.decode("utf-8", errors="replace") == choice.message.content


def case_log_probabilities_in_a_stream(client, model):
    chunks = chat(client, model, logprobs=True, top_logprobs=1, stream=True)
    told = [one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content]
    whole = chat(client, model, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert [one.token for one in told] == [one.token for one in whole]


def case_no_log_probabilities_unless_asked(client, model):
    assert chat(client, model).choices[0].logprobs is None


def case_a_bias_in_a_message(client, model):
    told = chat(client, model, logit_bias={"40": 100}, max_tokens=3, logprobs=True).choices[0].logprobs.content
    assert len({one.token for one in told}) == 1


def case_parts_of_text_are_joined(client, model):
    content = [{"type": "text", "text": "How is the "}, {"type": "text", "text": "weather today?"}]
    assert said(chat(client, model, messages=[{"role": "user", "content": content}])) == said(chat(client, model))


def case_a_system_message(client, model):
    assert chat(client, model, messages=[{"role": "system", "content": "Be brief."}, *ASK]).choices


def case_a_developer_is_the_system(client, model):
    answers = [
        said(chat(client, model, messages=[{"role": role, "content": "Be brief."}, *ASK]))
        for role in ("system", "developer")
    ]
    assert answers[0] == answers[1]


def case_a_conversation(client, model):
    messages = [*ASK, {"role": "assistant", "content": "Fine."}, {"role": "user", "content": "猫は？ 🐈"}]
    assert chat(client, model, messages=messages).usage.prompt_tokens > chat(client, model).usage.prompt_tokens


def case_a_message_is_sent_back(client, model):
    got = chat(client, model).choices[0].message.model_dump() | {"annotations": [], "content": "Fine."}
    assert chat(client, model, messages=[*ASK, got, *ASK]).choices


def case_a_json_object(client, model):
    answer = chat(client, model, response_format={"type": "json_object"}, max_tokens=64)
    assert said(answer).lstrip().startswith("{")
    assert answer.choices[0].finish_reason == "length" or isinstance(json.loads(said(answer)), dict)


def _form() -> dict:
    return {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def _satisfies(value: str) -> bool:
    found = json.loads(value)
    return (
        set(found) == {"kind", "sure", "days"}
        and found["kind"] in ("sun", "雨")
        and isinstance(found["sure"], bool)
        and found["days"] in (1, 2, 3)
    )


def case_a_schema(client, model):
    assert _satisfies(said(chat(client, model, response_format=_form(), max_tokens=400)))


def case_a_schema_at_any_temperature(client, model):
    answer = chat(client, model, response_format=_form(), max_tokens=400, temperature=1.5, n=3, seed=1)
    assert all(_satisfies(choice.message.content) for choice in answer.choices)


def case_a_schema_in_a_stream(client, model):
    assert _satisfies(shown(chat(client, model, response_format=_form(), max_tokens=400, stream=True)))


def case_a_schema_of_one_value(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "はい"}}}
    answer = chat(client, model, response_format=form, max_tokens=64)
    assert json.loads(said(answer)) == "はい" and answer.choices[0].finish_reason == "stop"


def case_text_is_a_response_format(client, model):
    assert said(chat(client, model, response_format={"type": "text"})) == said(chat(client, model))


def _must(client, model, **changes):
    named = {"type": "function", "function": {"name": "get_weather"}}
    asked = {"tools": [TIME, WEATHER], "tool_choice": named, "max_tokens": 400, "parallel_tool_calls": False}
    return chat(client, model, **asked | changes)


def _is_weather(call) -> bool:
    found = json.loads(call.arguments)
    return call.name == "get_weather" and found["city"] in ("Tokyo", "Paris") and isinstance(found["celsius"], bool)


def case_a_call_of_the_function_that_is_named(client, model):
    (call,) = _must(client, model).choices[0].message.tool_calls
    assert call.id and call.type == "function" and _is_weather(call.function)


def case_a_call_of_any_function(client, model):
    answer = _must(client, model, tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.name in ("get_time", "get_weather")


def case_a_call_has_its_own_reason(client, model):
    answer = _must(client, model, tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls" and not answer.choices[0].message.content


def case_a_call_in_a_stream(client, model):
    chunks = list(_must(client, model, stream=True))
    deltas = [delta for chunk in chunks for choice in chunk.choices for delta in choice.delta.tool_calls or ()]
    assert deltas[0].id and deltas[0].function.name == "get_weather" and not any(delta.id for delta in deltas[1:])
    arguments = "".join(delta.function.arguments for delta in deltas)
    assert _is_weather(
        openai.types.chat.chat_completion_message_function_tool_call.Function(
            name=deltas[0].function.name, arguments=arguments
        )
    )
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"


def case_no_call_if_none_is_wanted(client, model):
    assert not chat(client, model, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls


def case_the_result_of_a_call(client, model):
    function = {"name": "get_weather", "arguments": '{"city": "Tokyo", "celsius": true}'}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": '{"degrees": 20}'},
    ]
    assert chat(client, model, messages=messages, tools=[WEATHER]).choices


def case_events_end_with_done(client, model):
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=ASK, max_tokens=2, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)


# What is refused: the status, the endpoint, and what is changed in a good request.
REFUSED = {
    "an_unknown_model": (404, chat, {"model": "no-such-model"}),
    "an_unknown_model_of_texts": (404, text, {"model": "no-such-model"}),
    "a_temperature_below_0": (400, chat, {"temperature": -1}),
    "a_temperature_above_2": (400, text, {"temperature": 2.5}),
    "a_top_p_above_1": (400, chat, {"top_p": 1.5}),
    "no_answers": (400, chat, {"n": 0}),
    "no_messages": (400, chat, {"messages": []}),
    "an_unknown_role": (400, chat, {"messages": [{"role": "king", "content": "a"}]}),
    "a_message_without_content": (400, chat, {"messages": [{"role": "user"}]}),
    "a_picture": (
        400,
        chat,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ),
    "too_many_likely_tokens": (400, chat, {"logprobs": True, "top_logprobs": 21}),
    "likely_tokens_without_log_probabilities": (400, chat, {"top_logprobs": 2}),
    "five_stop_texts": (400, chat, {"stop": ["a", "b", "c", "d", "e"]}),
    "a_bias_above_100": (400, chat, {"logit_bias": {"40": 101}}),
    "a_bias_of_no_token": (400, chat, {"logit_bias": {"cat": 1}}),
    "a_token_that_is_none": (400, text, {"prompt": [1 << 30]}),
    "a_schema_that_is_none": (
        400,
        chat,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}},
    ),
    "an_unknown_response_format": (400, chat, {"response_format": {"type": "poem"}}),
    "a_function_that_is_not_there": (
        400,
        chat,
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ),
    "a_call_without_tools": (400, chat, {"tool_choice": "required"}),
    "stream_options_without_a_stream": (400, chat, {"stream_options": {"include_usage": True}}),
}


def case_a_prompt_longer_than_the_context(client, model):
    assert refused(400, text, client, model, prompt="cat " * 500_000)["code"] == "context_length_exceeded"


def case_a_wrong_key(client, model):
    if client.api_key == "none":
        return
    refused(401, chat, client.with_options(api_key="wrong-key-of-nobody"), model)


def _refusal(status: int, ask: Callable, changes: dict) -> Callable:
    return lambda client, model: refused(status, ask, client, **{"model": model} | changes)


CASES: dict[str, Callable] = {
    **{name.removeprefix("case_"): function for name, function in globals().items() if name.startswith("case_")},
    **{f"refused: {name}": _refusal(*refusal) for name, refusal in REFUSED.items()},
}


def main() -> int:
    """Run all cases; one line for each that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--only", default="", help="the cases whose names hold this")
    parser.add_argument("--seconds", type=float, default=120, help="after which a request without an answer has failed")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0, timeout=arguments.seconds)
    model = arguments.model or client.models.list().data[0].id
    chosen = {name: case for name, case in CASES.items() if arguments.only in name}
    failed = 0
    for name, case in chosen.items():
        try:
            case(client, model)
        except Exception as error:  # a server may answer anything
            failed += 1
            print(f"{name}: {type(error).__name__} {str(error)[:200]}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} cases hold for {model} at {arguments.url}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
