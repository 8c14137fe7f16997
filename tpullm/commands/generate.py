"""Continue a text. The text appears as it is generated; with --json it comes at the end, as one JSON value."""

import json
import sys

from tpullm.errors import UserError
from tpullm.inference.sampling_options import Sampling, add_options, from_options
from tpullm.log import say


def add_arguments(parser) -> None:
    """The options of `tpullm generate`."""
    parser.add_argument(
        "--model",
        required=True,
        help="a run directory, one of its stages, one checkpoint, or a folder in the format of Hugging Face",
    )
    parser.add_argument("--prompt", type=str, default="", help="the text to go on with; empty begins a document")
    parser.add_argument("--tokens", type=int, default=200, help="at most this many new tokens")
    parser.add_argument("--count", type=int, default=1, help="this many texts, with the seeds that follow each other")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--stop", type=str, default="", help="end before this text")
    parser.add_argument("--json", action="store_true", help="print one JSON value and nothing else")
    add_options(parser, Sampling())


def main(arguments) -> None:
    """Load the model and go on with the prompt."""
    sampling = from_options(arguments)
    for option in ("tokens", "count"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option}: {getattr(arguments, option)} is less than 1; use 1 or more")
    from tpullm.inference.session import load

    session = load(arguments.model, exact=False)
    results = [_one(session, arguments, sampling, arguments.seed + n) for n in range(arguments.count)]
    if arguments.json:
        print(json.dumps(results[0] if arguments.count == 1 else results, ensure_ascii=False))


def _one(session, arguments, sampling: Sampling, seed: int) -> dict:
    """One text: printed as it grows unless --json, and what --json tells of it."""
    from tpullm.inference.decode import stream
    from tpullm.inference.padding import fits
    from tpullm.inference.streaming import Meter, characters, until

    meter, text = Meter(), []
    prompt = [*session.tokenizer.begin, *session.tokenizer.encode(arguments.prompt)]
    fits(session, prompt, "--prompt")
    ids = meter.watch(stream(session, prompt, arguments.tokens, sampling, seed))
    parts = until(characters(session.tokenizer, ids), [arguments.stop])
    if not arguments.json:
        print(arguments.prompt, end="", flush=True)
    for part in parts:
        text.append(part)
        if not arguments.json:
            print(part, end="", flush=True)
    rate = meter.tokens_per_second
    if not arguments.json:
        print(flush=True)
        if sys.stderr.isatty():
            say(f"{len(meter.ids)} tokens" + (f", {rate:,.0f} tokens/s" if rate else ""))
    return {
        "prompt": arguments.prompt,
        "text": "".join(text),
        "tokens": len(meter.ids),
        "tokens_per_second": rate and round(rate, 1),
        "seed": seed,
        "ended": bool(meter.ids) and meter.ids[-1] in session.tokenizer.stop_ids,
    }
