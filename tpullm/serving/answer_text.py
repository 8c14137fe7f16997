"""The text of one answer, from its tokens: whole characters, up to a stop text, and the calls of tools in it."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tpullm.engine.request import Characters, Token, Until
from tpullm.serving.call_forms import Form
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
    """Makes parts of an answer out of its tokens. A token comes with the text that it ends in.

    Args:
        special: special tokens that are text here, by name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        stop_ids: tuple[int, ...],
        special: Mapping[str, int] = MappingProxyType({}),
    ):
        self._characters, self._until, self._stop_ids = Characters(tokenizer), Until(stops), stop_ids
        self._names = {one: name for name, one in special.items()}
        self._waiting: list[tuple[Token, int]] = []  # tokens whose text is held back, and where they begin
        self._made = self._told = 0  # characters

    def add(self, token: Token) -> Part:
        """The part that comes with a token. No token may follow one that ends the answer."""
        stopped = token.ends == "stop" and token.id in self._stop_ids
        new = "" if stopped else self._characters.add(token.id) + self._names.get(token.id, "")
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


class ToolText:
    """Takes the calls out of the text of an answer, which the grammar of their form holds.

    Args:
        text: makes the text.
        form: of the calls.
        several: whether there may be several calls; if not, the first one ends the answer.
    """

    def __init__(self, text: AnswerText, form: Form, several: bool):
        before, middle, _ = form.parts
        self._text, self._several, self._is_marked = text, several, bool(form.mark)
        self._heads = [_pattern(form.first + before, middle), _pattern((form.between or "") + before, middle)]
        self._outside, self._held = Until([form.mark]), ""  # the text outside of calls, and what may be a call
        self._calls = self._says = self._open = False  # a call began; none can begin; arguments are being written
        self._count = 0  # calls whose arguments have ended
        self._depth, self._quoted, self._escaped = 0, False, False  # where the arguments are

    def add(self, token: Token) -> Part:
        """The part that comes with a token; the text of a call is not in it."""
        part, deltas = self._text.add(token), []
        if self._calls:
            text, self._held = "", self._held + part.text
        else:
            text = self._until_call(part.text)
        while self._calls and self._held and not self._is_over():
            if not self._open:
                head = self._heads[bool(self._count)].search(self._held)
                if head is None:
                    break
                deltas.append(self._begin(head["name"]))
                self._open, self._held = True, self._held[head.end() :]
            length = self._length_of_arguments(self._held)
            deltas += [self._more(self._held[:length])] if length else []
            self._held = self._held[length:]
            if self._depth == 0 and length:
                self._open, self._count = False, self._count + 1
        if self._is_over():
            part = replace(part, ends="tool_calls")
        elif part.ends:
            told = self._open or self._count
            text += "" if told else self._held if self._calls or not self._is_marked else self._outside.rest()
            part = replace(part, ends="tool_calls" if told and part.ends == "stop" else part.ends)
        return replace(part, text=text, calls=tuple(_merge_call_deltas(deltas)))

    def _until_call(self, new: str) -> str:
        """The text that is known to stand before the first call, or in an answer without any."""
        if self._is_marked:
            said = self._outside.add(new)
            self._calls, self._held = self._outside.found, self._outside.held if self._outside.found else ""
            return said
        held, self._held = self._held + new, ""
        begins = held.lstrip()[:1]
        self._says = self._says or begins not in ("", "{")
        if self._says:
            return held
        self._calls, self._held = begins == "{", held
        return ""

    def _is_over(self) -> bool:
        return self._count > 0 and not self._several

    def _begin(self, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        # Nine letters or digits: Mistral's templates refuse other ids.
        return {"index": self._count, "id": secrets.token_hex(5)[:9], "type": "function", "function": function}

    def _more(self, arguments: str) -> dict[str, Any]:
        return {"index": self._count, "function": {"arguments": arguments}}

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
                    return place + 1
        return len(text)


def _pattern(before: str, middle: str) -> re.Pattern[str]:
    """A call up to its arguments; white space may differ."""
    first, second = (r"\s*".join(map(re.escape, re.split(r"\s+", part))) for part in (before, middle))
    return re.compile(rf"{first}(?P<name>[A-Za-z0-9_.-]+){second}\s*(?=\{{)")


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
