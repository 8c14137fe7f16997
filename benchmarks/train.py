"""Training: tokens a second of tpullm and of the four ways to train the peer, and the machine's peak."""

import contextlib
from collections.abc import Mapping, Sequence

from clock import Clock
from figures import OURS, compare, rounded, summary
from sizes import SIZES
from turns import Worker, take_turns, warm

PEERS = {
    "torch bf16": {"compute": "bfloat16", "compiled": False},
    "torch bf16 compiled": {"compute": "bfloat16", "compiled": True},
    "torch f32": {"compute": "float32", "compiled": False},
    "torch f32 compiled": {"compute": "float32", "compiled": True},
}
PEAKS = {"tpullm peak": "ours:peak", "torch peak": "peers:peak"}
PEAK_PRODUCTS = 4  # in one turn
SECONDS = {"0.8M": 85.0, "12M": 145.0, "50M": 165.0}  # expected on two cores, for the time left


def measure(sizes: Sequence[str], rounds: int | None, environment: Mapping[str, str], clock: Clock) -> dict:
    """Every size, one after the other: `{"peak": ..., "sizes": {size: ...}}`.

    The peak is the fastest bfloat16 matmul of either library in any round, so that it is the machine's and not a
    library's. MFU is the share of it that tpullm's median step reaches.
    """
    results, peaks = {}, {name: [] for name in PEAKS}
    with contextlib.ExitStack() as stack:
        peak_workers = {}
        for name, program in PEAKS.items():
            peak_workers[name] = stack.enter_context(Worker(program, {}, environment))
            peak_workers[name].facts()
        for size in sizes:
            results[size] = _measure_size(size, rounds or SIZES[size].rounds, environment, clock, peak_workers, peaks)
    fastest = max(max(values) for values in peaks.values())
    for size, result in results.items():
        achieved = result["tokens_per_second"][OURS]["median"] * result["flops_per_token"]
        results[size] = {"mfu": rounded(achieved / fastest), **result}
    peak = {"flops": rounded(fastest), **{name: summary(values) for name, values in peaks.items()}}
    return {"peak": peak, "sizes": results}


def _measure_size(size: str, rounds: int, environment, clock: Clock, peak_workers, peaks) -> dict:
    chosen, part = SIZES[size], f"train {size}"
    programs = {OURS: ("ours:training", {"size": size})}
    programs |= {name: ("peers:training", {"size": size, **choice}) for name, choice in PEERS.items()}
    with warm(programs, environment, OURS, lambda share, message: clock.tell(part, 0.5 * share, message)) as ready:
        parameters = {name: facts["parameters"] for name, facts in ready.facts.items()}
        assert len(set(parameters.values())) == 1, f"{size}: not the same model: {parameters}"
        counts = dict.fromkeys(ready.workers, chosen.steps) | dict.fromkeys(peak_workers, PEAK_PRODUCTS)
        rates = {name: [] for name in ready.workers}
        for number, answers in enumerate(take_turns(ready.workers | peak_workers, rounds, counts), 1):
            for name in ready.workers:
                rates[name].append(chosen.tokens * chosen.steps / answers[name]["seconds"])
            for name in peak_workers:
                peaks[name].append(answers[name]["flops"])
            best = max(values[-1] for name, values in rates.items() if name != OURS)
            told = f"tpullm {rates[OURS][-1]:,.0f}, the best of torch {best:,.0f} tokens/s"
            clock.tell(part, 0.5 + 0.5 * number / rounds, f"round {number} of {rounds}: {told}")
        return {**compare(rates), **ready.facts[OURS], "failed": ready.failed}
