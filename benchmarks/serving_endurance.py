"""A long load of all kinds of clients, good and bad: does the server stay as it was?

    python benchmarks/serving_endurance.py --minutes 120 --out FILE --serve MODEL

It starts `tpullm serve MODEL`, and clients that read whole answers and streams, share beginnings, ask for long texts,
hang up in the middle, send what is no request or what `serving_attack.py` sends, or stall. Every second it notes the
server's memory and what `/metrics` says. Before that all rows of the cache are filled to their end: a row takes its
memory when it is first used. At the end these must hold, or the exit code is 1:

- `memory`: in the last tenth of the time the median of the resident memory is within 2 % of that in the tenth after the
  warm-up, which is a fifth of the time.
- `idle`: without clients the server soon has no text that waits or is computed, and no page in use.
- `answered`: every request that somebody waited for was answered or refused; no status is 500.
- `same`: a request that always asks the same got the same tokens and log-probabilities, to the last bit.
"""

import argparse
import asyncio
import itertools
import json
import random
import re
import shlex
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import openai
import serving_attack
from figures import machine, versions
from serving_server import Server, started

LARGEST_CHANGE = 0.02
IDLE_SECONDS = 120
PAGE = 64  # tokens
STALL_SECONDS = (1, 5, 80)  # the server ends a request that has not arrived after 60
GOOD = re.compile(r"[24]\d\d|503|hung up|stalled|closed")  # outcomes
METRIC = re.compile(r"^tpullm_(waiting|running|pages|pages_used|new_tokens_total)\{.*\} (\S+)$", re.MULTILINE)
_POST = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
GARBAGE = (
    b"\x16\x03\x01\x00\xa5\x01\x00",
    b"GET / HTTP/9.9\r\n\r\n",
    _POST + b"5\r\n\r\n{{{{{",
    _POST + b"4\r\n\r\n[[[[",
    _POST + b"99999999999\r\n\r\n",
    b"DELETE /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    b"A" * 100_000,
)


class Clients:
    """What all clients know and count.

    Args:
        url: the server.
        longest: tokens of the longest text.

    Attributes:
        outcomes: how often a kind of client met with what.
        control: what the control request was answered, and how often.
    """

    def __init__(self, url: str, longest: int):
        self.url, self.longest = url, longest
        self.port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
        self.client = openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)
        self.model = ""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.control: Counter[str] = Counter()

    async def ask(self, prompt: list[int], tokens: int, **more):
        """A completion of token ids."""
        return await self.client.completions.create(model=self.model, prompt=prompt, max_tokens=tokens, **more)


def ids(rng: random.Random, count: int) -> list[int]:
    """Random token ids that every vocabulary has."""
    return rng.choices(range(20, 300), k=count)


async def whole(clients: Clients, rng: random.Random) -> str:
    """Reads an answer as a whole."""
    await clients.ask(ids(rng, rng.randint(5, 200)), rng.randint(1, 64), temperature=rng.choice((0, 1)))
    return "200"


async def stream(clients: Clients, rng: random.Random) -> str:
    """Reads a stream to its end."""
    async for _ in await clients.ask(ids(rng, rng.randint(5, 200)), rng.randint(1, 64), stream=True):
        pass
    return "200"


async def chat(clients: Clients, rng: random.Random) -> str:
    """Has a conversation."""
    messages = [{"role": "user", "content": "猫" * rng.randint(1, 50)}]
    await clients.client.chat.completions.create(model=clients.model, messages=messages, max_tokens=32)
    return "200"


