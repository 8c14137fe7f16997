"""The reported figures: medians with their spread, ratios by round, the machine and the versions."""

import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

OURS = "tpullm"
PACKAGES = ("tpullm", "jax", "jaxlib", "torch", "transformers", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, smallest and largest."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    spread = {"median": median, "quartile1": low, "quartile3": high, "min": min(values), "max": max(values)}
    return {name: rounded(value) for name, value in spread.items()}


def rounded(value: float) -> float:
    """Round to five digits, more than any timing has."""
    return float(f"{value:.5g}")


def compare(rates: Mapping[str, Sequence[float]]) -> dict:
    """Compare tpullm with the best of the others.

    Args:
        rates: tokens a second of each program, by round.

    Returns:
        `tokens_per_second` of each, `best_peer` by median, `ratio` of the two medians, and `ratio_by_round`: its
        spread, with the two of the same round compared.
    """
    peers = {name: values for name, values in rates.items() if name != OURS}
    best = max(peers, key=lambda name: statistics.median(peers[name]))
    by_round = [ours / theirs for ours, theirs in zip(rates[OURS], rates[best], strict=True)]
    return {
        "ratio": rounded(statistics.median(rates[OURS]) / statistics.median(rates[best])),
        "ratio_by_round": summary(by_round),
        "best_peer": best,
        "tokens_per_second": {name: summary(values) for name, values in rates.items()},
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the measured packages; a package that isn't installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict:
    """Processor, cores that this process may use, its matmul instructions, memory."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    name, flags = re.search(r"model name\s*: (.*)", text), re.search(r"flags\s*: (.*)", text)
    known = flags[1].split() if flags else []
    return {
        "cpu": name[1] if name else platform.processor(),
        "cores": cores(),
        "flags": [flag for flag in FLAGS if flag in known],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
    }


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
