"""Decoding: tokens a second of tpullm and of transformers' `generate`, for one prompt and for eight."""

from collections.abc import Mapping

from clock import Clock
from figures import OURS, compare
from sizes import BATCHES, DECODED, NEW_TOKENS
from turns import take_turns, warm

# `generate` as most users call it, with its default cache ...
PEERS = {
    "torch f32": {"compute": "float32", "compiled": False},
    "torch bf16": {"compute": "bfloat16", "compiled": False},
}
# ... and in its fastest form on a CPU.
COMPILED_PEERS = {
    "torch f32 static cache compiled": {"compute": "float32", "compiled": True},
    "torch bf16 static cache compiled": {"compute": "bfloat16", "compiled": True},
}
ROUNDS = 5
SECONDS = 110.0  # expected on two cores, for the time left


def measure(rounds: int | None, environment: Mapping[str, str], clock: Clock) -> dict:
    """Every program with every batch in each round: `{"batches": {batch: ...}, ...}`."""
    rounds = rounds or ROUNDS
    programs = {OURS: ("ours:decoding", {})}
    programs |= {name: ("peers:decoding", choice) for name, choice in (PEERS | COMPILED_PEERS).items()}
    with warm(programs, environment, OURS, lambda share, message: clock.tell("decode", 0.5 * share, message)) as ready:
        rates = {batch: {name: [] for name in ready.workers} for batch in BATCHES}
        for number in range(1, rounds + 1):
            for batch, by_name in rates.items():
                (answers,) = take_turns(ready.workers, 1, dict.fromkeys(ready.workers, batch))
                for name, answer in answers.items():
                    by_name[name].append(batch * NEW_TOKENS / answer["seconds"])
            now = ", ".join(f"{rates[batch][OURS][-1]:,.0f} with batch {batch}" for batch in BATCHES)
            clock.tell("decode", 0.5 + 0.5 * number / rounds, f"round {number} of {rounds}: tpullm {now} (tokens/s)")
        batches = {str(batch): _compared(by_name) for batch, by_name in rates.items()}
        return {"size": DECODED, "compute": ready.facts[OURS]["compute"], "batches": batches, "failed": ready.failed}


def _compared(rates: Mapping[str, list[float]]) -> dict:
    """The ratio to the default way to call `generate`, and `ratio_to_fastest` to its fastest way."""
    usual = compare({name: values for name, values in rates.items() if name not in COMPILED_PEERS})
    everything = compare(rates)
    fastest = {"ratio_to_fastest": everything["ratio"], "fastest_peer": everything["best_peer"]}
    return usual | fastest | {"tokens_per_second": everything["tokens_per_second"]}
