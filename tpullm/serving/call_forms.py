"""How models are shown tools and call them. The grammar of an answer and its reader are made from `call_forms.yaml`.

A template that has tools of its own shows how its model writes a call: it is asked for a conversation with one. For any
other template the tools are described in the system message, as Hermes and Qwen 2.5 describe them.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.storage import read_tables
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.chat_template import Message, Messages, Tools

_TOKEN = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])")  # what may be a special token


@dataclass(frozen=True)
class Form:
    """How calls are written.

    Args:
        mark: the text that shows where the calls of an answer begin: the start of `first`, or of `call` if `first` is
            empty. Text may stand before it. If it is empty, an answer is either text or a call, from its first
            character on.
        call: one call. NAME stands for the name of the function, and ARGUMENTS for a JSON object.
        first, last: what is written before the first call and after the last one.
        between: what is written between two calls; None if an answer has at most one.
    """

    mark: str
    call: str
    first: str = ""
    last: str = ""
    between: str | None = None

    @cached_property
    def parts(self) -> tuple[str, str, str]:
        """What stands before the name of a call, before its arguments, and after them."""
        return tuple(re.split("NAME|ARGUMENTS", self.call))

    def written(self, calls: Sequence[tuple[str, Any]]) -> str:
        """Some calls, each with its name and its arguments."""
        before, middle, after = self.parts
        each = [f"{before}{name}{middle}{json.dumps(given, ensure_ascii=False)}{after}" for name, given in calls]
        return f"{self.first}{(self.between or '').join(each)}{self.last}"

    def special_tokens(self, tokenizer: Tokenizer) -> dict[str, int]:
        """The parts of the form that are special tokens of a model; in another model they are text."""
        found = {}
        for name in _TOKEN.findall(f"{self.mark}{self.first}{self.call}{self.between or ''}{self.last}"):
            ids = [one for one in tokenizer.encode_marked(name) if not tokenizer.bytes_of(one)]
            found.update((name, one) for one in ids if tokenizer.piece(one) == name)
        return found

    @staticmethod
    def split(text: str) -> list[str]:
        """A part of the form, where a special token may be each second one."""
        return _TOKEN.split(text)


(FORMS,) = read_tables(Path(__file__).with_suffix(".yaml"), forms=tuple[Form, ...])
_NAME, _ARGUMENTS, _ID = "probe_of_tools", {"key": "value"}, "abcdef123"
_PROBE = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}],
    },
    {"role": "tool", "name": _NAME, "tool_call_id": _ID, "content": "b"},
]
_SCHEMA = {"type": "object", "properties": {"key": {"type": "string", "description": "c"}}, "required": ["key"]}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "d", "parameters": _SCHEMA}}


class Calls:
    """How a model is shown tools, and how it calls them.

    Attributes:
        form: of its calls.
        is_described: whether its chat template has no tools, or writes calls in a form that the table lacks.
        special: the special tokens in the form, by name.
        other_special: all others that do not end an answer: they may be among its text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, known = tokenizer, None
        with contextlib.suppress(UserError):  # the template leaves out tools, calls or results, or refuses them
            shown, before = (tokenizer.prompt_text(messages, [_TOOL]) for messages in (_PROBE, _PROBE[:1]))
            # A call without a mark stands where the answer begins.
            found = (form for form in FORMS if f"{'' if form.mark else before}{_beginning(form)}" in shown)
            known = next(found, None)
        self.form, self.is_described = known or FORMS[0], known is None
        self.special = self.form.special_tokens(tokenizer)
        not_text = {*self.special.values(), *tokenizer.stop_ids}
        silent = (one for one in range(tokenizer.vocabulary_size) if not tokenizer.bytes_of(one))
        self.other_special = [one for one in silent if one not in not_text]

    @cached_property
    def _has_system(self) -> bool:
        """Whether the template shows a system message."""
        with contextlib.suppress(UserError):
            return _NAME in self._tokenizer.prompt_text([{"role": "system", "content": _NAME}, *_PROBE[:1]])
        return False

    def shown(self, messages: Messages, tools: Tools) -> tuple[list[Message], Tools]:
        """Messages and tools as the template takes them: if they are described, as text in messages."""
        if not self.is_described:
            return [_with_short_ids(message) for message in messages], tools
        found: list[Message] = []
        for message in messages:
            role, content = message["role"], message.get("content") or ""
            if role == "tool":
                role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
                if found and found[-1]["role"] == "user":  # many templates want the roles to alternate
                    content = f"{found.pop()['content']}\n{content}"
            elif calls := message.get("tool_calls"):
                written = self.form.written(
                    [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
                )
                content = f"{content}\n{written}".strip()
            else:
                found.append(message)
                continue
            found.append({"role": role, "content": content})
        return self._described(found, tools) if tools else found, None

    def _described(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
        """Messages with a description of the tools: after the system's text, else before the first message."""
        told = _description(self.form, tools)
        first = messages[0]
        if first["role"] == "system" or not self._has_system:
            parts = [first["content"], told] if first["role"] == "system" else [told, first["content"]]
            return [first | {"content": "\n\n".join(parts)}, *messages[1:]]
        return [{"role": "system", "content": told}, *messages]


def _with_short_ids(message: Message) -> Message:
    """A message whose ids of calls have nine letters and digits: Mistral's templates refuse others."""

    def short(name: str) -> str:
        return name if re.fullmatch("[A-Za-z0-9]{9}", name) else hashlib.sha256(name.encode()).hexdigest()[:9]

    found = {"tool_call_id": short(message["tool_call_id"])} if message.get("tool_call_id") else {}
    if calls := message.get("tool_calls"):
        found["tool_calls"] = [call | {"id": short(call.get("id", ""))} for call in calls]
    return message | found


def _beginning(form: Form) -> str:
    """A call of the probe up to the end of its arguments: some templates add an id behind them."""
    before, middle, _ = form.parts
    return f"{form.first}{before}{_NAME}{middle}{json.dumps(_ARGUMENTS)}"


def _description(form: Form, tools: list[dict[str, Any]]) -> str:
    """The tools, and how to call them."""
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    call = form.call.replace('"NAME"', "<function-name>").replace("ARGUMENTS", "<args-json-object>")
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        f"XML tags:\n{call}"
    )
