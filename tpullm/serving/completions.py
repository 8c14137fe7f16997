"""The answers of `/v1/completions` (continuations of texts) and of `/v1/chat/completions` (the next message)."""

import math
from dataclasses import replace
from typing import Any

from tpullm.engine.request import Token
from tpullm.serving.answer_text import OPEN, AnswerText, Part, ToolText, joined, whole_calls
from tpullm.serving.answer_writing import Text, Work, log_probability
from tpullm.serving.refusal import Refusal
from tpullm.serving.request_models import ChatRequest, TextRequest, validated
from tpullm.serving.served_model import ServedModel


def read_text(body: dict[str, Any], model: ServedModel, client: str) -> "CompletionReply":
    """The form of the answer to a request; `Refusal` names the field that is wrong."""
    asked = validated(TextRequest, body, model.vocabulary_size)
    ids = [model.text_ids(text) if isinstance(text, str) else model.fitting(text) for text in asked.prompt]
    work = Work(model, asked, ids, asked.max_tokens, asked.logprobs or 0, client=client, told=asked.tells_prompt)
    return CompletionReply(work)


class CompletionReply:
    """The form of continuations."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, work: Work):
        self.work, asked, decode = work, work.asked, work.model.tokenizer.decode
        self._top = asked.logprobs  # None shows no log-probabilities
        # The answers begin with the prompts; if engines tell these, they come from there.
        prompts = asked.prompt if asked.echo and not work.told else []
        self._echoed = [text if isinstance(text, str) else decode(text) for text in prompts]

    def text(self, index: int) -> Text:
        """Makes the text of one answer."""
        tokenizer = self.work.model.tokenizer
        text = AnswerText(tokenizer, tuple(self.work.asked.stop), tuple(tokenizer.stop_ids))
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
        return self._echoed[index // self.work.asked.n] if self._echoed else ""

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


def read_chat(body: dict[str, Any], model: ServedModel, client: str) -> "ChatReply":
    """The form of the answer to a request; `Refusal` names the field that is wrong."""
    if not (model.talks or model.tokenizer.has_template):
        raise Refusal(f"{model.name} has no chat template: it continues texts; use /v1/completions", param="model")
    asked = validated(ChatRequest, body, model.vocabulary_size)
    if asked.shown_tools and OPEN not in (getattr(model.tokenizer, "template", None) or ""):
        raise Refusal(
            f"tools: the chat template of {model.name} has no {OPEN}, and no other form of calls is known; "
            "leave tools out",
            param="tools",
        )
    ids = model.chat_ids([message.template_form() for message in asked.messages], asked.shown_tools or None)
    masks, schema = [], asked.response_format.schema_of_answer
    if asked.must_call:
        masks = [model.grammars.of_calls(asked.must_call, asked.parallel_tool_calls, "tools") for _ in range(asked.n)]
    elif schema is not None:
        masks = [model.grammars.of_schema(schema, "response_format") for _ in range(asked.n)]
    tokens = asked.max_completion_tokens or asked.max_tokens or model.context_length
    return ChatReply(Work(model, asked, [ids], tokens, asked.top_logprobs or 0, masks, client))


class ChatReply:
    """The form of messages."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, work: Work):
        self.work, self._shows, self._calls = work, work.asked.logprobs, bool(work.asked.shown_tools)

    def text(self, index: int) -> Text:
        """Makes the text of one answer."""
        tokenizer = self.work.model.tokenizer
        text = AnswerText(tokenizer, tuple(self.work.asked.stop), tuple(tokenizer.stop_ids))
        return ToolText(text, self.work.asked.parallel_tool_calls) if self._calls else text

    def begin(self, index: int) -> dict[str, Any] | None:
        """Who speaks."""
        return self._choice(index, {"delta": {"role": "assistant", "content": ""}}, Part())

    def delta(self, index: int, part: Part) -> dict[str, Any]:
        """A choice of a stream."""
        delta: dict[str, Any] = {"content": part.text} if part.text or not (part.calls or part.ends) else {}
        if part.calls:
            delta["tool_calls"] = list(part.calls)
        return self._choice(index, {"delta": delta}, part)

    def choice(self, index: int, whole: Part) -> dict[str, Any]:
        """A choice of a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message |= {"content": whole.text or None, "tool_calls": whole_calls(whole.calls)}
        return self._choice(index, {"message": message}, whole)

    def _choice(self, index: int, said: dict[str, Any], part: Part) -> dict[str, Any]:
        shown = {"content": [self._shown(token) for token, _ in part.tokens], "refusal": None} if self._shows else None
        return {"index": index, **said, "logprobs": shown, "finish_reason": part.ends or None}

    def _shown(self, token: Token) -> dict[str, Any]:
        top = [self._named(one, value) for one, value in token.top]
        return self._named(token.id, token.log_probability) | {"top_logprobs": top}

    def _named(self, token: int, value: float) -> dict[str, Any]:
        tokenizer = self.work.model.tokenizer
        held = tokenizer.bytes_of(token)
        text = held.decode("utf-8", errors="replace") or tokenizer.piece(token)
        return {"token": text, "logprob": log_probability(value), "bytes": list(held) or None}
