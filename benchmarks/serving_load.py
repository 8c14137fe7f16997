"""Clients of servers, in turns: tokens a second, and how long the first token and the longest pause took.

    python benchmarks/serving_load.py --texts TEXT ... --servers ours=http://127.0.0.1:8000/v1 'other=COMMAND {port}'

A server is an address, or a command that is started, with a port in place of `{port}`, and stopped at the end; it is
paused (SIGSTOP) while another one is asked. Each client asks for one streamed completion after the other, of a passage
of the texts that nobody else asks for. Every server gets the same ones, in turns (A, B, A, B, ...), so that what else
the machine does harms all alike. The first round warms up and is not counted. With `--beginning N` all prompts begin
with the same N characters. `same` is the share of texts that are those of the first server.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import openai
from figures import machine, versions
from serving_server import Server, in_use, named, started

SECONDS = 900  # for a request; then the round has failed


class Answer(NamedTuple):
    """A streamed completion: its tokens, seconds from the request to each part of it, and the text."""

    tokens: int
    moments: list[float]
    text: str


async def asked(client: openai.AsyncOpenAI, model: str, prompt: str | list[int], tokens: int) -> Answer:
    """Ask for the likeliest continuation of a text or of token ids."""
    began, moments, parts, count = time.perf_counter(), [], [], 0
    settings = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    stream = await client.completions.create(model=model, prompt=prompt, max_tokens=tokens, **settings)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].text:
            moments.append(time.perf_counter() - began)
            parts.append(chunk.choices[0].text)
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return Answer(
        count or len(parts), moments, "".join(parts)
    )  # llama-cpp-python streams a token a part, without usage


@dataclass
class Round:
    """What one server did with one list of prompts: tokens a second, and the answers, client by client."""

    tokens_per_second: float
    answers: list[Answer]


async def round_of(url: str, prompts: list[list[str]], tokens: int) -> Round:
    """One client for each list of prompts."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=SECONDS, max_retries=0) as client:
        model = (await client.models.list()).data[0].id

        async def one(own: list[str]) -> list[Answer]:
            return [await asked(client, model, prompt, tokens) for prompt in own]

        began = time.perf_counter()
        answers = [answer for own in await asyncio.gather(*map(one, prompts)) for answer in own]
        return Round(sum(answer.tokens for answer in answers) / (time.perf_counter() - began), answers)


@dataclass
class Result:
    """A server under a load.

    Args:
        rounds: tokens a second of each.
        first, pauses: p50 and p99 over all rounds, of the milliseconds to the first token and between two parts.
        tokens: of an answer, the mean.
        same: the share of texts that are those of the first server.
        failed: why it was not measured.
    """

    rounds: list[float] = field(default_factory=list)
    first_ms: tuple[float, float] = (0, 0)
    pause_ms: tuple[float, float] = (0, 0)
    tokens: float = 0
    same: float = 0
    failed: str = ""

    def row(self, name: str, clients: int) -> str:
        """A row of a table in Markdown."""
        if self.failed:
            return f"| {clients} | {name} | {self.failed} | | | | | | |"
        rate = f"{statistics.median(self.rounds):.1f} | {min(self.rounds):.1f} to {max(self.rounds):.1f}"
        times = " | ".join(f"{value:.0f}" for value in (*self.first_ms, *self.pause_ms))
        return f"| {clients} | {name} | {rate} | {times} | {self.same:.0%} |"


HEADS = ("clients", "server", "tokens/s", "least to most", "first token p50, ms", "p99", "pause p50, ms", "p99", "same")


def result_of(rounds: list[Round], reference: list[Round]) -> Result:
    """The figures of a server, beside the first one."""
    answers = [answer for one in rounds for answer in one.answers]
    texts = [answer.text for one in reference for answer in one.answers]
    first = [answer.moments[0] for answer in answers if answer.moments]
    pauses = [after - before for answer in answers for before, after in itertools.pairwise(answer.moments)]
    return Result(
        [round(one.tokens_per_second, 2) for one in rounds],
        quantiles_ms(first),
        quantiles_ms(pauses),
        statistics.mean(answer.tokens for answer in answers),
        statistics.mean(answer.text == text for answer, text in zip(answers, texts, strict=True)),
    )


def quantiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile of some times, in milliseconds; 0 of none."""
    order = sorted(seconds) or [0.0]
    return round(1e3 * statistics.median(order), 2), round(1e3 * order[-(-99 * len(order) // 100) - 1], 2)


def in_turns(servers: list[Server], rounds: list[list[list[str]]], tokens: int) -> dict[str, Result]:
    """Ask all servers in turns; the first of the rounds is not counted. A server that fails is not asked again."""
    found, failed = {server.name: [] for server in servers}, {}
    for prompts in rounds:
        for server in servers:
            if server.name not in failed:
                try:
                    with in_use(server):
                        found[server.name].append(asyncio.run(round_of(server.url, prompts, tokens)))
                except openai.OpenAIError as error:
                    failed[server.name] = f"failed: {type(error).__name__} {' '.join(str(error).split())[:80]}"
    reference = next((found[server.name][1:] for server in servers if server.name not in failed), [])
    return {
        server.name: Result(failed=failed[server.name])
        if server.name in failed
        else result_of(found[server.name][1:], reference)
        for server in servers
    }


def passages(texts: list[Path], clients: int, each: int, characters: int, beginning: int, seed: int) -> list[list[str]]:
    """Prompts of half to all of `characters`, behind a common beginning."""
    whole, rng = "\n".join(path.read_text(encoding="utf-8") for path in texts), random.Random(seed)

    def passage() -> str:
        size = rng.randint(characters // 2, characters)
        start = rng.randrange(len(whole) - size)
        return whole[:beginning] + whole[start : start + size]

    return [[passage() for _ in range(each)] for _ in range(clients)]


def add_load(parser: argparse.ArgumentParser) -> None:
    """The options that say what clients ask."""
    parser.add_argument("--texts", nargs="+", type=Path, required=True, help="files with text")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    parser.add_argument("--characters", type=int, default=200, help="of the longest prompt")
    parser.add_argument("--beginning", type=int, default=0, help="characters with which all prompts begin")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--rounds", type=int, default=3, help="that are counted; one more warms up")
    parser.add_argument("--out", type=Path, help="a file of JSON for all figures")


def measured(servers: dict[str, str], options: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """The figures by number of clients and server; prints a table."""
    found = {}
    with tempfile.TemporaryDirectory() as logs, started(servers, Path(logs)) as made:
        print(f"| {' | '.join(HEADS)} |\n{'| --- ' * len(HEADS)}|", flush=True)
        for clients in options.clients:
            sizes = options.each, options.characters, options.beginning
            of_round = [
                passages(options.texts, clients, *sizes, seed=1000 * clients + number)
                for number in range(options.rounds + 1)
            ]
            results = in_turns(made, of_round, options.tokens)
            print("\n".join(result.row(name, clients) for name, result in results.items()), flush=True)
            found[str(clients)] = {name: asdict(result) for name, result in results.items()}
    return found


def write(out: Path | None, found: dict, options: argparse.Namespace, **more) -> None:
    """Write the figures with the machine, the versions and the settings."""
    if out:
        settings = {name: str(value) for name, value in vars(options).items()}
        whole = {"figures": found, "machine": machine(), "versions": versions(), "settings": settings, **more}
        out.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Print a row for each server and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", required=True, help="NAME=ADDRESS or NAME=COMMAND of each")
    add_load(parser)
    options = parser.parse_args(argv)
    write(options.out, measured(named(options.servers), options), options)


if __name__ == "__main__":
    main()
