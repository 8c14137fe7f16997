"""The text of one answer, from its tokens: whole characters, up to a stop text."""

from dataclasses import dataclass, replace
from typing import Any

from tpullm.inference.request import Token
from tpullm.inference.streaming import Characters, Until
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
        if token.ends and not self._until.found:
            text += self._until.rest()
        self._told += len(text)
        ends = "stop" if self._until.found else token.ends
        return Part(text, self._tokens(everything=bool(token.ends) and not self._until.found), ends)

    def _tokens(self, everything: bool) -> tuple[tuple[Token, int], ...]:
        """The waiting tokens that begin in the text which was told."""
        ready = [pair for pair in self._waiting if everything or pair[1] < self._told]
        self._waiting = self._waiting[len(ready) :]
        return tuple(ready)


def joined(parts: list[Part]) -> Part:
    """The whole answer."""
    tokens = tuple(pair for part in parts for pair in part.tokens)
    calls = tuple(call for part in parts for call in part.calls)
    return replace(Part("".join(part.text for part in parts), tokens, parts[-1].ends), calls=calls)
