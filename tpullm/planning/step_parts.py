"""The part of a step that an instruction belongs to, by its place in the traced function."""

import re

from tpullm.planning.timeline import Item

# The first match counts. The patterns also match MaxText's names: one estimator serves its programs and ours.
PLACES = {
    "optimizer": r"\b(optimizer|adam\w*|apply_updates|clip\w*)\b",
    "loss": r"\b(loss\w*|logits\w*|cross_entropy\w*)\b",
    "embedding": r"\b(embedding|token_embedder)\b",
    "attention kernel": r"splash|triton_attention",
    "attention": r"attention|\b(rotary|rope)\b",
    "experts": r"\b(experts?|moe\w*|router)\b",
    "feed-forward": r"feed_forward|\bmlp\b",
}


def part_of(item: Item) -> str:
    """A key of `PLACES`, `waiting` for collectives and for transfers between memories, or `other`."""
    if item.busy_seconds:
        return "waiting"
    operation = f"{item.instruction.operation} {item.instruction.name}"
    return next((part for part, pattern in PLACES.items() if re.search(pattern, operation)), "other")
