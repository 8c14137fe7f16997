"""Clients of servers, in turns: tokens a second, and how long the first token and the longest pause took.

    python benchmarks/serving_load.py --texts TEXT ... --servers ours=http://127.0.0.1:8000/v1 other=http://...

Each client asks for one streamed completion after the other, of a passage of the texts that nobody else asks for. Every
server gets the same ones, in turns, so that what else the machine does harms all alike. With `--beginning N` all
prompts begin with the same N characters. Start the servers first; a server that is not being asked costs nothing.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time
from pathlib import Path

import openai

TOKENS = 64


async def asked(client: openai.AsyncOpenAI, model: str, prompt: str, tokens: int) -> tuple[int, list[float]]:
    """The tokens of an answer, and the moments at which its parts came, seconds from the request."""
    began, moments, count = time.perf_counter(), [], 0
    settings = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    stream = await client.completions.create(model=model, prompt=prompt, max_tokens=tokens, **settings)
    async for chunk in stream:
        if chunk.choices:
            moments.append(time.perf_counter() - began)
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return count, moments


async def round_of(url: str, prompts: list[list[str]], tokens: int) -> dict[str, float]:
    """One client for each list of prompts."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600, max_retries=0) as client:
        model = (await client.models.list()).data[0].id

        async def one(own: list[str]) -> list[tuple[int, list[float]]]:
            return [await asked(client, model, prompt, tokens) for prompt in own]

        began = time.perf_counter()
        answers = [answer for own in await asyncio.gather(*map(one, prompts)) for answer in own]
        seconds = time.perf_counter() - began
    first = sorted(moments[0] for _, moments in answers)
    pauses = sorted(after - before for _, moments in answers for before, after in itertools.pairwise(moments))
    return {
        "tokens/s": sum(count for count, _ in answers) / seconds,
        "first p50 ms": 1e3 * statistics.median(first),
        "first p99 ms": 1e3 * first[min(len(first) - 1, len(first) * 99 // 100)],
        "pause p50 ms": 1e3 * statistics.median(pauses),
        "pause p99 ms": 1e3 * pauses[len(pauses) * 99 // 100],
    }


def passages(texts: list[Path], clients: int, each: int, characters: int, beginning: int, seed: int) -> list[list[str]]:
    """Prompts of half to all of `characters`, behind a common beginning."""
    whole, rng = "\n".join(path.read_text(encoding="utf-8") for path in texts), random.Random(seed)

    def passage() -> str:
        size = rng.randint(characters // 2, characters)
        start = rng.randrange(len(whole) - size)
        return whole[:beginning] + whole[start : start + size]

    return [[passage() for _ in range(each)] for _ in range(clients)]


def main() -> None:
    """Print a row for each server and number of clients, the median of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", required=True, help="NAME=URL of each")
    parser.add_argument("--texts", nargs="+", type=Path, required=True, help="files with text")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    parser.add_argument("--characters", type=int, default=200, help="of the longest prompt")
    parser.add_argument("--beginning", type=int, default=0, help="characters with which all prompts begin")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="new tokens of each request")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    servers = dict(word.split("=", 1) for word in arguments.servers)
    for clients in arguments.clients:
        found: dict[str, list[dict]] = {name: [] for name in servers}
        for number in range(arguments.rounds):
            sizes = arguments.each, arguments.characters, arguments.beginning
            prompts = passages(arguments.texts, clients, *sizes, seed=1000 * clients + number)
            for name, url in servers.items():
                found[name].append(asyncio.run(round_of(url, prompts, arguments.tokens)))
        for name, rounds in found.items():
            figures = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
            print(
                f"{clients:3} clients  {name:12}", *(f"{key} {value:8.1f}" for key, value in figures.items()), sep="  "
            )


if __name__ == "__main__":
    main()
