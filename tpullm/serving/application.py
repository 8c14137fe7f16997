"""The server's paths: who may ask, what a request must be, what it is told if something is wrong, and `/metrics`.

This is the event loop's thread. The main thread steps the engines (`stepping.py`), and a third thread reads requests,
since a long text takes a second to split.
"""

import asyncio
import hmac
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tpullm.serving.answer_writing import STOPPING, EventStream, Post, Writing
from tpullm.serving.attention_picture import attention_picture
from tpullm.serving.completions import ChatReply, Reply, TextReply
from tpullm.serving.front_page import front_page
from tpullm.serving.listening import MOST_HEADER_BYTES
from tpullm.serving.refusal import Refusal, parse_json_object
from tpullm.serving.served_model import ServedModel
from tpullm.serving.stepping import Stepping
from tpullm.serving.token_masks import FORMS
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say
from tpullm.system.process.child import go_last

MOST_BODY_BYTES = 4 << 20  # a prompt of 128 k tokens of Japanese, escaped, is 1 MB
SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

Made = TypeVar("Made")
Read = Callable[[dict[str, Any], ServedModel, str], Made]


@dataclass
class Service:
    """What the paths need.

    Args:
        models: by name.
        stepping: their engines.
        queue: how many requests may wait.
        key: what a client must show; empty: nothing.
        hosts: what clients may call this server in the Host header; empty: anything. Without a key it keeps web pages
            out that give their own name this machine's address (DNS rebinding).
    """

    models: dict[str, ServedModel]
    stepping: Stepping
    queue: int
    key: str = ""
    hosts: frozenset[str] = frozenset()
    is_stopping: bool = False
    writing: set[Writing] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(self.stepping.figures))
        labels, about = ("path", "status"), "from a request to its whole answer"
        self.requests = Counter("tpullm_requests", "HTTP requests, by path and status", labels, registry=self.registry)
        self.seconds = Histogram("tpullm_request_seconds", about, buckets=SECONDS, registry=self.registry)
        self.began = int(time.time())
        self._reader = ThreadPoolExecutor(1, "reads requests")
        # A hostile schema takes some seconds of a processor: those of one client come one after the other.
        self._former = ThreadPoolExecutor(FORMS, "compiles forms", go_last)
        self._drawer = ThreadPoolExecutor(1, "draws attention", go_last)
        self._forms: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reading = 0
        self._post: Post | None = None

    def stop(self) -> None:
        """End all answers with an error that says why; in the thread of the event loop."""
        self.is_stopping = True
        for writing in self.writing:
            writing.stop()

    async def begin(self, raw: bytes, read: Read[Reply], client: str) -> tuple[Reply, Writing]:
        """Begin the answers to a request; `end` must follow.

        Raises:
            Refusal: something is wrong with it, or too many wait.
        """
        self._check_open()
        self._reading += 1
        try:
            loop = asyncio.get_running_loop()
            reply = await loop.run_in_executor(self._reader, self._read, raw, read, client)
            answers = len(reply.prompts) * reply.asked.n
            if answers <= self.queue and reply.grammar and not reply.make_masks(kept=True):
                async with self._forms.setdefault(client, asyncio.Lock()):
                    await loop.run_in_executor(self._former, reply.make_masks, False)
        finally:
            self._reading -= 1
        if answers > self.queue:
            raise Refusal(f"n: asks for {answers} answers, and at most {self.queue} may wait here; ask for fewer")
        self._check_open(answers)
        self._post = self._post or Post()
        writing = Writing(self.stepping, reply, self._post)
        self.writing.add(writing)
        return reply, writing

    async def picture(self, raw: bytes, client: str) -> Response:
        """The picture of attention that a request asks for; one is made at a time. Errors are those of `begin`."""
        self._check_open()
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._drawer, self._drawn, raw, client)
        finally:
            self._reading -= 1

    def end(self, writing: Writing) -> None:
        """Nobody listens to these answers any more."""
        writing.close()
        self.writing.discard(writing)

    def _check_open(self, answers: int = 1) -> None:
        if self.is_stopping:
            raise Refusal(STOPPING, status=503)
        if not self.stepping.ready:
            raise Refusal("the programs of the model are being compiled; ask again soon", status=503)
        waiting = sum(figures["waiting"] for figures in self.stepping.figures().values())
        if self._reading + waiting + answers > self.queue:
            raise Refusal(f"{self.queue} requests wait already; ask again later", status=429, code="queue_full")

    def _drawn(self, raw: bytes, client: str) -> Response:
        return JSONResponse(self._read(raw, attention_picture, client))  # a megabyte: not in the loop's thread either

    def _read(self, raw: bytes, read: Read[Made], client: str) -> Made:
        """In the thread that reads: splitting a long text takes a second."""
        body, known = parse_json_object(raw), ", ".join(self.models)
        name = body.get("model")
        if not isinstance(name, str):
            raise Refusal(f"model: is missing; give the name of a model: {known}", param="model")
        if name not in self.models:
            raise Refusal(f"model: no {name[:200]!r} here; there are: {known}", 404, "model", "model_not_found")
        try:
            return read(body, self.models[name], client)
        except UserError as error:
            raise Refusal(str(error)) from None
        except RecursionError:
            raise Refusal("the body is nested too deeply; simplify it") from None


