"""The messages and tools of a chat request, as chat templates take them."""

import json
import re
from typing import Any

from tpullm.serving.refusal import Refusal
from tpullm.serving.request_fields import Fields

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 2_048
MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """Take `messages`; `Refusal` names the one that is wrong."""
    given = fields.needed("messages", list, "a list of messages")
    if not 0 < len(given) <= MOST_MESSAGES:
        raise fields.wrong("messages", f"has {len(given):,} messages; give 1 to {MOST_MESSAGES:,}")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(given)]


def _message(given: Any, where: str) -> dict[str, Any]:
    fields = _object(given, where)
    role = fields.needed("role", str, "a text")
    if role not in ROLES:
        raise fields.wrong("role", f"{role[:40]!r} is not one of {', '.join(ROLES)}")
    calls = fields.take("tool_calls", list, "a list of calls") if role == "assistant" else None
    content = _text(fields, where, needed=not calls)
    message = {"role": "system" if role == "developer" else role, "content": content}
    if calls:
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]
    if role == "tool":
        message["tool_call_id"] = fields.needed("tool_call_id", str, "the id of the call that this answers")
    if name := fields.take("name", str, "a text"):
        message["name"] = name
    fields.end({"refusal", "annotations", "reasoning_content", "audio"} if role == "assistant" else set())
    return message


def _text(fields: Fields, where: str, needed: bool) -> str:
    """The text of a message; parts of type `text` are joined."""
    content = fields.take("content", (str, list), "a text or a list of parts")
    if content is None and needed:
        raise fields.wrong("content", "is missing; give a text")
    if not isinstance(content, list):
        return content or ""
    texts = []
    for number, given in enumerate(content):
        part = _object(given, f"{where}.content[{number}]")
        kind = part.needed("type", str, "a text")
        if kind != "text":
            raise part.wrong("type", f"{kind[:40]!r} is not read by this model; send parts of type text only")
        texts.append(part.needed("text", str, "a text"))
    return "".join(texts)


def _call(given: Any, where: str) -> dict[str, Any]:
    """A call that was made before. Templates take its arguments as an object."""
    fields = _object(given, where)
    number = fields.take("id", str, "a text", "")
    fields.unsupported("type", ("function",), "is not function, and no other tools are known")
    function = fields.part("function")
    name = function.needed("name", str, "a text")
    text = function.needed("arguments", str, "JSON in a text")
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise function.wrong("arguments", "is not a JSON object in a text")
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def read_tools(fields: Fields) -> list[dict[str, Any]]:
    """Take `tools`: functions, as templates take them; none if there are none."""
    given = fields.take("tools", list, "a list of tools", [])
    if len(given) > MOST_TOOLS:
        raise fields.wrong("tools", f"has {len(given):,} tools; give at most {MOST_TOOLS}")
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(given)]
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise fields.wrong("tools", "has two functions of the same name")
    return tools


def _tool(given: Any, where: str) -> dict[str, Any]:
    fields = _object(given, where)
    if (kind := fields.needed("type", str, "function")) != "function":
        raise fields.wrong("type", f"{kind[:40]!r} is not function, and no other tools are known")
    function = fields.part("function")
    name = function.needed("name", str, "a text")
    if not _NAME.fullmatch(name):
        raise function.wrong("name", f"{name[:80]!r} is not 1 to 64 letters, digits, _, - and .")
    described = {
        "name": name,
        "description": function.take("description", str, "a text", ""),
        "parameters": function.take("parameters", dict, "a JSON schema", {"type": "object", "properties": {}}),
    }
    function.flag("strict")
    function.end()
    fields.end()
    return {"type": "function", "function": described}


def read_choice(fields: Fields, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Take `tool_choice`: the tools that the model sees, and the functions of which it must call one, if it must."""
    choice = fields.take("tool_choice", (str, dict), "none, auto, required or a function", "auto" if tools else "none")
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, dict):
        chosen = Fields(choice, "tool_choice.")
        chosen.unsupported("type", ("function",), "is not function, and no other choices are known")
        name = chosen.part("function").needed("name", str, "the name of a function")
        named = [function for function in functions if function["name"] == name]
        if not named:
            raise fields.wrong("tool_choice", f"{name[:80]!r} is not in tools")
        return tools, named
    if choice not in ("none", "auto", "required"):
        raise fields.wrong("tool_choice", f"{choice[:40]!r} is not none, auto or required")
    if choice == "required" and not tools:
        raise fields.wrong("tool_choice", "is required, and there are no tools")
    return ([] if choice == "none" else tools), (functions if choice == "required" else [])


def _object(given: Any, where: str) -> Fields:
    if not isinstance(given, dict):
        raise Refusal(f"{where}: is not an object", param=where)
    return Fields(given, f"{where}.")
