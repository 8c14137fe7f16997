"""The page that shows a model in use, as one HTML file that loads nothing: a server answers it, or what is in it.

Its scripts ask by three functions: `startAsking`, `whole` and `choices`. `asking.js` has them for a server.
"""

import json
from collections.abc import Mapping, Sequence

import yaml
from markupsafe import Markup

from tpullm.report.language import ENGLISH
from tpullm.report.rendering import policy_hash, render, source

PACKAGE = "tpullm.serving"
SCRIPTS = ("markdown.js", "message.js", "chat.js", "next_tokens.js", "attention_picture.js", "start.js")


def page(asking: Sequence[str], may: str, data: Mapping[str, str], is_file: bool) -> tuple[str, str]:
    """The HTML, and its content security policy.

    Args:
        asking: the scripts that ask the model.
        may: what the policy allows or forbids beside its own script and style.
        data: texts that scripts find by these ids; they hold no `<`.
        is_file: whether the page is a file, which has the policy in it, since no header comes with it.
    """
    style = source("colours.css") + source("page.css", PACKAGE) + source("attention.css")
    script = "".join(source(name, PACKAGE) for name in (*asking, *SCRIPTS))
    script = f"const answerPointer = {source('attention.js').strip()};\n{script}"
    # With Trusted Types no script can make a text into HTML.
    policy = (
        f"default-src 'none'; script-src '{policy_hash(script)}'; style-src '{policy_hash(style)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'{may}"
    )
    held = {"texts": as_data(page_texts()), **data}
    assert not any("<" in text for text in held.values()), "a text could end its element"
    marked = {name: Markup(text) for name, text in (("style", style), ("script", script))}
    data = {name: Markup(text) for name, text in held.items()}
    return render("page.html", ENGLISH, PACKAGE, data=data, policy=policy if is_file else "", **marked), policy


def as_data(value: object) -> str:
    """JSON that can't end its element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def page_texts() -> dict[str, dict[str, str]]:
    """Every text of the page, by its name and its language."""
    return yaml.safe_load(source("texts.yaml", PACKAGE))
