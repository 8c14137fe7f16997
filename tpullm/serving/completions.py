"""`/v1/chat/completions`: the next message of a conversation.

`/v1/completions`: continuations of texts.
"""

import math
from dataclasses import replace
from typing import Any

from tpullm.engine.request import Token
from tpullm.serving import request_fields
from tpullm.serving.answer_text import OPEN, AnswerText, Part, ToolText, joined, whole_calls
from tpullm.serving.chat_messages import read_choice, read_messages, read_tools
from tpullm.serving.refusal import Refusal
from tpullm.serving.reply_form import Text, Work, log_probability
from tpullm.serving.request_fields import HARMLESS, Fields
from tpullm.serving.served_model import ServedModel
from tpullm.serving.token_masks import Mask

TOKENS = 16  # as OpenAI's
MOST_PROMPTS = 128


def read_text(fields: Fields, model: ServedModel, client: str) -> "CompletionReply":
    """The form of the answer to a request; `Refusal` names the field that is wrong."""
    common = request_fields.read(fields, model.vocabulary_size)
    best = fields.whole("best_of", 1, request_fields.MOST_CHOICES)
    if best not in (None, common.choices):
        raise fields.wrong("best_of", "is not supported by this server; leave it out, or use n")
    fields.unsupported("suffix", ("",), "is not supported by this server; leave it out")
    tokens = fields.whole("max_tokens", 1, 1 << 30, TOKENS)
    echo, top = fields.flag("echo"), fields.whole("logprobs", 0, request_fields.MOST_TOP)
    told = echo and top is not None
    if told and common.stops:
        raise fields.wrong("stop", "is not supported with echo and logprobs; leave it out")
    prompts = _prompts(fields, model)
    fields.end(HARMLESS)
    if len(prompts) * common.choices > request_fields.MOST_CHOICES:
        raise fields.wrong(
            "prompt", f"times n is more than {request_fields.MOST_CHOICES} answers; send several requests"
        )
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


def read_chat(fields: Fields, model: ServedModel, client: str) -> "ChatReply":
    """The form of the answer to a request; `Refusal` names the field that is wrong."""
    if not (model.talks or model.tokenizer.has_template):
        raise Refusal(f"{model.name} has no chat template: it continues texts; use /v1/completions", param="model")
    common = request_fields.read(fields, model.vocabulary_size)
    tokens = [fields.whole(name, 1, 1 << 30) for name in ("max_completion_tokens", "max_tokens")]
    shows, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, request_fields.MOST_TOP)
    if top is not None and not shows:
        raise fields.wrong("top_logprobs", "needs logprobs: true")
    fields.unsupported("modalities", (["text"],), "is not [text], and this server answers in text")
    fields.unsupported("functions", ([],), "is not supported any more; use tools")
    fields.unsupported("function_call", ("none", "auto"), "is not supported any more; use tool_choice")
    messages, tools = read_messages(fields), read_tools(fields)
    tools, must = read_choice(fields, tools)
    several = fields.flag("parallel_tool_calls", True)
    schema = _schema(fields)
    fields.end(HARMLESS)
    _check_tools(model, tools, must, schema)
    ids = model.chat_ids(messages, tools or None)
    masks = [_mask(model, schema, must, several) for _ in range(common.choices)] if must or schema is not None else []
    tokens = next((count for count in tokens if count), model.context_length)
    work = Work(model, common, [ids], tokens, top or 0, masks, client)
    return ChatReply(work, shows, bool(tools), several)


def _schema(fields: Fields) -> dict[str, Any] | None:
    """Take `response_format`: the JSON schema that the answer must satisfy, if any."""
    form = fields.part("response_format")
    kind = form.take("type", str, "text, json_object or json_schema", "text")
    described = form.part("json_schema")
    form.end()
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise form.wrong("type", f"{kind[:40]!r} is not text, json_object or json_schema")
    described.take("name", str, "a text")
    described.take("description", str, "a text")
    described.flag("strict")
    schema = described.needed("schema", dict, "a JSON schema")
    described.end()
    return schema


def _check_tools(model: ServedModel, tools: list, must: list, schema: dict[str, Any] | None) -> None:
    """Refuse tools of a model whose calls can't be told from its text."""
    if tools and OPEN not in (getattr(model.tokenizer, "template", None) or ""):
        raise Refusal(
            f"tools: the chat template of {model.name} has no {OPEN}, and no other form of calls is known; "
            "leave tools out",
            param="tools",
        )
    if must and schema is not None:
        raise Refusal("tool_choice: asks for a call, and response_format for JSON; leave one of them out")


def _mask(model: ServedModel, schema: dict[str, Any] | None, must: list[dict[str, Any]], several: bool) -> Mask:
    if must:
        return model.grammars.of_calls(must, several, "tools")
    return model.grammars.of_schema(schema, "response_format")


class ChatReply:
    """The form of messages.

    Args:
        shows: whether log-probabilities are shown.
        calls: whether there are tools.
        several: whether there may be several calls.
    """

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, work: Work, shows: bool, calls: bool, several: bool):
        self.work, self._shows, self._calls, self._several = work, shows, calls, several

    def text(self, index: int) -> Text:
        """Makes the text of one answer."""
        tokenizer = self.work.model.tokenizer
        text = AnswerText(tokenizer, self.work.asked.stops, tuple(tokenizer.stop_ids))
        return ToolText(text, self._several) if self._calls else text

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
