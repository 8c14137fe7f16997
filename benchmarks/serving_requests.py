"""Requests of OpenAI's client for Python, as the cases of `serving_conformance.py` make them."""

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


def stop_of(whole: str) -> str:
    """Three characters of the middle of a text, wherever its tokens end."""
    return whole[len(whole) // 2 :][:3]
