"""Data: tokens a second that a token store delivers, and how long the quickstart's training waits for them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from clock import Clock
from figures import rounded, summary
from quickstart import Quickstart, wait_share
from turns import Program, Worker, take_turns

from tpullm.data.stream import Stream
from tpullm.data.token_store import TokenStore, token_dtype, write_store
from tpullm.recipe.schema import TrainConfig

# Tokens of the whole store, and of a document on average. The quickstart's texts of everyday Japanese have 40 tokens,
# pages of documentation and files of code 1,000 and more; a store of over 64 MiB is read from the disk.
STORES = {
    "short documents": (10_000_000, 40),
    "long documents": (10_000_000, 1_000),
    "short documents, on disk": (40_000_000, 40),
    "long documents, on disk": (40_000_000, 1_000),
}
VOCABULARY = 2048
# Ways of reading: in the calling thread, or in threads that read ahead, as training does.
WAYS = {"batch_at": 0, "batches": TrainConfig().data_workers}
BATCHES = 2000  # in one turn
ROUNDS = 5
LINES = 4  # log lines of the training that waits; the first line, with the compilation, is left out
SECONDS = 55.0  # expected on two cores, for the time left


def measure(quickstart: Quickstart, environment: Mapping[str, str], clock: Clock) -> dict:
    """`tokens_per_second` of every store by way of reading, and `wait_share` of training."""
    rates = {}
    for number, name in enumerate(STORES, 1):
        rates[name] = _rates(write(name, quickstart.folder / name), environment)
        now = ", ".join(f"{way} {of['median'] / 1e6:.1f} M tokens/s" for way, of in rates[name].items())
        clock.tell("data", 0.5 * number / len(STORES), f"{name}: {now}")
    _, lines = quickstart.pretrain(quickstart.new_run("data"), LINES, TrainConfig().log_every, cache="data")
    share = wait_share(lines[1:])
    clock.tell("data", 1.0, f"training waits {share:.2%} of its time for data")
    return {"tokens_per_second": rates, "wait_share": rounded(share)}


def write(name: str, path: Path) -> Path:
    """A store of random tokens. The lengths of its documents are geometrically distributed, like those of texts."""
    tokens, mean_length = STORES[name]
    random = np.random.default_rng(0)
    lengths = 1 + random.geometric(1 / mean_length, tokens // mean_length)
    ids = random.integers(2**63, size=len(lengths), dtype=np.uint64)
    words = random.integers(VOCABULARY, size=lengths.sum(), dtype=np.uint16)
    write_store(path, [(words, lengths, ids)], token_dtype(VOCABULARY))
    return path


def _rates(store: Path, environment: Mapping[str, str]) -> dict[str, dict]:
    with contextlib.ExitStack() as stack:
        workers, rates = {}, {way: [] for way in WAYS}
        for way in WAYS:
            arguments = {"store": str(store), "way": way}
            workers[way] = stack.enter_context(Worker("data:reading", arguments, environment))
            workers[way].facts()
        for answers in take_turns(workers, ROUNDS, dict.fromkeys(workers, BATCHES)):
            for way, answer in answers.items():
                rates[way].append(answer["tokens"] / answer["seconds"])
    return {way: summary(values) for way, values in rates.items()}


def reading(store: str, way: str) -> Program:
    """Batches of the quickstart's shape, shuffled and packed. A unit is a batch; answers have the tokens."""
    config = TrainConfig()
    stream = Stream({"text": TokenStore(store)}, {"text": 1.0}, config.batch_size, config.sequence_length, seed=0)
    done = 0

    def run(count: int) -> dict:
        nonlocal done
        steps = range(done, done + count)
        done += count
        batches = stream.batches(steps.start, steps.stop, WAYS[way]) if WAYS[way] else map(stream.batch_at, steps)
        return {"tokens": sum(int(np.count_nonzero(batch.weights)) for batch in batches)}

    run(4)
    return Program(run, {})
