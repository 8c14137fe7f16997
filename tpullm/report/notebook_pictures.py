"""Pictures of the report for a notebook: each brings the part of the style sheet that it needs.

Colours follow the notebook's text (`currentColor`), because the notebook's theme and the browser's may differ.
"""

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tpullm.report.charts import WORDS
from tpullm.report.language import ENGLISH
from tpullm.report.page import losses
from tpullm.report.rendering import environment, render, source
from tpullm.report.run_data import RunData
from tpullm.system.words import probability

_RULE = re.compile(r"(?:^|(?<=\} ))(\.[\w-]+)[^{}\n]*\{[^{}]*\}", re.MULTILINE)


def pieces(split: Sequence[tuple[str, int]]) -> str:
    """A text as its tokens, in colours."""
    return _alone(environment().get_template("pieces.html").make_module({"text": ENGLISH}).example(split))


def loss(data: RunData) -> str:
    """The loss of pretraining so far."""
    return _alone(render("loss.html", data.language, losses=losses(data)))


def words(text: str, found: Sequence[tuple[str, float]], truth: Mapping[str, float] | None = None) -> str:
    """The words that fit a blank as bars, beside their true probabilities if those are known."""
    alone, model = [(word, p, probability(p)) for word, p in found[:WORDS]], dict(found)
    compared = (
        None if truth is None else [(word, model.get(word, 0.0), truth.get(word, 0.0)) for word in {**model, **truth}]
    )
    return _alone(render("words.html", ENGLISH, question=text, alone=alone, compared=compared))


def _alone(content: Markup) -> Markup:
    """The content with the rules of the report's style sheet for its classes."""
    classes = {f".{name}" for names in re.findall(r'class="([^"]*)"', content) for name in names.split()}
    rules = "".join(rule[0] for rule in _RULE.finditer(source("style.css")) if rule[1] in classes)
    return render("notebook.html", ENGLISH, rules=Markup(rules), content=content)
