"""The answers to one request while engines write them, and how a client gets them: whole, or as events.

An answer is parts (`answer_text.py`). A stream sends each part and a whole answer joins them, so both are the same
text. Whatever ends the response (its end, an error, a client that hangs up) closes its `Writing`, which cancels what is
left.
"""

import asyncio
import collections
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tpullm.engine.request import Token
from tpullm.serving.answer_text import Part, joined
from tpullm.serving.completions import Reply
from tpullm.serving.refusal import Refusal
from tpullm.serving.stepping import Stepping
from tpullm.system.errors import UserError

STOPPING = "the server is stopping; ask again when it is back"


class Post:
    """Brings what engines tell to the event loop, with one call for all that is told before the loop comes to it.

    It is made in the thread of the loop.
    """

    def __init__(self):
        self._loop, self._waiting = asyncio.get_running_loop(), collections.deque()

    def put(self, queue: asyncio.Queue, index: int, token: Token) -> None:
        """Put a token of an answer into a queue, from any thread."""
        self._waiting.append((queue, (index, token)))
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
        self._stepping, self._reply, self._numbers, self._tokens = stepping, reply, [], asyncio.Queue()
        try:
            for index, request in enumerate(reply.requests()):
                told = partial(post.put, self._tokens, index)
                self._numbers.append(stepping.submit(reply.model.name, request, told))
        except UserError as error:
            self.close()
            raise Refusal(str(error), param="prompt") from None

    def stop(self) -> None:
        """The server stops: the client is told so."""
        self._tokens.put_nowait((0, None))

    def close(self) -> None:
        """Nobody listens any more. Of answers that have ended, nothing."""
        for number in self._numbers:
            self._stepping.cancel(self._reply.model.name, number)

    async def parts(self) -> AsyncIterator[tuple[int, Part]]:
        """The parts of the answers, as they come, with the number of the answer.

        Raises:
            Refusal: the server stops.
        """
        texts = {index: self._reply.text(index) for index in range(len(self._numbers))}
        while texts:
            index, token = await self._tokens.get()
            if token is None:
                raise Refusal(STOPPING, status=503)
            if index not in texts:  # written after a stop text
                continue
            self._reply.written += 1
            part = texts[index].add(token)
            if part.ends:
                del texts[index]
                self._stepping.cancel(self._reply.model.name, self._numbers[index])
            if part:
                yield index, part

    async def whole(self) -> dict[str, Any]:
        """All answers at once."""
        parts: list[list[Part]] = [[] for _ in self._numbers]
        choices: dict[int, dict[str, Any]] = {}
        async for index, part in self.parts():
            parts[index].append(part)
            if part.ends:
                await asyncio.sleep(0)  # 400 tokens with 20 likely ones each take 30 ms; others have their turn between
                choices[index] = self._reply.choice(index, joined(parts[index]), True)
        return self._reply.whole([choices[index] for index in sorted(choices)])

    async def events(self, failed: Callable[[Refusal], None]) -> AsyncIterator[bytes]:
        """Server-sent events: a chunk for each part, and `[DONE]`.

        Args:
            failed: told why the stream ends with an error instead.
        """
        begins = [self._reply.begin(index) for index in range(len(self._numbers))]
        for choice in filter(None, begins):
            yield _server_sent_event(self._reply.chunk([choice]))
        try:
            async for index, part in self.parts():
                yield _server_sent_event(self._reply.chunk([self._reply.choice(index, part, False)]))
        except Refusal as refusal:
            failed(refusal)
            yield _server_sent_event(refusal.body())
            return
        if self._reply.asked.usage:
            yield _server_sent_event(self._reply.chunk([]))
        yield b"data: [DONE]\n\n"


def _server_sent_event(value: dict[str, Any]) -> bytes:
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
