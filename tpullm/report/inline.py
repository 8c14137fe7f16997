"""Pictures of the report that stand alone, for a notebook: each brings the style that it needs.

Colours follow the notebook's own (`currentColor`), since its theme and that of the browser may differ.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from tpullm.report.charts import paired_bars, single_bars
from tpullm.report.corpus_section import example
from tpullm.report.html import Markup, join, phrase, tag
from tpullm.report.inputs import RunData
from tpullm.report.training_section import loss_charts
from tpullm.report.units import probability

WORDS = 6  # with bars; the others are added up
_RULE = re.compile(r"(?:^|(?<=\} ))(\.[\w-]+)[^{}\n]*\{[^{}]*\}", re.MULTILINE)
_OWN = "max-width:44rem;margin:.5rem 0;font-family:system-ui,sans-serif;line-height:1.5;"
# The last two rules undo what JupyterLab has for lists of terms.
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
    """A text as its tokens, coloured."""
    return _alone(example(list(split)))


def loss(data: RunData) -> str:
    """The loss of pretraining so far."""
    return _alone(join(loss_charts(data)))


def words(text: str, found: Sequence[tuple[str, float]], truth: Mapping[str, float] | None = None) -> str:
    """The words that may stand in a blank as bars, beside their true probabilities if those are known."""
    question = tag("p", phrase(text), class_="question")
    if truth is None:
        return _alone(join([question, single_bars([(word, p, probability(p)) for word, p in found[:WORDS]], whole=1)]))
    model = dict(found)
    every = sorted(model.keys() | truth.keys(), key=lambda word: -max(model.get(word, 0.0), truth.get(word, 0.0)))
    rows = [(word, model.get(word, 0.0), truth.get(word, 0.0)) for word in every]
    rest = ("other words", *(sum(row[column] for row in rows[WORDS:]) for column in (1, 2)))
    swatches = [
        tag("span", tag("i", class_=f"swatch {kind}"), name)
        for kind, name in (("c0", "the model"), ("truth", "the truth"))
    ]
    bars = paired_bars(rows[:WORDS], rest if max(rest[1:]) >= 0.005 else None)
    return _alone(join([question, tag("div", *swatches, class_="legend"), bars]))


def _alone(content: Markup) -> str:
    """With the rules of the report's style for the classes in it."""
    classes = {f".{name}" for names in re.findall(r'class="([^"]*)"', content) for name in names.split()}
    style = resources.files("tpullm.report").joinpath("style.css").read_text(encoding="utf-8")
    rules = "".join(rule[0] for rule in _RULE.finditer(style) if rule[1] in classes)
    return f'<div class="tpullm"><style>.tpullm{{{_OWN}{_COLOURS}{rules}{_LAST}}}</style>{content}</div>'
