"""How long readers wait: for a prompt whose beginning was read before, and beside a long prompt.

    tpullm serve MODEL
    python benchmarks/serving_waits.py --url http://127.0.0.1:8000/v1 [--out FILE]

MODEL has a context of 4,352 tokens, such as what `random_model.py FOLDER TEXT --context 4352` makes.

- `prefix`: the time to the first token of a prompt that begins with 1,000 tokens which were read before, beside that of
  one as long of which nothing was. It should be at most 0.15 times as long.
- `beside`: 8 texts are streamed, and a prompt of 4,000 tokens arrives. The longest time without a part of a stream
  while the prompt is read, beside the median time between two parts before. It should be at most 3 times as long.
  `before` is the longest one after all streams have begun and before the prompt: what the machine alone does.

Prompts are token ids, so the server's tokenizer takes no time.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from pathlib import Path

import openai
from figures import machine, versions

PREFIX, OWN = 1000, 24  # tokens
STREAMS, LONG = 8, 4000
AFTER = 0.2  # seconds that the streams are read after the prompt: how long the last wait was
BEGUN, USUAL = 20, 150  # parts of each stream when all have begun, and when the prompt arrives
MOST = {"prefix": 0.15, "beside": 3.0}


def tokens(count: int, seed: int) -> list[int]:
    """Random token ids that every vocabulary has, and that are no special tokens of our models."""
    return random.Random(seed).choices(range(20, 300), k=count)


async def first(client: openai.AsyncOpenAI, model: str, prompt: list[int]) -> float:
    """Seconds to the first token, which is the only one: alone, it may be a part of a character and no text yet.

    `client.completions` takes 16 ms for the types of 1,000 tokens, and 65 for 4,000, in which it reads no stream.
    """
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    began = time.perf_counter()
    await client.post("/completions", cast_to=object, body=body)
    return time.perf_counter() - began


async def prefix(client: openai.AsyncOpenAI, model: str, times: int) -> dict:
    """First tokens with and without a beginning that was read before, in turns."""
    common, with_it, without = tokens(PREFIX, 0), [], []
    await first(client, model, common + tokens(OWN, 1))
    for number in range(times):
        without.append(await first(client, model, tokens(PREFIX + OWN, 1000 + number)))
        with_it.append(await first(client, model, common + tokens(OWN, 2000 + number)))
    medians = statistics.median(with_it), statistics.median(without)
    return {
        "ratio": medians[0] / medians[1],
        "read before ms": 1e3 * medians[0],
        "read now ms": 1e3 * medians[1],
    }


async def beside(client: openai.AsyncOpenAI, model: str, times: int) -> dict:
    """Streams while a long prompt is read."""
    found = [await _beside(client, model, number) for number in range(times)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]} | {
        "ratios": [one["ratio"] for one in found]
    }


async def _beside(client: openai.AsyncOpenAI, model: str, number: int) -> dict:
    moments, are_usual = [[] for _ in range(STREAMS)], asyncio.Event()

    async def stream(own: list[float], seed: int) -> None:
        settings = {"temperature": 0, "stream": True, "max_tokens": LONG}
        parts = await client.completions.create(model=model, prompt=tokens(50, seed), **settings)
        async for _ in parts:
            own.append(time.perf_counter())
            if min(map(len, moments)) >= USUAL:
                are_usual.set()

    reading = [asyncio.create_task(stream(own, 100 * number + seed)) for seed, own in enumerate(moments)]
    waiting = asyncio.create_task(are_usual.wait())
    await asyncio.wait([waiting, *reading], return_when=asyncio.FIRST_COMPLETED)
    if ended := [task for task in reading if task.done()]:
        raise SystemExit(f"a stream ended early: {ended[0].exception() or 'the model wrote its end token'}")
    began = time.perf_counter()
    seconds = await first(client, model, tokens(LONG, 5000 + number))
    await asyncio.sleep(AFTER)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    usual = statistics.median(waits(moments, 0, began))
    return {
        "ratio": max(waits(moments, began, began + seconds)) / usual,
        "before": max(waits(moments, max(own[BEGUN] for own in moments), began)) / usual,
        "usual ms": 1e3 * usual,
        "prompt s": seconds,
    }


def waits(moments: list[list[float]], begin: float, end: float) -> list[float]:
    """Seconds between two parts of a stream, of those that touch the time from `begin` to `end`."""
    pairs = (pair for own in moments for pair in itertools.pairwise(own))
    return [after - before for before, after in pairs if after >= begin and before <= end]


async def measured(url: str, names: list[str], times: int) -> dict:
    """The figures of each measurement."""
    of_name = {"prefix": prefix, "beside": beside}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=900, max_retries=0) as client:
        model = (await client.models.list()).data[0].id
        return {name: await of_name[name](client, model, times) for name in names}


def main(argv: list[str] | None = None) -> int:
    """Print the figures; 1 if one is above what it should be at most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--only", nargs="+", choices=MOST, default=list(MOST))
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    found = asyncio.run(measured(options.url, options.only, options.times))
    for name, figures in found.items():
        shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if isinstance(value, float))
        print(f"{name}: {shown} (ratio at most {MOST[name]})")
    if options.out:
        whole = {"figures": found, "machine": machine(), "versions": versions()}
        options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return int(any(figures["ratio"] > MOST[name] for name, figures in found.items()))


if __name__ == "__main__":
    sys.exit(main())
