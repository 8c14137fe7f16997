"""Continue a text. It is printed while it is generated; with --json it is printed at the end, as one JSON value."""

import sys

from tpullm.cli import options
from tpullm.cli.serve import LONGEST
from tpullm.recipe.sampling import Sampling, add_options, from_options
from tpullm.system.log import say


def add_arguments(parser) -> None:
    """The options of `tpullm generate`."""
    options.add_model(parser)
    options.add_adapters(parser)
    options.add_weights(parser)
    parser.add_argument("--prompt", type=str, default="", help="the text to continue; empty: begin a document")
    parser.add_argument("--tokens", type=int, default=200, help="at most this many new tokens")
    parser.add_argument("--count", type=int, default=1, help="the number of texts; each has the next seed")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--stop", type=str, default="", help="stop before this text")
    options.add_reproducible(parser)
    options.add_json(parser)
    add_options(parser, Sampling())


def main(arguments) -> None:
    """Continue the prompt: each text is printed while it is generated, or with --json its values at the end."""
    sampling, shows = from_options(arguments), not arguments.json
    options.check_at_least_one(arguments, "tokens", "count")
    from tpullm.engine.engine import Engine
    from tpullm.engine.generation import stream_tokens
    from tpullm.engine.request import Meter, until_stop_text, whole_characters
    from tpullm.engine.session import check_context, load_with_adapters

    results = []
    for adapter, session in load_with_adapters(arguments.model, arguments.adapter, arguments.weights or "").items():
        if len(arguments.adapter) > 1 and shows:
            print(f"{adapter}:", flush=True)
        engine, tokenizer = None, session.tokenizer
        if arguments.reproducible:  # with as many rows of the same length as `serve` has
            engine = Engine(session, longest=min(LONGEST, session.context_length), reproducible=True)
        prompt = [*tokenizer.begin, *tokenizer.encode(arguments.prompt)]
        check_context(session, prompt, "--prompt")
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            meter, text = Meter(), []
            ids = meter.watch(stream_tokens(session, prompt, arguments.tokens, sampling, seed, engine=engine))
            print(arguments.prompt * shows, end="", flush=True)
            for part in until_stop_text(whole_characters(tokenizer, ids), [arguments.stop]):
                text.append(part)
                print(part * shows, end="", flush=True)
            rate = meter.tokens_per_second
            if shows:
                print(flush=True)
            if shows and sys.stderr.isatty():
                say(f"{len(meter.ids)} tokens" + (f", {rate:,.0f} tokens/s" if rate else ""))
            ended = bool(meter.ids) and meter.ids[-1] in tokenizer.stop_ids
            found = {"prompt": arguments.prompt, "text": "".join(text), "tokens": len(meter.ids)}
            found |= {"tokens_per_second": rate and round(rate, 1), "seed": seed, "ended": ended}
            results.append(({"adapter": adapter} if adapter else {}) | found)
    if arguments.json:
        options.print_json(results[0] if len(results) == 1 else results)
