"""`/v1/completions`: continuations of texts."""

import math
from dataclasses import replace
from typing import Any

from tpullm.inference.request import Token
from tpullm.serving import asked
from tpullm.serving.answer_text import AnswerText, Part, joined
from tpullm.serving.refusal import Refusal
from tpullm.serving.reply_form import Text, Work, log_probability
from tpullm.serving.request_fields import HARMLESS, Fields
from tpullm.serving.served_model import ServedModel

TOKENS = 16  # as OpenAI's
MOST_PROMPTS = 128


def read(fields: Fields, model: ServedModel, client: str) -> "CompletionReply":
    """The form of the answer to a request; `Refusal` names the field that is wrong."""
    common = asked.read(fields, model.vocabulary_size)
    best = fields.whole("best_of", 1, asked.MOST_CHOICES)
    if best not in (None, common.choices):
        raise fields.wrong("best_of", "is not supported by this server; leave it out, or use n")
    fields.unsupported("suffix", ("",), "is not supported by this server; leave it out")
    tokens = fields.whole("max_tokens", 1, 1 << 30, TOKENS)
    echo, top = fields.flag("echo"), fields.whole("logprobs", 0, asked.MOST_TOP)
    told = echo and top is not None
    if told and common.stops:
        raise fields.wrong("stop", "is not supported with echo and logprobs; leave it out")
    prompts = _prompts(fields, model)
    fields.end(HARMLESS)
    if len(prompts) * common.choices > asked.MOST_CHOICES:
        raise fields.wrong("prompt", f"times n is more than {asked.MOST_CHOICES} answers; send several requests")
    as_given = prompts if echo and not told else []
    echoed = [text if isinstance(text, str) else model.tokenizer.decode(text) for text in as_given]
    ids = [model.text_ids(text) if isinstance(text, str) else model.fitting(text) for text in prompts]
    return CompletionReply(Work(model, common, ids, tokens, top or 0, client=client, told=told), top, echoed)


def _prompts(fields: Fields, model: ServedModel) -> list[str | list[int]]:
    """The prompts: a text, texts, ids, or lists of ids."""
    given = fields.needed("prompt", (str, list), "a text, a list of texts, or lists of token ids")
    if isinstance(given, str):
        return [given]
    prompts = [given] if given and all(_is_id(item, model) for item in given) else given
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise fields.wrong("prompt", f"has {len(prompts)} prompts; give 1 to {MOST_PROMPTS}")
    for item in prompts:
        ids = isinstance(item, list) and item and all(_is_id(token, model) for token in item)
        if not (isinstance(item, str) or ids):
            raise Refusal(
                "prompt: is not a text, a list of texts, or lists of token ids "
                f"(0 to {model.vocabulary_size - 1}); correct it",
                param="prompt",
            )
    return prompts


def _is_id(item: Any, model: ServedModel) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < model.vocabulary_size


class CompletionReply:
    """The form of continuations.

    Args:
        top: how many likely tokens are shown; None shows no log-probabilities.
        echoed: the prompts, if the answers begin with them and engines don't tell them.
    """

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, work: Work, top: int | None, echoed: list[str]):
        self.work, self._top, self._echoed = work, top, echoed

    def text(self, index: int) -> Text:
        """Makes the text of one answer."""
        tokenizer = self.work.model.tokenizer
        text = AnswerText(tokenizer, self.work.asked.stops, tuple(tokenizer.stop_ids))
        return ToldText(text, self.work.untold(index)) if self.work.told else text

    def begin(self, index: int) -> dict[str, Any] | None:
        """The prompt, if it is echoed."""
        return self.delta(index, Part(self._before(index))) if self._echoed else None

    def delta(self, index: int, part: Part) -> dict[str, Any]:
        """A choice of a stream."""
        return {
            "index": index,
            "text": part.text,
            "logprobs": None if self._top is None else self._log_probabilities(part),
            "finish_reason": part.ends or None,
        }

    def choice(self, index: int, whole: Part) -> dict[str, Any]:
        """A choice of a whole answer."""
        found = self.delta(index, whole)
        return found | {"text": self._before(index) + found["text"]}

    def _before(self, index: int) -> str:
        return self._echoed[index // self.work.asked.choices] if self._echoed else ""

    def _log_probabilities(self, part: Part) -> dict[str, Any]:
        top = [
            {self._name(token): log_probability(value) for token, value in told.top[: self._top]} or None
            for told, _ in part.tokens
        ]
        return {
            "tokens": [self._name(token.id) for token, _ in part.tokens],
            "token_logprobs": [_known(token.log_probability) for token, _ in part.tokens],
            "top_logprobs": top if self._top else None,
            "text_offset": [place for _, place in part.tokens],
        }

    def _name(self, token: int) -> str:
        """The text of a token; of part of a character `bytes:\\xe7`, and of a special token its name."""
        tokenizer = self.work.model.tokenizer
        held = tokenizer.bytes_of(token)
        try:
            return held.decode() or tokenizer.piece(token)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in held)


class ToldText:
    """Makes the text of a prompt and its continuation. The first token may be one that no engine tells.

    The token that ends the text is told with the others, since it shows what else could have come after the prompt.
    """

    def __init__(self, text: AnswerText, untold: list[int]):
        self._text, self._untold, self._characters = text, untold, 0

    def add(self, token: Token) -> Part:
        """The part that comes with a token."""
        first, self._untold = [Token(one, math.nan) for one in self._untold], []
        part = joined([self._text.add(one) for one in [*first, token]])
        self._characters += len(part.text)
        return replace(part, tokens=(*part.tokens, (token, self._characters))) if part.ends == "stop" else part


def _known(value: float) -> float | None:
    return None if math.isnan(value) else log_probability(value)
