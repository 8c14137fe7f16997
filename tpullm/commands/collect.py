"""`tpullm collect`: raw sources → clean, licensed, deduplicated documents and a data card."""

import time
from pathlib import Path

from tpullm import manifest
from tpullm.config import Recipe
from tpullm.corpus import collect
from tpullm.log import say


def main(recipe: Recipe, run: Path) -> None:
    """Make `RUN/documents`, unless it was made from the same sources in the same way."""
    stage = run / "documents"
    inputs = manifest.inputs_hash(*collect.inputs(recipe))
    if manifest.is_finished(stage, inputs):
        say("documents: finished, skipped")
        return
    start = time.monotonic()
    card = collect.collect(recipe, stage, run / "downloads")
    seconds = time.monotonic() - start
    facts = {key: card[key] for key in ("documents", "characters")}
    manifest.write(stage, inputs, **facts, seconds=round(seconds, 2))
    dropped = sum(sum(reasons.values()) for reasons in card["dropped"].values())
    say(
        f"documents: {card['documents']:,} with {card['characters']:,} characters in {seconds:.1f} s, "
        f"{dropped:,} dropped; see {stage / 'datacard.md'}"
    )
