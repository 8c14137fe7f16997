"""Pictures for a notebook, and the attention weights also for the report or a page of their own: HTML with SVG.

Labels are text, so the reader's fonts show them, Japanese too. Colours follow the page (`currentColor`, and `--accent`
if the page sets it), in light and dark: a notebook's theme and the browser's may differ. The script of the attention
weights is `templates/attention.js`. Other pictures bring the part of the report's style sheet that they need.

Shapes: T tokens, N heads, L layers.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from tpullm.report.charts import WORDS
from tpullm.report.language import ENGLISH, Language
from tpullm.report.rendering import environment, render, source
from tpullm.report.result_sections import losses
from tpullm.report.run_data import RunData
from tpullm.system.words import probability

CELL = 30  # pixels
MOST_TOKENS = 96  # of attention: more labels and cells cannot be told apart
_FONT = 14  # as in attention.css
_RULE = re.compile(r"(?:^|(?<=\} ))(\.[\w-]+)[^{}\n]*\{[^{}]*\}", re.MULTILINE)
_SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def attention_html(tokens: list[str], weights_LNTT: np.ndarray, text: Language = ENGLISH, alone: bool = True) -> Markup:
    """A `<figure>` that shows how much each token attends to each earlier one: a grid, and arcs over the text.

    The reader chooses a layer and a head, or the average. A token under the pointer shows its shares in words.

    Args:
        tokens: the text of each token, T of them.
        weights_LNTT: `[l, n, t, s]` is how much token t attends to token s; each row sums to 1.
        text: the language of the picture.
        alone: with its style sheet and its script. The report has both once, at its begin and its end.
    """
    shown = ["".join(_SHOWN.get(character, character) for character in token) for token in tokens]
    L, N, T, _ = weights_LNTT.shape
    rows, columns = np.tril_indices(T)
    per_mille = np.rint(weights_LNTT[:, :, rows, columns] * 1000).astype(int).tolist()
    words = {
        "share": text("{token} {share}", token="{token}", share="{share}"),
        "many": text("{token} looks at: {others}", token="{token}", others="{others}"),
        "one": text("{token} looks at {other}: {share}", token="{token}", other="{other}", share="{share}"),
        "comma": text(", "),
    }
    held = {"tokens": shown, "weights": per_mille, "cell": CELL, "words": words}
    data = json.dumps(held, ensure_ascii=False, separators=(",", ":"))
    average = weights_LNTT.mean(axis=(0, 1))
    # In words: the five largest shares of the token that attends most to one that is neither beside it nor the start.
    afar = np.tril(average, -2)
    afar[:, :1] = 0
    t = int(np.unravel_index(afar.argmax(), afar.shape)[0]) if afar.any() else T - 1
    most = np.argsort(-average[t, : t + 1], kind="stable")[:5]
    others = text(", ").join(text("{token} {share}", token=shown[s], share=f"{average[t, s]:.0%}") for s in most)
    widths = [max(_width_in_pixels(token), 2 * _FONT) + 18 for token in shown]
    starts = np.cumsum([0.0, *widths])
    return render(
        "attention.html",
        text,
        identity="attention-" + hashlib.sha256(data.encode()).hexdigest()[:10],
        data=data,
        alone=alone,
        tokens=shown,
        shares=average.tolist(),
        layers=L,
        heads=N,
        said=text("{token} looks at: {others}", token=shown[t], others=others),
        cell=CELL,
        margin=round(max(map(_width_in_pixels, shown))) + 12,
        length=starts[-1],
        places=(starts[:-1] + np.array(widths) / 2).tolist(),
        high=round(min(30 + starts[-1] / 4, 260)),
    )


def attention_page(tokens: list[str], weights_LNTT: np.ndarray) -> Markup:
    """`attention_html` as a page of its own."""
    picture, sentence = attention_html(tokens, weights_LNTT), "".join(tokens[1:])
    return render("attention_page.html", ENGLISH, sentence=sentence, picture=picture)


def _width_in_pixels(text: str) -> float:
    """The approximate width of a label in pixels: an East Asian character is as wide as it is high."""
    return sum(_FONT if unicodedata.east_asian_width(character) in "WF" else 0.62 * _FONT for character in text)


def pieces(split: Sequence[tuple[str, int]]) -> str:
    """A text as its tokens, in colours."""
    return _with_style_rules(environment().get_template("pieces.html").make_module({"text": ENGLISH}).example(split))


def loss(data: RunData) -> str:
    """The loss of pretraining so far."""
    return _with_style_rules(render("loss.html", data.language, losses=losses(data)))


def words(text: str, found: Sequence[tuple[str, float]], truth: Mapping[str, float] | None = None) -> str:
    """The words that fit a blank as bars, beside their true probabilities if those are known."""
    alone, model, compared = [(word, p, probability(p)) for word, p in found[:WORDS]], dict(found), None
    if truth is not None:
        compared = [(word, model.get(word, 0.0), truth.get(word, 0.0)) for word in {**model, **truth}]
    return _with_style_rules(render("words.html", ENGLISH, question=text, alone=alone, compared=compared))


def _with_style_rules(content: Markup) -> Markup:
    """The content with the rules of the report's style sheet for its classes."""
    classes = {f".{name}" for names in re.findall(r'class="([^"]*)"', content) for name in names.split()}
    rules = "".join(rule[0] for rule in _RULE.finditer(source("style.css")) if rule[1] in classes)
    return render("notebook.html", ENGLISH, rules=Markup(rules), content=content)
