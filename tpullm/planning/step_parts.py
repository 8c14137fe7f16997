"""What part of a step an instruction belongs to, by the place in the traced function that it is from."""

import re

from tpullm.planning.schedule import Item

# The first that fits counts. MaxText's names are there too: one estimator for its program and ours.
PLACES = {
    "optimizer": r"\b(optimizer|adam\w*|apply_updates|clip\w*)\b",
    "loss": r"\b(loss\w*|logits\w*|cross_entropy\w*)\b",
    "embedding": r"\b(embedding|token_embedder)\b",
    "attention kernel": r"splash",
    "attention": r"attention|\b(rotary|rope)\b",
    "experts": r"\b(experts?|moe\w*|router)\b",
    "feed-forward": r"feed_forward|\bmlp\b",
}


def part_of(item: Item) -> str:
    """A key of `PLACES`, `waiting` for collectives and other memories, or `other`."""
    if item.busy_seconds:
        return "waiting"
    operation = f"{item.instruction.operation} {item.instruction.name}"
    return next((part for part, pattern in PLACES.items() if re.search(pattern, operation)), "other")