def application(service: Service) -> ASGIApp:
    """The server, for any server of ASGI."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described_model(service, name) for name in service.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models:
            raise Refusal(f"no model {name[:200]!r} here", 404, "model", "model_not_found")
        return JSONResponse(_described_model(service, name))

    async def health(request: Request) -> Response:
        if not service.stepping.ready or service.is_stopping:
            refusal = Refusal("the server is not ready", status=503)
            return JSONResponse(refusal.body(), refusal.status)  # without a line in the log: it is asked all the time
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(service.registry), media_type="text/plain; version=0.0.4")

    async def attention(request: Request) -> Response:
        client = request.client.host if request.client else ""
        return await _unless_client_gone(request, service.picture(await _json_body(request), client))

    paths = (  # and whether a client must show the key
        ("/", front_page(), "GET", False),
        ("/health", health, "GET", False),
        ("/v1/completions", partial(_answer_request, service, TextReply), "POST", True),
        ("/v1/chat/completions", partial(_answer_request, service, ChatReply), "POST", True),
        ("/v1/attention", attention, "POST", True),
        ("/v1/models", models, "GET", True),
        ("/v1/models/{name:path}", model, "GET", True),
        ("/metrics", metrics, "GET", True),
    )
    routes = [Route(path, _guarded(service, path, work, key), methods=[how]) for path, work, how, key in paths]

    async def elsewhere(request: Request, error: HTTPException) -> Response:
        there = "/v1/models, /v1/completions and /v1/chat/completions"
        what = {404: f"no such path; there are {there}", 405: "no such method"}
        response = _refusal_response(request, Refusal(what.get(error.status_code, error.detail), error.status_code))
        response.headers.update(error.headers or {})
        service.requests.labels("elsewhere", str(error.status_code)).inc()
        return response

    app = Starlette(routes=routes, exception_handlers={HTTPException: elsewhere})
    app.router.redirect_slashes = False
    return app


def _guarded(service: Service, path: str, work: Callable[[Request], Awaitable[Response]], key: bool):
    """`work` for those who may ask; what it raises becomes an answer and one line in the log."""

    async def answer(request: Request) -> Response:
        try:
            if sum(len(name) + len(value) for name, value in request.headers.raw) > MOST_HEADER_BYTES:
                raise Refusal(f"the headers have more than {MOST_HEADER_BYTES:,} bytes; shorten them", status=431)
            if "content-length" in request.headers and "transfer-encoding" in request.headers:
                raise Refusal("Content-Length and Transfer-Encoding may say different lengths; send one")
            asked = request.headers.get("host", "").lower()
            host = re.fullmatch(r"(?:\[([^]]*)\]|([^:\[\]]*))(?::[0-9]*)?", asked)  # version 6 stands in brackets
            if service.hosts and (not host or (host[1] or host[2]) not in service.hosts):
                why = "start it with --key to be asked under other names"
                raise Refusal(f"this server is not called {asked[:100]!r}; {why}", 403)
            shown = request.headers.get("authorization", "").encode()
            if key and service.key and not hmac.compare_digest(shown, f"Bearer {service.key}".encode()):
                raise Refusal("no right key in the header `Authorization: Bearer KEY`", 401, code="invalid_api_key")
            response = await work(request)
        except Refusal as refusal:
            response = _refusal_response(request, refusal)
        except ClientDisconnect:
            response = Response(status_code=499)  # none of HTTP; nobody hears it
        except Exception:  # a fault of ours: the client is told so, and the log has all of it
            say(traceback.format_exc().rstrip())
            response = _refusal_response(request, Refusal("an error of the server; its log says more", status=500))
        service.requests.labels(path, str(response.status_code)).inc()
        return response

    return answer


def _refusal_response(request: Request, refusal: Refusal) -> Response:
    """The answer, and one line in the log."""
    _log_refusal(request, refusal)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _log_refusal(request: Request, refusal: Refusal) -> None:
    client = request.client.host if request.client else "?"
    line = f"{client} {request.method} {request.scope['path']}: {refusal.status} {refusal}"  # `url` has the Host in it
    say(one_line(line, 500))


async def _answer_request(service: Service, read: Read[Reply], request: Request) -> Response:
    """The answers to a request, whole or as a stream."""
    began, client = time.monotonic(), request.client.host if request.client else ""
    reply, writing = await _unless_client_gone(request, service.begin(await _json_body(request), read, client))

    def ended() -> None:
        service.end(writing)
        service.seconds.observe(time.monotonic() - began)

    if reply.asked.stream:
        return EventStream(writing.events(lambda refusal: _log_refusal(request, refusal)), ended)
    try:
        return JSONResponse(await _unless_client_gone(request, writing.whole()))
    finally:
        ended()


async def _json_body(request: Request) -> bytes:
    """The body of a request; `Refusal` if it is not JSON, or too large."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal("the header Content-Type is not application/json; send JSON", status=415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal("the header Content-Encoding is not supported; send JSON as it is", status=415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise Refusal(f"the body has more than {MOST_BODY_BYTES:,} bytes; shorten it", status=413)
    return bytes(body)


