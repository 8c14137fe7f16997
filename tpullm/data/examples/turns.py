"""The turns of a conversation, in any of the forms that they are written in → `Messages`, checked.

A message of `Messages` has `role` and `content`. An answer that calls functions has `tool_calls`, as chat templates
expect them: the arguments are an object, not its text.
"""

import re
from collections.abc import Iterable
from typing import Any

from tpullm.corpus.files.encodings import has_surrogate
from tpullm.corpus.files.json_text import parse_json
from tpullm.corpus.files.talks import CONTENT_KEYS, ROLE_KEYS, ROLES, TEXT_TYPES
from tpullm.system.errors import UserError
from tpullm.tokenizer.chat_template import Message, Messages, Tools

TEXT_KEYS = {"tool": ("name", "tool_call_id"), "assistant": ("reasoning_content",)}  # kept beside the content
DEEPEST = 32  # levels of JSON in tools, arguments and fields
TRANSCRIPT = "\n\nHuman:"  # what a conversation of HH begins with
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def turns(value: Any, where: str) -> Messages:
    """A conversation out of a list of turns; `where` begins the error."""
    if not isinstance(value, list) or not value:
        raise UserError(f'{where}: has no messages; write {{"messages": [{{"role": "user", "content": "..."}}, ...]}}')
    return [turn(said, f"{where}, message {number}") for number, said in enumerate(value, start=1)]


def turn(value: Any, where: str) -> Message:
    """One turn: an object with a role (`role`, `from`, `name`) and what is said (`content`, `value`, `text`)."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: is not an object; write {{"role": "user", "content": "..."}}')
    named = _value_of_first_key(value, ROLE_KEYS)
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise UserError(f"{where}: the role {named!r:.60} is unknown; use system, user, assistant, tool")
    if role == "assistant" and value.get("weight") == 0:
        raise UserError(f"{where}: has weight 0, which is not supported; end the conversation before it, or learn it")
    calls = value.get("tool_calls") if role == "assistant" else None
    if not isinstance(calls, list | None):
        raise UserError(f"{where}: tool_calls is not a list; write [{_CALL}]")
    calls = [_function_call(call, f"{where}, tool call {number}") for number, call in enumerate(calls or (), start=1)]
    content = _value_of_first_key(value, CONTENT_KEYS)
    parts = content if isinstance(content, list) else [content] if content is not None else []
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") in TEXT_TYPES else part for part in parts]
    for text in texts:
        if not isinstance(text, str):
            kind = repr(text.get("type")) if isinstance(text, dict) else type(text).__name__
            raise UserError(f"{where}: its content is of type {kind:.60} and not text; only text can be learned")
        check_plain(text, f"{where}: its content")
    content = "".join(texts)
    if not (content.strip() or calls or role == "tool"):
        raise UserError(f"{where}: has no content; write what the {role} says")
    kept = {key: value[key] for key in TEXT_KEYS.get(role, ()) if isinstance(value.get(key), str)}
    check_plain(kept, where)
    return {"role": role, "content": content, **kept, **({"tool_calls": calls} if calls else {})}


def _value_of_first_key(value: dict, keys: Iterable[str]) -> Any:
    """The value of the first key that is there."""
    return next((value[key] for key in keys if value.get(key) is not None), None)


def said_by(role: str, text: Any, where: str) -> Message:
    """A turn of a role, out of a text."""
    return turn({"role": role, "content": text}, where)


_CALL = '{"type": "function", "function": {"name": "...", "arguments": {}}}'


def _function_call(value: Any, where: str) -> dict:
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: has no function with a name; write {_CALL}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # as OpenAI has them
        arguments = parse_json(arguments, f"{where}: its arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: its arguments are no object; write {_CALL}")
    known = {"id": value["id"]} if isinstance(value.get("id"), str) else {}
    call = {**known, "type": "function", "function": {"name": name, "arguments": arguments}}
    check_plain(call, where)
    return call


def tools(value: Any, where: str) -> Tools:
    """The functions that the assistant may call: a list of JSON schemas, or the text of one; none is None."""
    found = parse_json(value, f"{where}: tools") if isinstance(value, str) and value.strip() else value
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) and tool for tool in found):
        raise UserError(f'{where}: tools is not a list of functions; write [{{"type": "function", "function": ...}}]')
    check_plain(found, f"{where}: tools")
    return found


def transcript(text: str, where: str) -> Messages:
    """A conversation of HH's form: a text with `\\n\\nHuman:` or `\\n\\nAssistant:` before each turn.

    An `Assistant:` at the end, with nothing after it, asks for an answer and is no turn.
    """
    _, *parts = _SPEAKER.split(text)
    said = [(name, part.strip()) for name, part in zip(parts[::2], parts[1::2], strict=True)]
    if said[-1] == ("Assistant", ""):
        said.pop()
    return turns([{"from": "user" if name == "Human" else "assistant", "value": part} for name, part in said], where)


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Refuse what would fail later on: half of a surrogate pair in any text, and what is nested too deeply."""
    if depth > DEEPEST:
        raise UserError(f"{where}: is nested more than {DEEPEST} levels deep; make it flatter or remove it")
    if isinstance(value, str) and has_surrogate(value):
        raise UserError(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff); remove it")
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        check_plain(item, where, depth + 1)
