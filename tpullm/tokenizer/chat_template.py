"""Chat templates: Jinja programs that turn a conversation into text, run as transformers does.

A template is a foreign program, and some never end or fill the memory: `TemplateChild` runs it in a child with limits.
"""

import contextlib
import datetime
import functools
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited

# Stand around what a template marks as the assistant's. No text has these characters (Unicode noncharacters).
OPEN, CLOSE = "\ufdd0", "\ufdd1"


Message = dict[str, Any]  # `role`, `content`; an answer may have `tool_calls`
Messages = Sequence[Message]
Tools = list[dict[str, Any]] | None  # the functions that an answer may call, as JSON schemas
Weighted = tuple[list[int], list[float]]  # the ids of a conversation, and their weights


class EarlierAnswersChangeError(UserError):
    """The template shows an earlier answer differently from the last one (Qwen 3 omits earlier thoughts)."""


class Answer(NamedTuple):
    """Where an answer is in a text, and its properties.

    Args:
        start, end: places in the text.
        content: a part of what is said, which ends before the answer's end token; None if that is not known.
        calls: whether it calls functions. `content` is then the name of the last one.
    """

    start: int
    end: int
    content: str | None
    calls: bool = False


def without_old_turns(
    messages: Messages, tokens_of: Callable[[Messages], float], context: int, tokens: int
) -> tuple[Messages, int]:
    """The conversation without its oldest turns, as few as leave room for an answer; and how many are left out.

    A turn begins with a message of the user. What is before the first one stays, and the last turn does.

    Args:
        tokens_of: how many tokens the prompt of some messages has.
        context: tokens that the model reads at once.
        tokens: of the answer; room is made for these, but at most for half of the context.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not turns:
        return messages, 0
    most = context - min(tokens, context // 2)

    def kept(left_out: int) -> Messages:
        return [*messages[: turns[0]], *messages[turns[left_out] :]]

    left_out = bisect_left(range(len(turns) - 1), True, key=lambda number: tokens_of(kept(number)) <= most)
    return kept(left_out), left_out


_REPLY = TypeAdapter(tuple[str, list[Answer], str])  # of the child


class ChatTemplate:
    """A model's own chat template.

    Args:
        source: the Jinja program.
        tokens: the variables of special tokens, such as `bos_token`.
        where: the beginning of error messages.
    """

    def __init__(self, source: str, tokens: dict[str, str], where: str):
        self._source, self._tokens, self._where = source, tokens, where

    def show(self, what: str, messages: Messages, tools: Tools = None) -> tuple[str, list[Answer]]:
        """A conversation as text, and where in it the answers are.

        The template marks the answers (`{% generation %}`), or an answer is what the template adds to the conversation
        before it.

        Args:
            what: `answers`, all of them; `last`, that of the last message; or `prompt`, none: the text ends where the
                model answers.

        Raises:
            EarlierAnswersChangeError: the template shows an earlier answer differently from the last one.
            UserError: the template refuses the messages, or leaves the tools out, or the answers can't be found.
        """
        is_prompt = what == "prompt"
        text = self._render(messages, tools, is_prompt)
        self._refuse_hidden(messages, tools, is_prompt, text)
        if is_prompt:
            answers = []
        elif OPEN in text:
            answers = _answers_between_marks(text)
        else:
            first = len(messages) - 1 if what == "last" else 0
            numbers = [number for number in range(first, len(messages)) if messages[number]["role"] == "assistant"]
            answers = [self._added(messages, tools, number, text) for number in numbers]
        return text.replace(OPEN, "").replace(CLOSE, ""), answers[-1:] if what == "last" else answers

    def _refuse_hidden(self, messages: Messages, tools: Tools, add_generation_prompt: bool, text: str) -> None:
        """Refuse a template that leaves out tools, calls or their results: `text` is then the same without them."""
        messages = list(messages)
        no_calls = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        no_results = [message for message in messages if message["role"] != "tool"]
        for what, fewer, other in (
            ("tools", messages, None),
            ("tool_calls", no_calls, tools),
            ("messages of the role `tool`", no_results, tools),
        ):
            same = None
            if (fewer, other) != (messages, tools):
                with contextlib.suppress(UserError):  # the template may refuse these
                    same = self._render(fewer, other, add_generation_prompt)
            if same == text:
                raise self._leaves_out(what)

    def _leaves_out(self, what: str) -> UserError:
        advice = "take them out of the examples, or give a template that shows them"
        return UserError(f"{self._where}: its chat template leaves out {what}; {advice}")

    def _added(self, messages: Messages, tools: Tools, number: int, text: str) -> Answer:
        """Where in `text` the answer `messages[number]` is: what it adds to the messages before it."""
        before = self._render(messages[:number], tools, True)
        whole = self._render(messages[: number + 1], tools, False)
        if not (whole.startswith(before) and text.startswith(whole)):
            raise EarlierAnswersChangeError(
                f"{self._where}: its chat template changes a conversation as it grows, so the answers can't be told "
                "from the rest; give one with {% generation %} marks, with finetune.NAME.chat_template"
            )
        added, calls = whole[len(before) :].lstrip(), messages[number].get("tool_calls")
        content = "" if calls else messages[number]["content"].strip()
        if any(call["function"]["name"] not in added for call in calls or ()):
            raise self._leaves_out("tool_calls")
        if before == self._render(messages[:number], tools, False) and not added.startswith(content):
            raise UserError(
                f"{self._where}: its chat template begins an answer with {added[:20]!r} and leaves that out when it "
                "asks for one (add_generation_prompt); give one that shows it, with finetune.NAME.chat_template"
            )
        content = calls[-1]["function"]["name"] if calls else content
        return Answer(len(before), len(whole), content, bool(calls))

    def _render(self, messages: Messages, tools: Tools, add_generation_prompt: bool) -> str:
        given = {"tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt, **self._tokens}
        as_text = [_with_call_arguments_as_text(message) for message in messages]
        for said in [list(messages), *([as_text] if as_text != list(messages) else [])]:
            try:
                return compiled(self._source).render(messages=said, **given)
            except MemoryError:  # which the limits tell
                raise
            except Exception as error:  # a foreign program may raise anything
                why = str(error)
        raise UserError(f"{self._where}: its chat template can't show these messages ({why})")


def _with_call_arguments_as_text(message: Message) -> Message:
    """A message whose calls have their arguments as text, which some templates append to text (DeepSeek)."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        text = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append(call | {"function": call["function"] | {"arguments": text}})
    return message | {"tool_calls": calls}


