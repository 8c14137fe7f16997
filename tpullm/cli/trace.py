"""Find the documents that hold a passage, or have an address or a hash, and the steps of pretraining that read them.

A document that was dropped is found by its address or hash, with the reason; a copy also by its text.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpullm.cli.data import described_origin
from tpullm.cli.options import add_json, print_json
from tpullm.corpus import document_files, tracing
from tpullm.corpus.tracing import Hit, Wanted
from tpullm.data.stream import pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.formats.models import left_out
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.system import log
from tpullm.system.errors import UserError
from tpullm.system.language import spoken
from tpullm.system.process import cores

SHOWN_STEPS = 10
SHOWN_DOCUMENTS = 100
_ROWS_AT_ONCE = 1 << 16


def add_arguments(parser) -> None:
    """`--passage`, `--url`, `--hash` and `--json`."""
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--passage", metavar="TEXT", default="", help="documents that hold TEXT, letter by letter")
    wanted.add_argument("--url", default="", help="documents from this address")
    wanted.add_argument("--hash", metavar="HEX", default="", help="documents whose SHA-256 begins like this")
    add_json(parser)


def main(recipe: Recipe, run: Path, arguments) -> None:
    """Print what was found; `UserError` if there are no documents, or nothing is asked for."""
    wanted = Wanted(arguments.passage, arguments.url, arguments.hash.lower())
    if wanted == Wanted():
        raise UserError("trace: an empty text is in every document; write --passage TEXT, --url URL or --hash HEX")
    documents = run / "documents"
    if not (documents / manifest.FILE).exists():
        raise UserError(f"{documents}: no finished documents; run `tpullm collect` first")
    parts = document_files.parts(documents)
    with log.progress("trace", len(parts), "parts") as advance:
        hits = tracing.find(documents, wanted, cores(), lambda: advance(1))
    steps = read_in(recipe, run, hits)
    if arguments.json:
        found = [{**dataclasses.asdict(hit), "steps": own} for hit, own in zip(hits, steps, strict=True)]
        return print_json(found)
    if not hits:
        return print(spoken(f"no document of {documents} has it"))
    training = sum(hit.number >= 0 for hit in hits)
    print(spoken(f"{len(hits):,} documents have it, {training:,} of them for training"))
    for hit, own in list(zip(hits, steps, strict=True))[:SHOWN_DOCUMENTS]:
        print(f"{hit.source:<12} {hit.facts['hash'][:16]}  {spoken(hit.fate)}: {hit.shown}")
        print(f"         {described_origin(hit.facts)}")
        if own:
            more = f" and {len(own) - SHOWN_STEPS:,} more" if len(own) > SHOWN_STEPS else ""
            print(spoken(f"         read in the steps {', '.join(map(str, own[:SHOWN_STEPS]))}{more}"))
    if len(hits) > SHOWN_DOCUMENTS:
        print(spoken(f"and {len(hits) - SHOWN_DOCUMENTS:,} more; --json has all"))


def read_in(recipe: Recipe, run: Path, hits: Sequence[Hit]) -> list[list[int]]:
    """The steps of pretraining that read each document, in order; none before there are tokens."""
    read: list[set[int]] = [set() for _ in hits]
    places = {(hit.source, hit.number): place for place, hit in enumerate(hits) if hit.number >= 0}
    if not places or not (run / "tokens" / manifest.FILE).exists():
        return [[] for _ in hits]
    stream, steps = pretraining_stream(recipe, run).without(left_out(run / "pretrain")), recipe.pretrain.steps
    wanted: dict[str, dict[int, int]] = {}  # by source, the document in its store and the place of its hit
    for name in {name for name, _ in places}:
        numbers = np.array([number for source, number in places if source == name])
        found = TokenStore(run / "tokens" / name / "train").find(numbers)
        wanted[name] = {document: places[name, number] for number, document in found.items()}
    at_once = max(1, _ROWS_AT_ONCE // stream.batch_size)
    with log.progress("steps", steps, "steps") as advance:
        for first in range(0, steps, at_once):
            last = min(first + at_once, steps)
            for source, documents, own_steps in stream.documents_in(first, last):
                own = wanted.get(source, {})
                chosen = np.isin(documents, list(own))
                for document, step in zip(documents[chosen].tolist(), own_steps[chosen].tolist(), strict=True):
                    read[own[document]].add(step)
            advance(last - first)
    return [sorted(own) for own in read]
