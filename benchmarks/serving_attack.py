"""What honest clients notice of hostile ones: 300 requests of 23 kinds beside them.

    python benchmarks/serving_attack.py --serve MODEL [--adapter FOLDER ...] [--out FILE] [--reproducible]

It starts `tpullm serve MODEL`, whose clients take its models in turn, if there are adapters. Three honest clients ask
one request after the other: a stream, a conversation, JSON of a schema. First they are alone, then hostile clients come
as well. These must hold, or the exit code is 1:

- `median`: the median time of an honest request is at most 1.5 times as long as without hostile ones.
- `worst`: no honest request takes 2 s longer than the longest one without them.
- `answered`: each honest request has its answer, and no request of anybody a status of 500.
- `same`, with `--reproducible`: an honest request has the same tokens and log-probabilities each time, to the last bit.

The clients share the machine with the server; hostile ones are a process of low priority, with addresses of their own.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
from figures import machine, versions
from serving_server import Server, started

RATIO, WORST_SECONDS = 1.5, 2.0
LONG = 400  # tokens of a hostile answer
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def form(schema: dict) -> dict:
    """`response_format` of a schema."""
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


# Honest clients.


async def honest_stream(client: openai.AsyncOpenAI, model: str) -> list:
    """A text of 32 tokens as it comes."""
    asked = {"prompt": [*range(30, 130)], "max_tokens": 32, "temperature": 0, "logprobs": 2, "stream": True}
    parts = await client.completions.create(model=model, **asked)
    return [choice.model_dump() async for part in parts for choice in part.choices]


async def honest_chat(client: openai.AsyncOpenAI, model: str) -> list:
    """A conversation."""
    messages = [{"role": "user", "content": "吾輩は何ですか。"}]
    asked = {"messages": messages, "max_tokens": 32, "seed": 5, "logprobs": True}
    return [one.model_dump() for one in (await client.chat.completions.create(model=model, **asked)).choices]


async def honest_form(client: openai.AsyncOpenAI, model: str) -> list:
    """JSON of a simple schema."""
    asked = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 60, "seed": 1, "temperature": 0}
    answer = await client.chat.completions.create(model=model, response_format=form(PERSON), **asked)
    return [one.model_dump() for one in answer.choices]


HONEST = (honest_stream, honest_chat, honest_form)


# Hostile requests: the changes of a chat request, or what is sent as it is.


def chat(**more) -> bytes:
    """The body of a chat request."""
    return json.dumps(
        {"model": "", "messages": [{"role": "user", "content": "hi"}], "max_tokens": LONG} | more
    ).encode()


def posted(
    body: bytes, headers: str = "", length: int | None = None, host: str = "127.0.0.1", path: str = "chat/completions"
) -> bytes:
    """An HTTP request with this body, after whose answer the connection ends: the client's next attack begins then."""
    count = len(body) if length is None else length
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}"
    head += "Content-Type: application/json\r\n"
    return f"{head}Content-Length: {count}\r\n\r\n".encode() + body


def pictured(text: str) -> bytes:
    """A request for the picture of attention of a text."""
    return posted(json.dumps({"model": "", "prompt": text}).encode(), path="attention")


def formed(schema: dict, answers: int = 1) -> bytes:
    """A chat request for JSON of a schema."""
    return posted(chat(n=answers, response_format=form(schema)))


