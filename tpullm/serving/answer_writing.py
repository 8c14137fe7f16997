"""The answers to one request: what engines are asked, and how a client hears of what they write, whole or as events.

`Work` is the question to the engines, `Reply` the form of completions or of chat, `Envelope` what stands around both,
`Writing` the answers while they are written.
"""

import asyncio
import collections
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tpullm.engine.request import Request, Token
from tpullm.serving.answer_text import Part, joined
from tpullm.serving.refusal import Refusal
from tpullm.serving.request_models import SEEDS, Asked
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import Stepping
from tpullm.serving.token_masks import Mask
from tpullm.system.errors import UserError

LEAST_LOG_PROBABILITY = -9999.0  # nats, for tokens that cannot be: JSON has no infinity
STOPPING = "the server is stopping; ask again when it is back"


class Text(Protocol):
    """Makes the parts of an answer out of its tokens."""

    def add(self, token: Token) -> Part:
        """The part that comes with a token."""


@dataclass(frozen=True)
class Work:
    """What engines do for a request.

    Args:
        model: that answers.
        asked: how.
        prompts: the ids of each prompt.
        tokens: the most tokens of an answer.
        top: how many likely tokens are told with each one.
        masks: makes `Request.allowed`, which each answer has for itself; None allows all.
        told: whether the tokens of the prompt are told as well.
        client: who asks.
    """

    model: ServedModel
    asked: Asked
    prompts: Sequence[list[int]]
    tokens: int
    top: int = 0
    masks: Sequence[Mask] = ()
    client: str = ""
    told: bool = False

    def requests(self) -> list[Request]:
        """One for each answer: all answers to the first prompt come first."""
        prompts = [ids for ids in self.prompts for _ in range(self.asked.n)]
        return [
            Request(
                ids=tuple(ids),
                tokens=self.tokens,
                sampling=self.asked.sampling,
                seed=(self.asked.seed + number) % SEEDS,
                stop_ids=tuple(self.model.tokenizer.stop_ids),
                top=self.top,
                bias=self.asked.logit_bias,
                presence_penalty=self.asked.presence_penalty,
                frequency_penalty=self.asked.frequency_penalty,
                told=len(ids) - self._untold(ids),
                allowed=self.masks[number] if self.masks else None,
                client=self.client,
            )
            for number, ids in enumerate(prompts)
        ]

    def tokens_told(self) -> int:
        """The number of tokens of the prompts that engines tell, for all answers."""
        return self.asked.n * sum(len(ids) - self._untold(ids) for ids in self.prompts)

    def untold(self, index: int) -> list[int]:
        """The first token of the text of an answer if it follows nothing, so that no engine tells it."""
        ids = self.prompts[index // self.asked.n]
        return [] if self._begins(ids) else ids[: self._untold(ids)]

    def _untold(self, ids: list[int]) -> int:
        """The number of tokens of a prompt that engines don't tell."""
        if not self.told:
            return len(ids)
        return len(self.model.tokenizer.begin) if self._begins(ids) else 1

    def _begins(self, ids: list[int]) -> bool:
        begin = self.model.tokenizer.begin
        return bool(begin) and ids[: len(begin)] == begin


class Reply(Protocol):
    """The form of an answer. `kind` and `chunk_kind` are its `object`, whole and as a part of a stream."""

    work: Work
    prefix: str
    kind: str
    chunk_kind: str

    def text(self, index: int) -> Text:
        """Makes the text of one answer."""

    def begin(self, index: int) -> dict[str, Any] | None:
        """The choice that a stream begins with; None if there is nothing to say."""

    def delta(self, index: int, part: Part) -> dict[str, Any]:
        """A choice of a stream."""

    def choice(self, index: int, whole: Part) -> dict[str, Any]:
        """A choice of a whole answer."""


@dataclass
class Envelope:
    """What stands around the choices.

    Attributes:
        written: the number of tokens that engines have told.
    """

    reply: Reply
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    written: int = 0

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An event of a stream. With `include_usage` each has the field; the last, without choices, the numbers."""
        usage = {"usage": None if choices else self.usage()} if self.reply.work.asked.usage else {}
        return {**self._head(self.reply.chunk_kind), "choices": choices, **usage}

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole answer."""
        return {**self._head(self.reply.kind), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """The numbers of tokens; each prompt counts once."""
        prompt = sum(map(len, self.reply.work.prompts))
        new = self.written - self.reply.work.tokens_told()
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.reply.work.model.name
        return {"id": f"{self.reply.prefix}-{self.name}", "object": kind, "created": self.created, "model": model}


def log_probability(value: float) -> float:
    """As JSON can hold it."""
    return max(float(value), LEAST_LOG_PROBABILITY)


class Post:
    """Brings what engines tell to the event loop, with one call for all that is told before the loop comes to it.

    It is made in the thread of the loop.
    """

    def __init__(self):
        self._loop, self._waiting = asyncio.get_running_loop(), collections.deque()

    def put(self, queue: asyncio.Queue, item: Any) -> None:
        """Put something into a queue, from any thread."""
        self._waiting.append((queue, item))
        if len(self._waiting) == 1:
            with contextlib.suppress(RuntimeError):  # the server ends, the loop is closed, and nobody listens
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._waiting:
            queue, item = self._waiting.popleft()
            queue.put_nowait(item)


class Writing:
    """Asks an engine for all answers to a request, in the thread of the event loop.

    Raises:
        Refusal: the engine does not take a prompt.
    """

    def __init__(self, stepping: Stepping, reply: Reply, post: Post):
        self._stepping, self._reply, self._numbers = stepping, reply, []
        self._post, self._heard = post, asyncio.Queue()
        self.envelope = Envelope(reply)
        try:
            for index, request in enumerate(reply.work.requests()):
                self._numbers.append(stepping.submit(reply.work.model.name, request, partial(self._hear, index)))
        except UserError as error:
            self.close()
            raise Refusal(str(error), param="prompt") from None

    def _hear(self, index: int, token: Token | None) -> None:
        """In the thread that steps."""
        self._post.put(self._heard, (index, token))

    def stop(self) -> None:
        """The server stops: the client is told so."""
        self._heard.put_nowait((0, None))

    def close(self) -> None:
        """Nobody listens any more. Of answers that have ended, nothing."""
        for number in self._numbers:
            self._stepping.cancel(self._reply.work.model.name, number)

    async def parts(self) -> AsyncIterator[tuple[int, Part]]:
        """The parts of the answers, as they come, with the number of the answer.

        Raises:
            Refusal: the server stops.
        """
        texts = {index: self._reply.text(index) for index in range(len(self._numbers))}
        while texts:
            index, token = await self._heard.get()
            if token is None:
                raise Refusal(STOPPING, status=503)
            if index not in texts:  # written after a stop text
                continue
            self.envelope.written += 1
            part = texts[index].add(token)
            if part.ends:
                del texts[index]
                self._stepping.cancel(self._reply.work.model.name, self._numbers[index])
            if part:
                yield index, part

    async def whole(self) -> dict[str, Any]:
        """All answers at once."""
        parts: list[list[Part]] = [[] for _ in self._numbers]
        async for index, part in self.parts():
            parts[index].append(part)
        return self.envelope.whole([self._reply.choice(index, joined(found)) for index, found in enumerate(parts)])

    async def events(self, failed: Callable[[Refusal], None]) -> AsyncIterator[bytes]:
        """Server-sent events: a chunk for each part, and `[DONE]`.

        Args:
            failed: told why the stream ends with an error instead.
        """
        begins = [self._reply.begin(index) for index in range(len(self._numbers))]
        for choice in filter(None, begins):
            yield _event(self.envelope.chunk([choice]))
        try:
            async for index, part in self.parts():
                yield _event(self.envelope.chunk([self._reply.delta(index, part)]))
        except Refusal as refusal:
            failed(refusal)
            yield _event(refusal.body())
            return
        if self._reply.work.asked.usage:
            yield _event(self.envelope.chunk([]))
        yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A response of events. `ended` is called when it is over, also if the client hung up."""

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. A client that hangs up at once hears none, and its answers end too."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
