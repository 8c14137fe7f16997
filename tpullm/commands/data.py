"""Show the documents in the batch of one pretraining step: row, source, id, tokens, and first words of each piece."""

import dataclasses
from pathlib import Path

import numpy as np

from tpullm.checkpoint.models import left_out
from tpullm.commands.options import add_json, print_json
from tpullm.data.stream import Placed, Stream, pretraining_stream
from tpullm.errors import UserError
from tpullm.recipe.schema import Recipe
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer
from tpullm.training import metrics

SHOWN_TOKENS = 24


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
    texts = [beginning(stream, tokenizer, piece) for piece in pieces]
    if arguments.json:
        found = [{**dataclasses.asdict(piece), "text": text} for piece, text in zip(pieces, texts, strict=True)]
        return print_json(found)
    epochs = ", ".join(f"{source} {epoch:.2f}" for source, epoch in stream.epoch_at(step).items())
    print(f"step {step}: {len(pieces)} pieces in {stream.batch_size} rows; times read before it: {epochs}")
    for bad in skipped(stage, step):
        print(f"this step was skipped: loss {bad['loss']}, gradient norm {bad['grad_norm']}")
    for piece, text in zip(pieces, texts, strict=True):
        tokens = f"{piece.start}-{piece.start + piece.length - 1}"
        print(f"row {piece.row:<4} {piece.source:<12} {piece.id}  tokens {tokens:<12} {text}")


def skipped(stage: Path, step: int) -> list[dict]:
    """What the log says of `step`, from 0, if it was skipped: an entry, or none."""
    rows = metrics.read(stage / metrics.FILE) if (stage / metrics.FILE).exists() else []
    return [bad for row in rows for bad in row.get("skipped", []) if bad["step"] == step + 1]


def beginning(stream: Stream, tokenizer: Tokenizer, piece: Placed) -> str:
    """The text of the first tokens of a piece, in one line."""
    count = min(SHOWN_TOKENS, piece.length + 1)
    tokens, _ = stream.sources[piece.source].read(*(np.array([n]) for n in (piece.document, piece.start, count)))
    return tokenizer.decode(tokens.tolist()).replace("\n", "⏎")
