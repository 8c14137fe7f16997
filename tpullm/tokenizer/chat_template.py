"""Chat templates: Jinja programs that turn a conversation into text, run as transformers runs them."""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

from tpullm.errors import UserError

# Put around what a template marks as the assistant's; characters that are in no text (Unicode noncharacters).
OPEN, CLOSE = "\ufdd0", "\ufdd1"


Messages = Sequence[dict[str, str]]


class ChangesError(UserError):
    """A template that shows earlier answers otherwise than when they were given (Qwen 3 leaves their thoughts out)."""


class Answer(NamedTuple):
    """Where in a text the assistant speaks, and what it says, if that is known."""

    start: int
    end: int
    content: str | None


class ChatTemplate:
    """A model's own chat template.

    Args:
        source: the Jinja program.
        tokens: names that it may use: `bos_token` and the like.
        where: what an error begins with.
    """

    def __init__(self, source: str, tokens: dict[str, str], where: str):
        self._source, self._tokens, self._where = source, tokens, where

    def prompt(self, messages: Messages) -> str:
        """A conversation as text, up to where the model answers."""
        return self._render(messages, True).replace(OPEN, "").replace(CLOSE, "")

    def shown(self, messages: Messages) -> tuple[str, list[Answer]]:
        """A conversation as text, and where in it the assistant speaks.

        That is marked in the template (`{% generation %}`), or it is what the template adds to the conversation before.

        Raises:
            ChangesError: earlier answers are shown otherwise than when they were given.
            UserError: the template refuses the messages, or doesn't let the answers be found.
        """
        text = self._render(messages, False)
        if OPEN in text:
            return text.replace(OPEN, "").replace(CLOSE, ""), _marked(text)
        return text, [self._added(messages, n, text) for n, said in enumerate(messages) if said["role"] == "assistant"]

    def last(self, messages: Messages) -> tuple[str, list[Answer]]:
        """The same, of the last message alone, which is the assistant's."""
        text = self._render(messages, False).replace(OPEN, "").replace(CLOSE, "")
        return text, [self._added(messages, len(messages) - 1, text)]

    def _added(self, messages: Messages, number: int, text: str) -> Answer:
        """Where in `text` the answer `messages[number]` is, by what it adds to those before it."""
        before = self._render(messages[:number], True)
        whole = self._render(messages[: number + 1], False)
        if not (whole.startswith(before) and text.startswith(whole)):
            raise ChangesError(
                f"{self._where}: its chat template changes a conversation as it grows, so the answers can't be told "
                "from the rest; give one with {% generation %} marks, with finetune.chat_template"
            )
        added, content = whole[len(before) :].lstrip(), messages[number]["content"].strip()
        if before == self._render(messages[:number], False) and not added.startswith(content):
            raise UserError(
                f"{self._where}: its chat template begins an answer with {added[:20]!r} and leaves that out when it "
                "asks for one (add_generation_prompt); give one that shows it, with finetune.chat_template"
            )
        return Answer(len(before), len(whole), content)

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        given = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return compiled(self._source).render(**given, tools=None, documents=None, **self._tokens)
        except Exception as error:  # a program of somebody else's
            raise UserError(f"{self._where}: its chat template can't show these messages ({error})") from None


def _marked(text: str) -> list[Answer]:
    """Where the assistant speaks, by the marks; places count in the text without them."""
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
    """A template with what transformers gives to templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: what the assistant says."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller):
            return OPEN + caller() + CLOSE

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment.from_string(template)
