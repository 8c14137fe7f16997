"""`/v1/chat/completions`: the next message of a conversation."""

from typing import Any

from tpullm.inference.request import Token
from tpullm.serving import asked
from tpullm.serving.answer_text import AnswerText, Part
from tpullm.serving.chat_messages import read_choice, read_messages, read_tools
from tpullm.serving.refusal import Refusal
from tpullm.serving.reply_form import Text, Work, log_probability
from tpullm.serving.request_fields import HARMLESS, Fields
from tpullm.serving.served_model import ServedModel
from tpullm.serving.token_masks import Mask
from tpullm.serving.tool_calls import OPEN, ToolText, whole_calls


def read(fields: Fields, model: ServedModel, client: str) -> "ChatReply":
    """The form of the answer to a request; `Refusal` names the field that is wrong."""
    if not (model.talks or model.tokenizer.has_template):
        raise Refusal(f"{model.name} has no chat template: it continues texts; use /v1/completions", param="model")
    common = asked.read(fields, model.vocabulary_size)
    tokens = [fields.whole(name, 1, 1 << 30) for name in ("max_completion_tokens", "max_tokens")]
    shows, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, asked.MOST_TOP)
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
