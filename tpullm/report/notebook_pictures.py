"""Pictures of the report for a notebook: each brings the part of the style sheet that it needs.

Colours follow the notebook's text (`currentColor`), because the notebook's theme and the browser's may differ.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from tpullm.report.charts import WORDS, model_and_truth, single_bars, word_bars
from tpullm.report.collect_section import example
from tpullm.report.html import Markup, join, phrase, tag
from tpullm.report.language import probability
from tpullm.report.pretrain_section import loss_charts
from tpullm.report.run_data import RunData

_RULE = re.compile(r"(?:^|(?<=\} ))(\.[\w-]+)[^{}\n]*\{[^{}]*\}", re.MULTILINE)
_OWN = "max-width:44rem;margin:.5rem 0;font-family:system-ui,sans-serif;line-height:1.5;"
# The last two rules undo JupyterLab's style of description lists.
_LAST = (
    "figure{margin:.5rem 0}.plot.large{height:15rem}figcaption{color:var(--soft);font-size:.9rem}"
    ".question{margin:.5rem 0}.legend{margin-bottom:.5rem}"
    ".paired dt{float:none;width:auto;font-weight:inherit;white-space:nowrap}.paired dd{margin:0}"
)
_SHADE = "color-mix(in srgb, currentColor {}%, transparent)"
_COLOURS = (
    "--ink:currentColor;--accent:#2a9187;--c1:#c08330;--c2:#6f83c9;--c3:#b5637f;--c4:#7f954c;--c5:#8d979c;"
    "--t0:#2a918747;--t1:#c0833047;--t2:#6f83c947;--t3:#b5637f47;--t4:#7f954c47;"
    f"--soft:{_SHADE.format(70)};--line:{_SHADE.format(15)};--truth:{_SHADE.format(35)};"
)


def pieces(split: Sequence[tuple[str, int]]) -> str:
    """A text as its tokens, in colours."""
    return _alone(example(list(split)))


def loss(data: RunData) -> str:
    """The loss of pretraining so far."""
    return _alone(join(loss_charts(data)))


def words(text: str, found: Sequence[tuple[str, float]], truth: Mapping[str, float] | None = None) -> str:
    """The words that fit a blank as bars, beside their true probabilities if those are known."""
    question = tag("p", phrase(text), class_="question")
    if truth is None:
        return _alone(join([question, single_bars([(word, p, probability(p)) for word, p in found[:WORDS]], whole=1)]))
    model = dict(found)
    rows = [(word, model.get(word, 0.0), truth.get(word, 0.0)) for word in {**model, **truth}]
    return _alone(join([question, model_and_truth("the model", "the truth"), word_bars(rows, "other words")]))


def _alone(content: Markup) -> str:
    """The content with the rules of the report's style sheet for its classes."""
    classes = {f".{name}" for names in re.findall(r'class="([^"]*)"', content) for name in names.split()}
    style = resources.files("tpullm.report").joinpath("style.css").read_text(encoding="utf-8")
    rules = "".join(rule[0] for rule in _RULE.finditer(style) if rule[1] in classes)
    return f'<div class="tpullm"><style>.tpullm{{{_OWN}{_COLOURS}{rules}{_LAST}}}</style>{content}</div>'