async def _unless_client_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled if the client hangs up."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        # What `working` raised holds this frame and what was read, such as a form of 40 MB, and this frame `working`.
        del working, gone


def _described_model(service: Service, name: str) -> dict:
    """As OpenAI has it, and what the page asks, such as how the tokens that end texts of the model look."""
    model = service.models[name]
    more = {"talks": model.talks, "ends": [model.tokenizer.piece(token) for token in model.tokenizer.stop_ids]}
    more |= {"system": model.takes_system, "base": model.base or None, "questions": list(model.questions)}
    more |= {"identity": model.identity, "attention": model.attention is not None}
    return {"id": name, "object": "model", "created": service.began, "owned_by": "tpullm", **more}


class _Engines(Collector):
    """What the engines have done, by the model's name."""

    def __init__(self, figures: Callable[[], dict[str, dict[str, float]]]):
        self._figures = figures

    def describe(self) -> list:
        """Nothing, so that engines are not asked before they are ready."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """A figure of all engines at a time."""
        found, sums = self._figures(), ("prompt_tokens", "reused_tokens", "new_tokens", "guesses", "right_guesses")
        for name in dict.fromkeys(name for figures in found.values() for name in figures):
            family = CounterMetricFamily if name in sums else GaugeMetricFamily  # these go up and down
            metric = family(f"tpullm_{name}", f"{name.replace('_', ' ')} of the engine", labels=("model",))
            for model, figures in found.items():
                metric.add_metric((model,), figures.get(name, 0.0))
            yield metric