def _answers_between_marks(text: str) -> list[Answer]:
    """The answers between the marks of `text`. Places count characters without the marks."""
    spans, place, start = [], 0, 0
    for character in text:
        if character == OPEN:
            start = place
        elif character == CLOSE:
            spans.append(Answer(start, place, None))
        else:
            place += 1
    return spans


@functools.lru_cache(maxsize=8)
def compiled(template: str):
    """A compiled template, with the functions that transformers gives to templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: marks an answer."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller):
            return OPEN + caller() + CLOSE

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return sandbox.from_string(template)


class TemplateChild:
    """A `ChatTemplate` in a child process, with the same arguments and the same method."""

    def __init__(self, source: str, tokens: dict[str, str], where: str):
        self._program, self._where, self._child = (source, tokens, where), where, Limited()

    def show(self, what: str, messages: Messages, tools: Tools = None) -> tuple[str, list[Answer]]:
        """What `ChatTemplate.show` returns; it raises what that raises."""
        called = (f"{__name__}:shown", what, *self._program, list(messages), tools)
        reply = self._child.call(f"{self._where}: its chat template", *called)
        try:  # the child may have been taken over
            text, answers, changes = _REPLY.validate_python(reply)
        except ValidationError:
            raise UserError(f"{self._where}: its chat template gives no text") from None
        if changes:
            raise EarlierAnswersChangeError(changes)
        if not all(0 <= answer.start <= answer.end <= len(text) for answer in answers):
            raise UserError(f"{self._where}: its chat template gives no answers")
        return text, answers


def shown(what: str, source: str, tokens: dict, where: str, messages: list, tools: Tools) -> list:
    """In the child: the text, the answers in it, and the message of an `EarlierAnswersChangeError`, if any."""
    try:
        return [*ChatTemplate(source, tokens, where).show(what, messages, tools), ""]
    except EarlierAnswersChangeError as error:
        return ["", [], str(error)]
