"""Questions that a model is known to answer, for the page to begin with."""

import random
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from tpullm.run import manifest, stages
from tpullm.system import storage

if TYPE_CHECKING:
    from tpullm.formats.models import Model

MOST, MOST_CHARACTERS = 6, 100


def answered_questions(model: "Model") -> list[str]:
    """Held-out questions that `evaluate` asked this very model and that it answered rightly: short ones of all kinds.

    There are none if the run was not evaluated since the model was made.
    """
    made, results = (model.run / "evaluate" / name for name in (manifest.FILE, manifest.RESULTS))
    if not (made.exists() and results.exists() and (model.run / model.stage / manifest.FILE).exists()):
        return []
    asked = storage.read_json(made)["inputs"]["upstream"].get(model.stage)
    is_last = [model.stage] == stages.tuned(model.run)[-1:]  # which is the one that was asked
    if not is_last or asked != manifest.finished_identity(model.run / model.stage):
        return []
    answers = storage.read_json(results).get("answers", [])
    random.Random(0).shuffle(answers)  # neighbours differ in a word
    kinds: dict[str, list[str]] = {}
    for row in answers:
        if row["right"] and len(row["question"]) <= MOST_CHARACTERS:
            kinds.setdefault(row["kind"], []).append(row["question"])
    return list(filter(None, chain.from_iterable(zip_longest(*kinds.values()))))[:MOST]
