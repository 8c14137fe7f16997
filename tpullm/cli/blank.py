"""Fill 【?】 with words and their probabilities. The text on both sides of the blank counts."""

from tpullm.cli.options import add_json, print_json


def add_arguments(parser) -> None:
    """The options of `tpullm blank`."""
    parser.add_argument("model", metavar="MODEL", help="a run (its pretrained model), a stage, or one checkpoint")
    parser.add_argument("text", type=str, help="a text with one 【?】, from the beginning of a document")
    parser.add_argument("--count", type=int, default=10, help="how many words; 0: all that were found")
    add_json(parser)


def main(arguments) -> None:
    """Load the model, find the words and show them."""
    from tpullm.engine.session import load_session
    from tpullm.evaluation.blank import fill_blank
    from tpullm.report.tables import WIDTH, bar, show

    # Tuning on conversations changes what is likely in plain text, so a run means its pretrained model here.
    words = fill_blank(load_session(arguments.model, tuned=False), arguments.text, max(0, arguments.count))
    if arguments.json:
        found = [{"word": word, "probability": probability} for word, probability in words]
        return print_json({"text": arguments.text, "words": found})
    most = words[0][1]
    shown = [(word, share) for word, share in words if share >= 0.0005]  # else it would be written as 0.0%
    rows = [(word, f"{share:6.1%}", bar(max(share / most, 1 / WIDTH))) for word, share in shown]
    show(arguments.text, ("", "", ""), rows)
