"""Draw which earlier tokens each token attends to: one HTML file, with each layer and head, and their average."""

from tpullm.cli.options import add_model
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say

# The verb has to attend to its object.
EXAMPLE = "私はリンゴを食べるのが好きです。"


def add_arguments(parser) -> None:
    """The options of `tpullm attention`."""
    add_model(parser)
    parser.add_argument("text", type=str, nargs="?", default=EXAMPLE, help="the text to look at")
    parser.add_argument("--out", type=str, default="", help="the HTML file to write (default RUN/attention.html)")


def main(arguments) -> None:
    """Load the model, read the text and write the picture."""
    from tpullm.engine.session import load_session
    from tpullm.evaluation.scoring import attention_weights
    from tpullm.formats.models import find
    from tpullm.report.pictures import MOST_TOKENS, attention_page

    if not arguments.text:
        raise UserError("text: is empty; give a sentence to look at")
    tokens, found = attention_weights(load_session(arguments.model), arguments.text)
    if len(tokens) > MOST_TOKENS:
        raise UserError(f"text: {len(tokens)} tokens, and the picture shows {MOST_TOKENS} at most; give a shorter text")
    path = storage.path(arguments.out) if arguments.out else find(arguments.model).run / "attention.html"
    storage.write_text(path, attention_page(tokens, found))
    say(f"attention: {len(tokens)} tokens, {found.shape[0]} layers with {found.shape[1]} heads; see {path}")
