"""Step 1: read raw sources, and write clean, deduplicated documents with their licences and a data card.

It makes RUN/documents.
"""

import time
from pathlib import Path

from tpullm import manifest
from tpullm.config import Recipe
from tpullm.corpus import collect
from tpullm.log import say
from tpullm.sharing import ALL, Share, SharedWork


def main(recipe: Recipe, run: Path, share: Share = ALL) -> None:
    """Make `RUN/documents`, unless it was made from the same sources in the same way."""
    with SharedWork(run, "collect", share) as work:
        _make(recipe, run, work)


def _make(recipe: Recipe, run: Path, work: SharedWork) -> None:
    stage = run / "documents"
    inputs = manifest.inputs_hash(*collect.inputs(recipe))
    if manifest.is_finished(stage, inputs):
        return say("documents: finished, skipped")
    start = time.monotonic()
    planned = collect.plan(recipe, inputs, run / "downloads", work)
    collect.read(planned, recipe.corpus.workers, work, lambda: manifest.is_finished(stage, inputs))
    if not work.share.is_first:
        return work.wait_for_first("the documents", lambda: manifest.is_finished(stage, inputs))
    card = collect.write(planned, recipe, stage, work)
    seconds = time.monotonic() - start
    facts = {key: card[key] for key in ("documents", "characters")}
    manifest.write(stage, inputs, **facts, seconds=round(seconds, 2))
    dropped = sum(sum(reasons.values()) for reasons in card["dropped"].values())
    say(
        f"documents: {card['documents']:,} with {card['characters']:,} characters in {seconds:.1f} s, "
        f"{dropped:,} dropped; see {stage / 'datacard.md'}"
    )
