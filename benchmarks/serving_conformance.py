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

import openai
import serving_text_cases
from serving_requests import ASK, SCHEMA, TIME, WEATHER, chat, refused, said, shown, stop_of, text


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
    answer = chat(client, model, max_tokens=24, stop=stop_of(whole))
    assert said(answer) == whole.partition(stop_of(whole))[0] and answer.choices[0].finish_reason == "stop"


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
    **{
        name.removeprefix("case_"): function
        for name, function in (vars(serving_text_cases) | globals()).items()
        if name.startswith("case_")
    },
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
