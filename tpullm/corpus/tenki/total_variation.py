"""The distance between two distributions over words. Without JAX, so that a notebook's pictures start quickly."""

from collections.abc import Mapping


def total_variation(model: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Half the sum of the absolute differences over all words of either: 0 is equal, 1 has no word in common."""
    return sum(abs(model.get(word, 0.0) - truth.get(word, 0.0)) for word in {**truth, **model}) / 2
