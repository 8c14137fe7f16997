"""Runs chat templates in a child with limits: a template is a program, and some never end or fill the memory."""

from typing import Any

from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited
from tpullm.tokenizer.chat_template import Answer, ChatTemplate, EarlierAnswersChangeError, Messages, Tools


class TemplateChild:
    """A `ChatTemplate` in a child process, with the same arguments and the same methods."""

    def __init__(self, source: str, tokens: dict[str, str], where: str):
        self._program, self._where, self._child = (source, tokens, where), where, Limited()

    def prompt(self, messages: Messages, tools: Tools = None) -> str:
        """A conversation as text, up to the place where the model answers."""
        return self._shown("prompt", messages, tools)[0]

    def shown(self, messages: Messages, tools: Tools = None) -> tuple[str, list[Answer]]:
        """A conversation as text, and where in it the answers are; it raises what `ChatTemplate.shown` raises."""
        return self._shown("shown", messages, tools)

    def last(self, messages: Messages, tools: Tools = None) -> tuple[str, list[Answer]]:
        """The same for the last answer alone; the last message is the assistant's."""
        return self._shown("last", messages, tools)

    def _shown(self, method: str, messages: Messages, tools: Tools) -> tuple[str, list[Answer]]:
        called = (f"{__name__}:show", method, *self._program, list(messages), tools)
        text, answers, changes = _checked(self._child.call(f"{self._where}: its chat template", *called), self._where)
        if changes:
            raise EarlierAnswersChangeError(changes)
        return text, answers


def show(method: str, source: str, tokens: dict, where: str, messages: list, tools: Tools) -> list:
    """In the child: the text, the answers in it, and the message of an `EarlierAnswersChangeError`, if any."""
    try:
        shown = getattr(ChatTemplate(source, tokens, where), method)(messages, tools)
    except EarlierAnswersChangeError as error:
        return ["", [], str(error)]
    return [shown, [], ""] if method == "prompt" else [*shown, ""]


def _checked(reply: Any, where: str) -> tuple[str, list[Answer], str]:
    """The reply of `show`, if the child was still itself."""
    text, answers, changes = reply if isinstance(reply, list) and len(reply) == 3 else (None, None, None)
    if not (isinstance(text, str) and isinstance(answers, list) and isinstance(changes, str)):
        raise UserError(f"{where}: its chat template gives no text")
    return text, [_answer(answer, text, where) for answer in answers], changes


def _answer(answer: Any, text: str, where: str) -> Answer:
    start, end, content, calls = answer if isinstance(answer, list) and len(answer) == 4 else (-1, -1, None, False)
    places = isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(text)
    if not places or not isinstance(content, str | None) or not isinstance(calls, bool):
        raise UserError(f"{where}: its chat template gives no answers")
    return Answer(start, end, content, calls)
