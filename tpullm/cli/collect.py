"""Step 1: read raw sources, and write clean, deduplicated documents with their licences and a data card.

It makes RUN/documents.
"""

import contextlib
import time
from pathlib import Path

from tpullm.corpus import collect, datacard, told
from tpullm.corpus.files.source_files import printable
from tpullm.corpus.filters import verdicts
from tpullm.evaluation import tasks
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.run.unfinished import Unfinished
from tpullm.system import storage
from tpullm.system.log import say
from tpullm.system.process.parts import Engine

_NAMES = 3  # of files, in one line


def main(recipe: Recipe, run: Path) -> None:
    """Make `RUN/documents`, unless it exists with the same sources and settings."""
    stage = run / "documents"
    with contextlib.ExitStack() as closing:
        work = closing.enter_context(Unfinished(run, "collect"))
        closing.callback(storage.remove_partials, stage / "parts")
        engine = closing.enter_context(Engine(recipe.engine, recipe.corpus.workers, run))
        inputs = manifest.inputs(*collect.inputs(recipe))
        if manifest.is_finished(stage, inputs):
            return say("documents: finished, skipped")
        start = time.monotonic()
        for line in verdicts.prepare(recipe.corpus):
            say(f"documents: {line}")
        questions = tasks.leak_questions(recipe.corpus.leaks.tasks)
        planned = collect.plan(recipe, inputs, run, work, questions)
        _say_what_is_left_out(planned)
        placed = collect.read(planned, recipe.corpus, engine)
        card = collect.finish(planned, placed, recipe)
        seconds = time.monotonic() - start
        facts = {"documents": card["documents"], "characters": card["characters"], "seconds": round(seconds, 2)}
        manifest.write(stage, inputs, **facts)
        collect.remove_old(stage)
        for name, found in card["encodings"].items():
            for encoding, n in found.items():
                which = "1 document is not UTF-8 and was" if n == 1 else f"{n:,} documents are not UTF-8 and were"
                say(f"documents: {name}: {which} read as {encoding}")
        for line in datacard.leak_lines(card):
            say(f"documents: {line}")
        for source in planned.sources:
            if source.kind == "files":
                own = [task for task in planned.tasks if task.source is source]
                for line in told.lines(source, planned.files[source.name], own, recipe, card["conversations"]):
                    say(f"documents: {source.name}: {line}")
        dropped = sum(sum(reasons.values()) for reasons in card["dropped"].values())
        say(
            f"documents: {card['documents']:,} with {card['characters']:,} characters in {seconds:.1f} s, "
            f"{dropped:,} dropped; see {stage / 'datacard.md'}"
        )


def _say_what_is_left_out(planned: collect.Plan) -> None:
    """Print a line for each source of which only a part is read."""
    for name, found in planned.files.items():
        if found.is_part:
            names = [printable(file.path.name) for file in found.read]
            say(
                f"documents: {name}: {_size(found.bytes_read)} of {_size(found.bytes_there)} are read, from "
                f"{len(found.read):,} of {found.files_there:,} files: {_first_names(names)}"
            )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _first_names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return f"{shown} and {len(names) - _NAMES:,} more" if len(names) > _NAMES else shown
