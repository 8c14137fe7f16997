"""The answers of `/v1/completions` (continuations of texts) and of `/v1/chat/completions` (the next message).

A `Reply` is made of a request. It says what engines are asked, makes the text of each answer out of its tokens, and has
the JSON of the answers, whole and as events of a stream.
"""

import math
import time
import uuid
from dataclasses import replace
from typing import Any

from tpullm.engine.request import Request, Token
from tpullm.serving.answer_text import AnswerText, Part, ToolText, joined, whole_calls
from tpullm.serving.refusal import Refusal
from tpullm.serving.request_models import SEEDS, Asked, ChatRequest, TextRequest, validated_request
from tpullm.serving.served_model import ServedModel
from tpullm.serving.token_masks import Mask, calls_grammar, schema_grammar


class Reply:
    """What both endpoints have in common. `kind` and `chunk_kind` are its `object`, whole and as a part of a stream.

    Each has `begin`, the choice that a stream begins with, if there is something to say, and `choice`, that of a whole
    answer or of a part of a stream.

    Args:
        client: who asks.
        prompts: the ids of each prompt.
        tokens: the most tokens of an answer.
        top: how many likely tokens are told with each one.

    Attributes:
        written: the number of tokens that engines have emitted.
        grammar: of the form that the answers must have, and the field that asks for it; empty if they have none.
        masks: `Request.allowed` of each answer; none allows all.
        echoes: how many tokens at the end of each prompt are emitted as well.
    """

    prefix, kind, chunk_kind = "", "", ""

    def __init__(
        self, model: ServedModel, asked: Asked, client: str, prompts: list[list[int]], tokens: int, top: int | None
    ):
        self.model, self.asked, self.prompts, self.written = model, asked, prompts, 0
        self.grammar = self.grammar_param = ""
        self.masks: list[Mask] = []
        self.echoes = [0] * len(prompts)
        self._client, self._tokens, self._top = client, tokens, top
        self._name, self._created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def make_masks(self, kept: bool) -> bool:
        """Make the masks of all answers: the form is compiled once, in up to some seconds.

        Args:
            kept: only if it is compiled already; else this returns False.
        """
        grammars = self.model.grammars
        mask = grammars.kept(self.grammar) if kept else grammars.mask(self.grammar, self.grammar_param)
        if mask is None:
            return False
        self.masks = [mask, *(mask.copy() for _ in range(self.asked.n - 1))]
        return True

    def requests(self) -> list[Request]:
        """One for each answer: all answers to the first prompt come first."""
        prompts = list(zip(self.prompts, self.echoes, strict=True))
        return [
            Request(
                ids=tuple(ids),
                tokens=self._tokens,
                sampling=self.asked.sampling,
                seed=(self.asked.seed + number) % SEEDS,
                stop_ids=tuple(self.model.tokenizer.stop_ids),
                top=self._top,
                bias=self.asked.logit_bias,
                presence_penalty=self.asked.presence_penalty,
                frequency_penalty=self.asked.frequency_penalty,
                echo=echo,
                allowed=self.masks[number] if self.masks else None,
                client=self._client,
            )
            for number, (ids, echo) in enumerate(each for each in prompts for _ in range(self.asked.n))
        ]

    def text(self, index: int) -> Any:
        """Makes the text of one answer: an object whose `add` gives the part that comes with a token."""
        return AnswerText(self.model.tokenizer, self.asked.stop, self.model.tokenizer.stop_ids)

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream. With `include_usage` each has the field; the last, without choices, the numbers."""
        usage = {"usage": None if choices else self._usage()} if self.asked.usage else {}
        return {**self._head(self.chunk_kind), "choices": choices, **usage}

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole answer."""
        return {**self._head(self.kind), "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        """The numbers of tokens; each prompt counts once."""
        prompt = sum(map(len, self.prompts))
        new = self.written - self.asked.n * sum(self.echoes)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._name, "object": kind, "created": self._created, "model": self.model.name}


class TextReply(Reply):
    """Continuations of texts; `Refusal` names the field of the request that is wrong."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: dict[str, Any], model: ServedModel, client: str):
        asked = validated_request(TextRequest, body, model.vocabulary_size)
        ids = [model.text_ids(text) if isinstance(text, str) else model.fitting(text) for text in asked.prompt]
        super().__init__(model, asked, client, ids, asked.max_tokens, asked.logprobs)
        begin, tells, self._first = model.tokenizer.begin, asked.tells_prompt, []
        if tells:
            begins = [len(begin) if one[: len(begin)] == begin else 0 for one in ids]
            # The first token of a text, if it follows nothing, has no probability, so that no engine emits it.
            self._first = [[] if length else one[:1] for one, length in zip(ids, begins, strict=True)]
            self.echoes = [len(one) - max(length, 1) for one, length in zip(ids, begins, strict=True)]
        # The answers begin with the prompts; if engines emit these, they come from there.
        prompts = asked.prompt if asked.echo and not tells else []
        self._echoed = [text if isinstance(text, str) else model.tokenizer.decode(text) for text in prompts]

    def text(self, index: int) -> Any:
        """Makes the text of one answer."""
        text = super().text(index)
        return ToldText(text, self._first[index // self.asked.n]) if self._first else text

    def begin(self, index: int) -> dict[str, Any] | None:
        """The prompt, if it is echoed."""
        return self.choice(index, Part(), True) if self._echoed else None

    def choice(self, index: int, part: Part, whole: bool) -> dict[str, Any]:
        """A choice of a whole answer, which begins with the prompt if it is echoed, or of a stream."""
        before = self._echoed[index // self.asked.n] if self._echoed and whole else ""
        shown = None if self.asked.logprobs is None else self._log_probabilities(part)
        return {"index": index, "text": before + part.text, "logprobs": shown, "finish_reason": part.ends or None}

    def _log_probabilities(self, part: Part) -> dict[str, Any]:
        tokens = [token for token, _ in part.tokens]
        top = [{self._text(one): log_probability(value) for one, value in token.top} or None for token in tokens]
        values = [token.log_probability for token in tokens]
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [None if math.isnan(value) else log_probability(value) for value in values],
            "top_logprobs": top if self._top else None,
            "text_offset": [place for _, place in part.tokens],
        }

    def _text(self, token: int) -> str:
        """The text of a token; of part of a character `bytes:\\xe7`, and of a special token its name."""
        held = self.model.tokenizer.bytes_of(token)
        try:
            return held.decode() or self.model.tokenizer.piece(token)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in held)


class ToldText:
    """Makes the text of a prompt and its continuation.

    The token that ends the text is told with the others, since it shows what else could have come after the prompt.

    Args:
        untold: the first token of the text, if it follows nothing, so that no engine emits it.
    """

    def __init__(self, text: AnswerText, untold: list[int]):
        self._text, self._untold, self._characters = text, untold, 0

    def add(self, token: Token) -> Part:
        """The part that comes with a token."""
        first, self._untold = [Token(one, math.nan) for one in self._untold], []
        part = joined([self._text.add(one) for one in [*first, token]])
        self._characters += len(part.text)
        return replace(part, tokens=(*part.tokens, (token, self._characters))) if part.ends == "stop" else part


class ChatReply(Reply):
    """The next messages of a conversation; `Refusal` names the field of the request that is wrong."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: dict[str, Any], model: ServedModel, client: str):
        if not (model.talks or model.tokenizer.has_template):
            raise Refusal(f"{model.name} has no chat template: it continues texts; use /v1/completions", param="model")
        asked = validated_request(ChatRequest, body, model.vocabulary_size)
        tools, must, schema = asked.shown_tools, asked.must_call, asked.response_format.schema_of_answer
        messages, self._left_out = [message.template_form() for message in asked.messages], 0
        tokens = asked.max_completion_tokens or asked.max_tokens or model.context_length
        if asked.truncation == "auto":
            ids, self._left_out = model.fitted_chat_ids(messages, tools or None, tokens)
        else:
            ids = model.chat_ids(messages, tools or None)
        super().__init__(model, asked, client, [ids], tokens, (asked.top_logprobs or 0) if asked.logprobs else None)
        self._may_call = bool(tools) and schema is None
        if self._may_call:
            functions = must or [tool["function"] for tool in tools]
            several, self._functions = asked.parallel_tool_calls, [function["name"] for function in functions]
            self.grammar = calls_grammar(model.calls, functions, several, bool(must), "tools")
            self.grammar_param = "tools"
        elif schema is not None:
            self.grammar_param, self.grammar = "response_format", schema_grammar(schema, "response_format")

    def text(self, index: int) -> Any:
        """Makes the text of one answer."""
        if not self._may_call:
            return super().text(index)
        tokenizer, calls = self.model.tokenizer, self.model.calls
        tools = ToolText(calls.form, self._functions, self.asked.parallel_tool_calls, calls.special)
        return AnswerText(tokenizer, self.asked.stop, tokenizer.stop_ids, tools)

    def _head(self, kind: str) -> dict[str, Any]:
        return super()._head(kind) | ({"turns_left_out": self._left_out} if self._left_out else {})

    def begin(self, index: int) -> dict[str, Any] | None:
        """Who speaks."""
        return self.choice(index, Part(), False) | {"delta": {"role": "assistant", "content": ""}}

    def choice(self, index: int, part: Part, whole: bool) -> dict[str, Any]:
        """A choice of a whole answer, or of a stream."""

        def named(token: int, value: float) -> dict[str, Any]:
            held = self.model.tokenizer.bytes_of(token)
            text = held.decode("utf-8", errors="replace") or self.model.tokenizer.piece(token)
            return {"token": text, "logprob": log_probability(value), "bytes": list(held) or None}

        said: dict[str, Any] = {"role": "assistant", "content": part.text, "refusal": None} if whole else {}
        if whole and part.calls:
            said |= {"content": part.text or None, "tool_calls": whole_calls(part.calls)}
        elif not whole:
            said |= {"content": part.text} if part.text or not (part.calls or part.ends) else {}
            said |= {"tool_calls": list(part.calls)} if part.calls else {}
        shown = None
        if self.asked.logprobs:
            content = [
                named(token.id, token.log_probability) | {"top_logprobs": [named(*one) for one in token.top]}
                for token, _ in part.tokens
            ]
            shown = {"content": content, "refusal": None}
        kind, ends = "message" if whole else "delta", part.ends or None
        return {"index": index, kind: said, "logprobs": shown, "finish_reason": ends}


def log_probability(value: float) -> float:
    """In nats, as JSON can hold it: it has no infinity, for tokens that cannot be."""
    return max(float(value), -9999.0)
