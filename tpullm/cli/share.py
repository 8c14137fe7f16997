"""Write a model as one HTML file that a friend opens in a browser: chat, next tokens, blanks, without a network.

The file of a tuned run has two models, if both fit: the tuned one answers, the pretrained one reads texts.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tpullm.cli.options import add_model
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say

if TYPE_CHECKING:
    import numpy as np

    from tpullm.engine.session import Found


def add_arguments(parser) -> None:
    """The options of `tpullm share`."""
    add_model(parser)
    parser.add_argument("out", nargs="?", default="", help="the HTML file to write (default RUN/share.html)")


def main(arguments) -> None:
    """Find the model, and for plain text the one before tuning; check that a page computes them; write it."""
    from tpullm.engine.session import find_model
    from tpullm.model.architecture import Architecture, parameter_count
    from tpullm.serving.answered_questions import answered_questions
    from tpullm.serving.shared_page import LARGEST, check_config, shared_page
    from tpullm.tokenizer import difference

    path = storage.path(arguments.model)
    found = find_model(arguments.model)
    if not arguments.out and not found.model:
        raise UserError(f"{path}: is in no run directory; name the HTML file to write after it")
    out = storage.path(arguments.out) if arguments.out else found.model.run / "share.html"
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give the name of an HTML file")
    parameters = parameter_count(Architecture(found.config).shapes)
    check_config(found.config, parameters, str(path))
    base = find_model(arguments.model, tuned=False) if found.model and found.talks else found
    is_before = base.model and (base.model.directory, base.model.step) != (found.model.directory, found.model.step)
    has_both = bool(is_before) and base.config == found.config and not difference(base.tokenizer, found.tokenizer)
    if has_both and 2 * parameters > LARGEST:
        say(f"share: both models would have more than {LARGEST:,} parameters; the page has the tuned one alone")
        has_both = False
    tuned = _parameters(found)
    name = found.model.recipe["name"] if found.model else Path(path.name).stem
    text, chat = _parameters(base) if has_both else tuned, tuned if found.talks else None
    questions = answered_questions(found.model) if found.model else []
    html = shared_page(name, found.config, found.tokenizer, text, chat, questions)
    storage.write_text(out, html)
    megabytes, what = len(html.encode()) / 1e6, found.model.stage if found.model else name
    if has_both:
        say(f"share: {base.model.stage} and {what}, {parameters:,} parameters each; see {out} ({megabytes:.1f} MB)")
    else:
        say(f"share: {what}, {parameters:,} parameters; see {out} ({megabytes:.1f} MB)")


def _parameters(found: "Found") -> dict[str, "np.ndarray"]:
    """The parameters of a model in float32, by their flat names."""
    import jax.numpy as jnp
    import numpy as np

    from tpullm.engine.session import built_on_mesh, parameter_targets
    from tpullm.formats.huggingface import tensors

    architecture, mesh = built_on_mesh(found)
    params = found.params(architecture, parameter_targets(architecture, mesh, jnp.dtype("float32")), False)
    return {name: np.asarray(array, np.float32) for name, array in tensors.flat(params).items()}