async def shared(clients: Clients, rng: random.Random) -> str:
    """Its prompt begins as that of others."""
    beginning = ids(random.Random(rng.randrange(3)), clients.longest // 4)
    await clients.ask(beginning + ids(rng, rng.randint(1, 40)), 16)
    return "200"


async def long(clients: Clients, rng: random.Random) -> str:
    """Asks for most of what the context holds."""
    prompt = rng.randint(1, clients.longest * 3 // 4)
    await clients.ask(ids(rng, prompt), min(400, clients.longest - prompt - 1))
    return "200"


async def too_long(clients: Clients, rng: random.Random) -> str:
    """Its prompt does not fit."""
    await clients.ask(ids(rng, clients.longest + 1), 1)
    return "200"


async def hangs_up(clients: Clients, rng: random.Random) -> str:
    """Leaves in the middle of a stream."""
    answer = await clients.ask(ids(rng, rng.randint(5, 500) % clients.longest), 300, stream=True)
    left = rng.randint(0, 20)
    async for _ in answer:
        left -= 1
        if left < 0:
            break
    await answer.close()
    return "hung up"


async def garbage(clients: Clients, rng: random.Random) -> str:
    """Sends what is no request, and reads what comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", clients.port)
    try:
        writer.write(rng.choice(GARBAGE))
        await writer.drain()
        writer.write_eof()
        status = re.match(rb"HTTP/1.1 (\d+)", await asyncio.wait_for(reader.read(4096), 120))
        return status[1].decode() if status else "closed"
    finally:
        writer.close()


async def stalls(clients: Clients, rng: random.Random) -> str:
    """Asks for a stream and does not read it for a while, or sends half a request and waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", clients.port, limit=1024)
    body = json.dumps({"model": clients.model, "prompt": ids(rng, 20), "max_tokens": 200, "stream": True}).encode()
    try:
        sent = body if rng.random() < 0.5 else body[:10]
        writer.write(_POST + b"%d\r\n\r\n" % len(body) + sent)
        await writer.drain()
        await asyncio.sleep(rng.choice(STALL_SECONDS))
        return "stalled"
    finally:
        writer.close()


async def hostile(clients: Clients, rng: random.Random) -> str:
    """Sends one of the hostile requests, from another address."""
    return await serving_attack.attack(clients.port, clients.model, rng.choice([*serving_attack.KINDS]), "127.0.1.1")


async def control(clients: Clients, rng: random.Random) -> str:
    """Always asks the same."""
    answer = await clients.ask(ids(random.Random(0), 100), 48, temperature=0, logprobs=3)
    choice = answer.choices[0]
    clients.control[json.dumps([choice.text, choice.logprobs.model_dump()], sort_keys=True)] += 1
    return "200"


# How many of each kind there are at a time.
KINDS: dict[Callable[[Clients, random.Random], Awaitable[str]], int] = {
    whole: 6,
    stream: 6,
    chat: 3,
    shared: 3,
    long: 2,
    too_long: 1,
    hangs_up: 6,
    garbage: 2,
    stalls: 4,
    hostile: 2,
    control: 2,
}


async def client(kind: Callable, clients: Clients, seed: int, end: float) -> None:
    """One client after the other until the time is over; counts what each met with."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        try:
            outcome = await kind(clients, rng)
        except openai.APIStatusError as error:
            outcome = str(error.status_code)
        except (openai.OpenAIError, OSError, TimeoutError) as error:
            outcome = type(error).__name__
        clients.outcomes[kind.__name__, outcome] += 1
        await asyncio.sleep(rng.expovariate(2))


def sample(clients: Clients, pid: int) -> dict[str, float]:
    """Memory of the server in MiB, and the figures of its engine."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = {"memory": int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1024}
    with urllib.request.urlopen(clients.url.removesuffix("v1") + "metrics", timeout=60) as answer:
        told = METRIC.findall(answer.read().decode())
    for name in dict.fromkeys(name for name, _ in told):
        found[name] = sum(float(value) for other, value in told if other == name)
    return found


async def sampled(clients: Clients, pid: int, end: float, samples: list[dict]) -> None:
    """A sample each second until the time is over."""
    began = time.monotonic()
    for number in itertools.count():
        samples.append({"second": time.monotonic() - began, **await asyncio.to_thread(sample, clients, pid)})
        await asyncio.sleep(max(0, began + number + 1 - time.monotonic()))
        if time.monotonic() >= end:
            return


async def fill(clients: Clients, pid: int) -> None:
    """A text as long as the context in each row of the cache, all at once."""
    pages = (await asyncio.to_thread(sample, clients, pid)).get("pages", 0)
    rows = int(pages * PAGE) // clients.longest
    special = {str(token): -100 for token in range(20)}  # none ends before its time
    prompts = [ids(random.Random(number), 8) for number in range(rows)]
    await asyncio.gather(*(clients.ask(prompt, clients.longest - 9, logit_bias=special) for prompt in prompts))


async def load(clients: Clients, pid: int, seconds: float) -> tuple[list[dict], dict]:
    """All clients for some time; the samples, and the last sample when they are gone."""
    clients.model = (await clients.client.models.list()).data[0].id
    await fill(clients, pid)
    end, samples = time.monotonic() + seconds, []
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    running = [client(kind, clients, seed, end) for seed, kind in enumerate(kinds)]
    await asyncio.gather(sampled(clients, pid, end, samples), *running)
    await clients.client.close()
    for _ in range(IDLE_SECONDS):
        idle = await asyncio.to_thread(sample, clients, pid)
        if not is_busy(idle):
            break
        await asyncio.sleep(1)
    return samples, idle


def is_busy(figures: dict[str, float]) -> bool:
    """Whether something waits, is computed or holds a page."""
    return any(figures.get(name, 0) for name in ("waiting", "running", "pages_used"))


def judged(clients: Clients, samples: list[dict], idle: dict) -> dict[str, bool]:
    """What holds."""
    memory = [one["memory"] for one in samples]
    early, late = medians(memory)
    lost = [
        outcome for _, outcome in clients.outcomes if not re.fullmatch(r"[24]\d\d|503|hung up|stalled|closed", outcome)
    ]
    return {
        "memory": abs(late / early - 1) <= LARGEST_CHANGE,
        "idle": not is_busy(idle),
        "answered": not lost,
        "same": len(clients.control) == 1,
    }


def medians(memory: list[float]) -> tuple[float, float]:
    """Of the tenth after the first fifth, and of the last tenth."""
    tenth = max(1, len(memory) // 10)
    return statistics.median(memory[2 * tenth : 3 * tenth] or memory), statistics.median(memory[-tenth:])


def show(clients: Clients, samples: list[dict], idle: dict, holds: dict[str, bool]) -> None:
    """What was counted and measured."""
    for kind in KINDS:
        counts = {
            outcome: count for (name, outcome), count in sorted(clients.outcomes.items()) if name == kind.__name__
        }
        print(f"{kind.__name__:10}", ", ".join(f"{outcome}: {count:,}" for outcome, count in counts.items()))
    early, late = medians([one["memory"] for one in samples])
    print(f"memory: {early:,.0f} MiB after the warm-up, {late:,.0f} at the end ({late / early - 1:+.2%})")
    most = {name: max(one.get(name, 0) for one in samples) for name in ("waiting", "running", "pages_used")}
    print(f"at most: {most}; when idle: {idle}")
    print(f"control: {sum(clients.control.values()):,} answers, {len(clients.control)} distinct")
    print(", ".join(f"{name}: {'holds' if good else 'FAILS'}" for name, good in holds.items()))


def endured(server: Server, minutes: float, longest: int, out: Path | None) -> int:
    """The whole measurement of a server that runs."""
    clients = Clients(server.url, longest)
    samples, idle = asyncio.run(load(clients, server.process.pid, 60 * minutes))
    holds = judged(clients, samples, idle)
    show(clients, samples, idle, holds)
    if out:
        outcomes = {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(clients.outcomes.items())}
        found = {"holds": holds, "outcomes": outcomes, "control": clients.control, "idle": idle, "samples": samples}
        whole = {**found, "machine": machine(), "versions": versions()}
        out.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    return int(not all(holds.values()))


def main(argv: list[str] | None = None) -> int:
    """Load a server, and judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", required=True, help="the model")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--longest", type=int, default=1024, help="tokens of the longest text; the model's context")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    longest = str(options.longest)
    words = [sys.executable, "-m", "tpullm", "serve", options.serve, "--longest", longest, "--queue", "64"]
    words += ["--reproducible", "--port", "{port}"]
    with tempfile.TemporaryDirectory() as logs, started({"tpullm": shlex.join(words)}, Path(logs)) as made:
        made[0].resume()
        return endured(made[0], options.minutes, options.longest, options.out)


if __name__ == "__main__":
    sys.exit(main())
