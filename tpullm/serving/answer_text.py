"""The text of one answer, from its tokens: whole characters, up to a stop text, and the calls of tools in it."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    Stop texts are looked for outside of calls: one in an argument would leave a call that can't be run.

    Args:
        tools: takes the calls out of the text, if there may be some.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], stop_ids: Sequence[int], tools: "ToolText | None" = None
    ):
        self._characters, self._until, self._stops, self._stop_ids = (
            Characters(tokenizer),
            Until(stops),
            stops,
            stop_ids,
        )
        self._bytes_of, self._tools = tokenizer.bytes_of, tools
        self._waiting: list[tuple[Token, int]] = []  # tokens whose text is held back, and where they begin
        self._made = 0  # characters

    def add(self, token: Token) -> Part:
        """The part that comes with a token. No token may follow one that ends the answer."""
        stopped, tools = token.ends == "stop" and token.id in self._stop_ids, self._tools
        new = "" if stopped else self._characters.add(token.id) + (tools.names.get(token.id, "") if tools else "")
        if not stopped:
            self._waiting.append((token, self._made))
        new += self._characters.rest() if token.ends else ""
        self._made += len(new)
        special = None if self._bytes_of(token.id) else token.id
        said, calls = tools.add(new, special, bool(token.ends)) if tools else (new, [])
        text = self._until.add(said)
        found = self._until.found
        if calls and not found:  # a call stands between what was said and any later text
            text, self._until = text + self._until.rest(), Until(self._stops)
        ends = "stop" if found else tools.why(token.ends) if tools else token.ends
        everything = ends and not found
        text += self._until.rest() if everything else ""
        told = self._made - len(self._until.held) - (len(tools.held) if tools else 0)
        # The waiting tokens that begin in the text which was told.
        ready = [pair for pair in self._waiting if everything or pair[1] < told]
        self._waiting = self._waiting[len(ready) :]
        return Part(text, tuple(ready), ends, () if found else tuple(_merge_call_deltas(calls)))


def joined(parts: list[Part]) -> Part:
    """The whole answer."""
    tokens = tuple(pair for part in parts for pair in part.tokens)
    calls = tuple(call for part in parts for call in part.calls)
    return Part("".join(part.text for part in parts), tokens, parts[-1].ends, calls)


class ToolText:
    """Takes the calls out of the text of an answer. All calls are as the grammar of their form writes them.

    So a call begins with one of a few texts, and what is not one of them is text: a mark that is a special token where
    the model spells it, a call of a function that was not offered.

    Args:
        form: of the calls.
        functions: the names of those that were offered.
        several: whether there may be several calls; if not, the first one ends the answer.
        special: the special tokens in the form, by name.

    Attributes:
        names: of these tokens: their text.
        held: text that may become a call, or stands between two.
    """

    def __init__(
        self, form: Form, functions: Sequence[str], several: bool, special: Mapping[str, int] = MappingProxyType({})
    ):
        before, middle, after = form.parts
        self.names, self.held, self._several = {one: name for name, one in special.items()}, "", several
        self._mark, self._mark_id = form.mark, special.get(form.mark)
        opening = form.first + before
        self._heads = {f"{opening}{name}{middle}{{": name for name in functions}  # all that a call can begin with
        more = [] if form.between is None or not several else functions
        self._next_heads = {f"{after}{form.between}{before}{name}{middle}{{": name for name in more}
        # An answer that calls without a mark begins with the call.
        self._at = "text" if form.mark else "head"  # or "arguments", or "end": behind the last call
        self._count = 0  # calls whose arguments have ended
        self._depth, self._quoted, self._escaped = 0, False, False  # where the arguments are

    def add(self, new: str, special: int | None, ends: bool) -> tuple[str, list[dict[str, Any]]]:
        """What is known to be text, and what comes to calls, with the characters of a token.

        Args:
            special: the token, if it stands for no bytes.
            ends: whether it ends the answer.
        """
        said, deltas = "", []
        is_apart = special is not None and (special == self._mark_id or special not in self.names)
        if is_apart and self._is_before:  # no mark that is text goes on behind another token
            said, self.held, self._at = self.held, "", "head" if special == self._mark_id else "text"
        self.held += new
        waits = False
        while self.held and not waits:
            if self._at == "text":
                until = Until([self._mark] if self._mark_id is None else [])
                said += until.add(self.held)
                self.held, waits = until.held, not until.found
                self._at = "head" if until.found else "text"
            elif self._at == "head":
                name, waits = self._read_head()
                deltas += [self._begin(name)] if name else []
                if not name and not waits and self._count == 0:  # a mark that begins no call
                    length = len(self._mark)
                    said, self.held, self._at = said + self.held[:length], self.held[length:], "text"
            elif self._at == "arguments":
                length = self._length_of_arguments(self.held)
                deltas.append(self._more(self.held[:length]))
                self.held = self.held[length:]
                if self._depth == 0:
                    self._at, self._count = "head", self._count + 1
            else:
                self.held = ""
        if ends and self._is_before:
            said, self.held = said + self.held, ""
        return said, deltas

    @property
    def _is_before(self) -> bool:
        return self._count == 0 and self._at != "arguments"

    def _read_head(self) -> tuple[str, bool]:
        """The name in the head that the held text begins with, which is taken off; and whether it may become one."""
        heads = self._next_heads if self._count else self._heads
        head = next(filter(self.held.startswith, heads), None)
        if head is not None:
            self.held, self._at = self.held[len(head) - 1 :], "arguments"
            return heads[head], False
        waits = any(one.startswith(self.held) for one in heads)
        if not waits and self._count:
            self._at = "end"
        return "", waits

    def why(self, ends: str) -> str:
        """Why the answer ends, if its last token ends it so. A call that was left open is none to run."""
        is_whole = self._count > 0 and self._at != "arguments"
        return "tool_calls" if is_whole and (ends == "stop" or not self._several) else ends

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
