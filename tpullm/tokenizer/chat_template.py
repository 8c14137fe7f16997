"""Chat templates: Jinja programs that turn a conversation into text, run as transformers does."""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

from tpullm.errors import UserError

# Stand around what a template marks as the assistant's. No text has these characters (Unicode noncharacters).
OPEN, CLOSE = "\ufdd0", "\ufdd1"


Messages = Sequence[dict[str, str]]


class EarlierAnswersChangeError(UserError):
    """The template shows an earlier answer otherwise than the last one (Qwen 3 leaves earlier thoughts out)."""


class Answer(NamedTuple):
    """Where in a text an answer is, and its content if that is known."""

    start: int
    end: int
    content: str | None


class ChatTemplate:
    """A model's own chat template.

    Args:
        source: the Jinja program.
        tokens: the variables of special tokens, such as `bos_token`.
        where: the beginning of error messages.
    """

    def __init__(self, source: str, tokens: dict[str, str], where: str):
        self._source, self._tokens, self._where = source, tokens, where

    def prompt(self, messages: Messages) -> str:
        """A conversation as text, up to the place where the model answers."""
        return self._render(messages, True).replace(OPEN, "").replace(CLOSE, "")

    def shown(self, messages: Messages) -> tuple[str, list[Answer]]:
        """A conversation as text, and where in it the answers are.

        The template marks the answers (`{% generation %}`), or an answer is what the template adds to the conversation
        before it.

        Raises:
            EarlierAnswersChangeError: the template shows an earlier answer otherwise than the last one.
            UserError: the template refuses the messages, or the answers can't be found.
        """
        text = self._render(messages, False)
        if OPEN in text:
            return text.replace(OPEN, "").replace(CLOSE, ""), _marked(text)
        return text, [self._added(messages, n, text) for n, said in enumerate(messages) if said["role"] == "assistant"]

    def last(self, messages: Messages) -> tuple[str, list[Answer]]:
        """The same for the last answer alone; the last message is the assistant's."""
        text = self._render(messages, False)
        return text, [self._added(messages, len(messages) - 1, text)]

    def _added(self, messages: Messages, number: int, text: str) -> Answer:
        """Where in `text` the answer `messages[number]` is: what it adds to the messages before it."""
        before = self._render(messages[:number], True)
        whole = self._render(messages[: number + 1], False)
        if not (whole.startswith(before) and text.startswith(whole)):
            raise EarlierAnswersChangeError(
                f"{self._where}: its chat template changes a conversation as it grows, so the answers can't be told "
                "from the rest; give one with {% generation %} marks, with finetune.NAME.chat_template"
            )
        added, content = whole[len(before) :].lstrip(), messages[number]["content"].strip()
        if before == self._render(messages[:number], False) and not added.startswith(content):
            raise UserError(
                f"{self._where}: its chat template begins an answer with {added[:20]!r} and leaves that out when it "
                "asks for one (add_generation_prompt); give one that shows it, with finetune.NAME.chat_template"
            )
        return Answer(len(before), len(whole), content)

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        given = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return compiled(self._source).render(**given, tools=None, documents=None, **self._tokens)
        except MemoryError:  # which the limits tell
            raise
        except Exception as error:  # a foreign program may raise anything
            raise UserError(f"{self._where}: its chat template can't show these messages ({error})") from None


def _marked(text: str) -> list[Answer]:
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

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment.from_string(template)
