"""Show the documents in the batch of one pretraining step: row, source, id, tokens, and first words of each piece.

Below each piece is where its document comes from: address, date, file and record, and licence, as far as known.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpullm.cli.options import add_json, print_json
from tpullm.corpus import document_files
from tpullm.data.batch import Batch
from tpullm.data.stream import Placed, pretraining_stream
from tpullm.formats.models import left_out
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.system.errors import UserError
from tpullm.system.language import spoken
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training import metrics


def add_arguments(parser) -> None:
    """`--step` and `--json`."""
    parser.add_argument("--step", type=int, required=True, help="a step of pretraining, from 0")
    add_json(parser)


def main(recipe: Recipe, run: Path, arguments) -> None:
    """Print the batch of `arguments.step`; `UserError` if there is no such step."""
    step, steps = arguments.step, recipe.pretrain.steps
    if not 0 <= step < steps:
        raise UserError(f"--step {step}: pretraining has the steps 0 to {steps - 1}; choose one of them")
    stage, tokenizer = run / "pretrain", load_tokenizer(run / "tokenizer")
    stream = pretraining_stream(recipe, run).without(left_out(stage))
    pieces = stream.documents_at(step)
    texts = beginnings_of_pieces(stream.batch_at(step), tokenizer, pieces)
    origins = origins_of(run / "documents", pieces)
    shown = list(zip(pieces, texts, origins, strict=True))
    if arguments.json:
        return print_json([{**dataclasses.asdict(piece), "text": text, **origin} for piece, text, origin in shown])
    epochs = ", ".join(f"{source} {epoch:.2f}" for source, epoch in stream.epoch_at(step).items())
    print(spoken(f"step {step}: {len(pieces)} pieces in {stream.batch_size} rows; times read before it: {epochs}"))
    rows = metrics.read_rows(stage / metrics.FILE) if (stage / metrics.FILE).exists() else []
    for bad in (bad for row in rows for bad in row.get("skipped", []) if bad["step"] == step + 1):  # from 1
        print(spoken(f"this step was skipped: loss {bad['loss']}, gradient norm {bad['grad_norm']}"))
    for piece, text, origin in shown:
        tokens = f"{piece.start}-{piece.start + piece.length - 1}"
        row, of = spoken("row"), spoken("tokens")
        print(f"{row} {piece.row:<4} {piece.source:<12} {piece.id}  {of} {tokens:<12} {text}")
        if origin:
            print(f"         {described_origin(origin)}")


def origins_of(documents: Path, pieces: Sequence[Placed]) -> list[dict[str, str]]:
    """Where the document of each piece comes from: file, record, address, date, licence; empty without documents."""
    if not (documents / manifest.FILE).exists():
        return [{} for _ in pieces]
    facts = {}
    for source in {piece.source for piece in pieces}:
        numbers = [piece.document for piece in pieces if piece.source == source]
        facts[source] = document_files.facts_at(documents, source, document_files.TRAIN, numbers)
    keys = ("file", "record", "url", "date", "licence")
    known = (facts[piece.source].get(piece.document, {}) for piece in pieces)  # tokens of others have no documents here
    return [{key: found[key] for key in keys if found} for found in known]


def described_origin(origin: dict[str, str]) -> str:
    """Where a document comes from, in one line: what is known of it."""
    place = " ".join(filter(None, (origin["file"], origin["record"]))) or spoken("generated")
    return "  ".join(filter(None, (origin["url"], origin["date"], place, origin["licence"])))


def beginnings_of_pieces(batch: Batch, tokenizer: Tokenizer, pieces: Sequence[Placed]) -> list[str]:
    """The text of the first tokens of each piece of a batch, in one line."""
    texts, columns = [], [0] * len(batch.inputs)  # of each row, where its next piece begins
    for piece in pieces:
        here = np.s_[piece.row, columns[piece.row] : columns[piece.row] + piece.length]
        tokens = np.append(batch.inputs[here], batch.targets[here][-1:])[:24]
        texts.append(tokenizer.decode(tokens.tolist()).replace("\n", "⏎"))
        columns[piece.row] += piece.length
    return texts