MANY = {f"property {n} {'x' * 20}": {"type": "integer"} for n in range(1000)}
LONG_PATTERN = "|".join(f"(ab{n}c*|d{n}+)" for n in range(1500))
CROSSING = [{"type": "string", "pattern": f".*{one}.*"} for one in "abcdefghijklmnop"]
MULTIPLES = {"type": "array", "items": {"type": "integer", "multipleOf": 99991}, "minItems": 90}
TOOLS = [{"name": f"f{n}", "parameters": {"type": "object", "properties": {"x": {"enum": [n]}}}} for n in range(12)]
TOOLS = [{"type": "function", "function": function} for function in TOOLS]
BIASES = {"logit_bias": {str(n): 1 for n in range(300)}, "logprobs": True, "top_logprobs": 20}
KINDS: dict[str, bytes] = {
    "a large schema, 32 answers": formed({"type": "object", "properties": MANY}, 32),
    "a long pattern": formed({"type": "string", "pattern": LONG_PATTERN}),
    "multipleOf": formed(MULTIPLES, 8),
    "a pattern of many states": formed({"type": "string", "pattern": "^(a|b)*a(a|b){14}$"}, 8),
    "patterns that cross": formed({"allOf": CROSSING}),
    "a number of 300 digits": formed({"type": "integer", "minimum": -(10**300)}),
    "a schema in itself": formed({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "2,048 messages": posted(chat(messages=[{"role": "user", "content": "猫 " * 400}] * 2048)),
    "a text of 8 MB": posted(chat(messages=[{"role": "user", "content": "abc 猫\n" * 900_000}])),
    "deep JSON": posted(b'{"a":' * 200_000),
    "no UTF-8": posted(b'{"model": "\xff\xfe\x80"}' * 1000),
    "long headers": posted(chat(), "".join(f"X-{n}: {'y' * 400}\r\n" for n in range(90))),
    "two lengths": posted(chat(), "Transfer-Encoding: chunked\r\n"),
    "another host": posted(chat(), host="[::1].example.com"),
    "half a request": posted(chat()[:10], length=5000),
    "a body of 10 GB": posted(b" " * 1_000_000, length=10_000_000_000),
    "a stream that nobody reads": posted(chat(n=4, stream=True)),
    "a stream of tools that nobody reads": posted(chat(n=4, stream=True, tools=TOOLS[:2], tool_choice="required")),
    "12 tools": posted(chat(tools=TOOLS, tool_choice="required")),
    "biases and long stops": posted(chat(stop=["x" * 200] * 4, n=8, **BIASES)),
    "special tokens": posted(chat(messages=[{"role": "user", "content": "<|system|><|end|></s>" * 20_000}])),
    "a picture of attention": pictured("abc " * 22),
    "a picture of 8 MB": pictured("abc 猫\n" * 900_000),
}
UNREAD = {"a stream that nobody reads", "a stream of tools that nobody reads"}
STALLS = {"half a request", "a body of 10 GB"} | UNREAD
STALL_SECONDS = 10
PATIENCE_SECONDS = 120  # of a hostile client


async def attack(port: int, model: str, kind: str, address: str) -> str:
    """One hostile request from an address of this machine; the status that it met with."""
    raw = KINDS[kind].replace(b'"model": ""', b'"model": "%s"' % model.encode())
    if kind not in {"half a request", "a body of 10 GB"}:  # the name makes it longer
        head, body = raw.split(b"\r\n\r\n", 1)
        raw = head.rsplit(b" ", 1)[0] + b" %d\r\n\r\n" % len(body) + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 14, local_addr=(address, 0))
    try:
        writer.write(raw)
        if kind in STALLS:
            await asyncio.sleep(STALL_SECONDS)
        if kind in STALLS - UNREAD:
            return "stalled"
        said = await asyncio.wait_for(reader.read(12), PATIENCE_SECONDS)
        if kind in STALLS and b"200" in said:
            return "stalled"
        while await asyncio.wait_for(reader.read(1 << 16), PATIENCE_SECONDS if b"200" in said else 0.2):
            pass
        return said[9:12].decode() or "closed"
    except TimeoutError:
        return said[9:12].decode() if "said" in locals() else "no answer"
    except OSError:
        return "closed"
    finally:
        writer.close()


async def attacks(port: int, models: list[str], count: int, at_once: int) -> list[tuple[str, str, float, float]]:
    """Hostile requests, some at once, each kind as often as every other: kind, status, begin and end of each."""
    order = [kind for n, kind in zip(range(count), list(KINDS) * count, strict=False)]
    random.Random(0).shuffle(order)
    found = []

    async def one_after_the_other(address: str) -> None:
        while order:
            kind, began, model = order.pop(), time.time(), models[len(order) % len(models)]
            found.append((kind, await attack(port, model, kind, address), began, time.time()))

    await asyncio.gather(*(one_after_the_other(f"127.0.1.{n}") for n in range(1, at_once + 1)))
    return found


class Honest:
    """Honest clients, each with an address of its own.

    Attributes:
        times: begin, end and kind of each request, by phase.
        answers: what they were told, by kind and model.
        failed: requests without an answer.
    """

    def __init__(self, url: str, count: int):
        at = lambda n: httpx2.AsyncHTTPTransport(local_address=f"127.0.2.{n}")  # noqa: E731
        options = {"base_url": url, "api_key": "none", "timeout": 300, "max_retries": 0}
        self.clients = [
            openai.AsyncOpenAI(**options, http_client=openai.DefaultAsyncHttpxClient(transport=at(n)))
            for n in range(1, count + 1)
        ]
        self.times: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        self.answers: dict[str, Counter] = defaultdict(Counter)
        self.failed: list[str] = []

    async def ask_until(self, phase: str, models: list[str], is_over: Callable[[], bool]) -> None:
        """Each client its kind of requests, one after the other."""

        async def ask(client: openai.AsyncOpenAI, kind: Callable) -> None:
            for model in itertools.cycle(models):
                if is_over():
                    return
                began = time.time()
                try:
                    self.answers[f"{kind.__name__} {model}"][json.dumps(await kind(client, model))] += 1
                except openai.OpenAIError as error:
                    self.failed.append(f"{kind.__name__}: {error}")
                self.times[phase].append((began, time.time(), kind.__name__))
                await asyncio.sleep(0.1)

        await asyncio.gather(*map(ask, self.clients, itertools.cycle(HONEST)))


async def measured(server: Server, clients: int, count: int, at_once: int, alone_seconds: float) -> dict:
    """All figures."""
    honest, port = Honest(server.url, clients), int(server.url.rsplit(":", 1)[1].removesuffix("/v1"))
    models = [model.id for model in (await honest.clients[0].models.list()).data]
    for phase, seconds in (("warm", alone_seconds / 3), ("alone", alone_seconds)):
        end = time.monotonic() + seconds
        await honest.ask_until(phase, models, lambda end=end: time.monotonic() > end)
    words = [sys.executable, __file__, "--attack", str(port), *models]
    words += ["--count", str(count), "--at-once", str(at_once)]
    began, outcomes = time.monotonic(), defaultdict(Counter)
    with tempfile.TemporaryFile() as told:
        hostile = subprocess.Popen(words, stdout=told, preexec_fn=lambda: os.nice(19))
        await honest.ask_until("attacked", models, lambda: hostile.poll() is not None)
        told.seek(0)
        if hostile.returncode:
            raise SystemExit(f"the hostile clients ended with {hostile.returncode}")
        requests = json.load(told)
    for kind, status, _, _ in requests:
        outcomes[kind][status] += 1
    alone, attacked = ([end - begin for begin, end, _ in honest.times[phase]] for phase in ("alone", "attacked"))
    slowest = sorted(honest.times["attacked"], key=lambda times: times[0] - times[1])[:5]
    beside = lambda times: [kind for kind, _, begin, end in requests if begin < times[1] and end > times[0]]  # noqa: E731
    medians = statistics.median(alone), statistics.median(attacked)
    return {
        "medians s": medians,
        "ratio": medians[1] / medians[0],
        "worst s": (max(alone), max(attacked)),
        "requests": (len(alone), len(attacked)),
        "attack s": time.monotonic() - began,
        "hostile": outcomes,
        "slowest": [{"s": of[1] - of[0], "kind": of[2], "beside": beside(of)} for of in slowest],
        "failed": honest.failed,
        "distinct": {kind: len(found) for kind, found in honest.answers.items()},
    }


def judged(found: dict, reproducible: bool) -> dict[str, bool]:
    """What holds."""
    holds = {
        "median": found["ratio"] <= RATIO,
        "worst": found["worst s"][1] <= found["worst s"][0] + WORST_SECONDS,
        "answered": not found["failed"] and not any("500" in counts for counts in found["hostile"].values()),
    }
    return holds | ({"same": set(found["distinct"].values()) == {1}} if reproducible else {})


def main() -> int:
    """Attack a server, and judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help="the model")
    parser.add_argument("--adapter", action="append", default=[], help="as `serve` has it")
    parser.add_argument("--reproducible", action="store_true", help="as `serve` has it; then answers are compared")
    parser.add_argument("--honest", type=int, default=12, help="honest clients")
    parser.add_argument("--count", type=int, default=300, help="hostile requests")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--alone", type=float, default=60, help="seconds without hostile requests")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--attack", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        port, *models = options.attack
        print(json.dumps(asyncio.run(attacks(int(port), models, options.count, options.at_once))))
        return 0
    words = [sys.executable, "-m", "tpullm", "serve", options.serve, "--longest", "1024", "--port", "{port}"]
    words += [word for adapter in options.adapter for word in ("--adapter", adapter)]
    words += ["--reproducible"] if options.reproducible else []
    with tempfile.TemporaryDirectory() as logs, started({"tpullm": shlex.join(words)}, Path(logs)) as made:
        made[0].resume()
        found = asyncio.run(measured(made[0], options.honest, options.count, options.at_once, options.alone))
    holds = judged(found, options.reproducible)
    print(json.dumps(found, indent=1))
    print(", ".join(f"{name}: {'holds' if good else 'FAILS'}" for name, good in holds.items()))
    if options.out:
        whole = {**found, "holds": holds, "machine": machine(), "versions": versions()}
        options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return int(not all(holds.values()))


if __name__ == "__main__":
    sys.exit(main())
