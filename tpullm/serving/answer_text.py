"""The text of one answer, from its tokens: whole characters, up to a stop text, and the calls of tools in it.

A call is `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen).
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpullm.engine.request import Characters, Token, Until
from tpullm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Part:
    """What comes to an answer at a time.

    Args:
        text: the new characters.
        tokens: the tokens of the text, and the place of each in the answer, in characters.
        ends: why the answer ends (`stop`, `length` or `tool_calls`), if it does.
        calls: what comes to the calls of tools, in OpenAI's form of a delta.
    """

    text: str = ""
    tokens: tuple[tuple[Token, int], ...] = ()
    ends: str = ""
    calls: tuple[dict[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.ends or self.calls)


class AnswerText:
    """Makes parts of an answer out of its tokens. A token comes with the text that it ends in."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], stop_ids: tuple[int, ...]):
        self._characters, self._until, self._stop_ids = Characters(tokenizer), Until(stops), stop_ids
        self._waiting: list[tuple[Token, int]] = []  # tokens whose text is held back, and where they begin
        self._made = self._told = 0  # characters

    def add(self, token: Token) -> Part:
        """The part that comes with a token. No token may follow one that ends the answer."""
        stopped = token.ends == "stop" and token.id in self._stop_ids
        new = "" if stopped else self._characters.add(token.id)
        if not stopped:
            self._waiting.append((token, self._made))
        new += self._characters.rest() if token.ends else ""
        self._made += len(new)
        text = self._until.add(new)
        everything = token.ends and not self._until.found
        text += self._until.rest() if everything else ""
        self._told += len(text)
        # The waiting tokens that begin in the text which was told.
        ready = [pair for pair in self._waiting if everything or pair[1] < self._told]
        self._waiting = self._waiting[len(ready) :]
        return Part(text, tuple(ready), "stop" if self._until.found else token.ends)


def joined(parts: list[Part]) -> Part:
    """The whole answer."""
    tokens = tuple(pair for part in parts for pair in part.tokens)
    calls = tuple(call for part in parts for call in part.calls)
    return Part("".join(part.text for part in parts), tokens, parts[-1].ends, calls)


OPEN, CLOSE = "<tool_call>", "</tool_call>"
# How a call begins whose arguments can be told while they are written.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


class ToolText:
    """Takes the calls out of the text of an answer.

    Args:
        text: makes the text.
        several: whether there may be several calls; if not, the first one ends the answer.
    """

    def __init__(self, text: AnswerText, several: bool):
        self._text, self._several = text, several
        self._outside, self._call, self._count = Until([OPEN]), None, 0
        self._follows = False  # a call has just ended: white space after it is not part of the text

    def add(self, token: Token) -> Part:
        """The part that comes with a token; the text of a call is not in it."""
        part = self._text.add(token)
        text, deltas, left = "", [], part.text
        while left and not self._is_over():
            if self._call is None:
                said, left = self._outside.add(left), ""
                said = said.lstrip() if self._follows else said
                self._follows = self._follows and not said
                text += said
                if self._outside.found:
                    left = self._outside.held.removeprefix(OPEN)
                    self._outside, self._call = Until([OPEN]), _Call(self._count)
            else:
                called, left = self._call.add(left)
                deltas += called
                if left is not None:
                    text += self._call.rest()
                    self._follows = self._call.is_told
                    self._count += self._call.is_told
                    self._call = None
        if self._is_over():
            part = replace(part, ends="tool_calls")
        elif part.ends:
            text += self._call.rest() if self._call else self._outside.rest()
            self._count += self._call is not None and self._call.is_told
            part = replace(part, ends="tool_calls" if self._count and part.ends == "stop" else part.ends)
        return replace(part, text=text, calls=tuple(_merge_call_deltas(deltas)))

    def _is_over(self) -> bool:
        return self._count > 0 and self._call is None and not self._several


class _Call:
    """One call while it is written.

    Attributes:
        is_told: whether a call was found in it, and told.
    """

    def __init__(self, index: int):
        self._index, self._written, self.is_told = index, "", False
        self._begun = self._over = False  # its arguments
        self._depth, self._quoted, self._escaped = 0, False, False  # where the arguments are

    def add(self, text: str) -> tuple[list[dict[str, Any]], str | None]:
        """What comes to the call; and once it is over, what follows it."""
        self._written += text
        deltas = []
        if not self._begun and (head := _HEAD.match(self._written)):
            deltas.append(self._begin(json.loads(head[1], strict=False)))
            self._begun, self._written = True, self._written[head.end() :]
        if self._begun and not self._over:
            length = self._length_of_arguments(self._written)
            deltas += [self._more(self._written[:length])] if length else []
            self._written = self._written[length:]
        before, closed, after = self._written.partition(CLOSE)
        if not closed:
            return deltas, None
        if not self._begun:
            deltas += self._whole(before)
        self._written = "" if self.is_told else f"{before}{CLOSE}"
        return deltas, after

    def rest(self) -> str:
        """What was written, if it was no call."""
        return "" if self.is_told else OPEN + self._written

    def _whole(self, text: str) -> list[dict[str, Any]]:
        """The deltas of a call in another order, known only as a whole; none if it is no call."""
        try:
            called = json.loads(text)
            name, arguments = called["name"], called.get("arguments", called.get("parameters", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []
        if not isinstance(name, str):
            return []
        return [self._begin(name), self._more(json.dumps(arguments, ensure_ascii=False))]

    def _begin(self, name: str) -> dict[str, Any]:
        self.is_told = True
        function = {"name": name, "arguments": ""}
        return {"index": self._index, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}

    def _more(self, arguments: str) -> dict[str, Any]:
        return {"index": self._index, "function": {"arguments": arguments}}

    def _length_of_arguments(self, text: str) -> int:
        """How many of these characters belong to them: they are over where all brackets are closed."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._over = True
                    return place + 1
        return len(text)


def _merge_call_deltas(deltas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same deltas, with one for each call."""
    merged: list[dict[str, Any]] = []
    for delta in deltas:
        if merged and "id" not in delta:
            function = merged[-1]["function"]
            more = function["arguments"] + delta["function"]["arguments"]
            merged[-1] = merged[-1] | {"function": function | {"arguments": more}}
        else:
            merged.append(delta)
    return merged


def whole_calls(deltas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls that some deltas make."""
    return [{key: value for key, value in call.items() if key != "index"} for call in _merge_call_deltas(deltas)]
