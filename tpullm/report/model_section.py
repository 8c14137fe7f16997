"""Step 3 on the page: a drawing of the Transformer with this model's sizes, and the attention picture.

The Transformer as a drawing, with the sizes of one model.
"""

from tpullm.recipe.schema import ModelConfig
from tpullm.report.charts import share_bar
from tpullm.report.html import Markup, figure, join, paragraph, section, shows, table, tag
from tpullm.report.language import Language, count
from tpullm.report.run_data import RunData, find, number

_WIDTH, _MIDDLE, _LINE = 360, 180, 16


def transformer(text: Language, config: ModelConfig, tokens: list[str], guesses: list[str]) -> Markup:
    """From the tokens so far, at the top, to the probability of each next token, at the bottom.

    Args:
        text: the language of the labels.
        config: resolved: every size is known.
        tokens: a few tokens, shown at the top.
        guesses: a few tokens that can come next, shown at the bottom.
    """
    width, vocabulary = count(config.width), count(config.vocabulary_size)
    embedding = text("{vocabulary} tokens → {width} numbers each", vocabulary=vocabulary, width=width)
    scores = text("{width} numbers → {vocabulary} tokens", vocabulary=vocabulary, width=width)
    more = _LINE if config.experts else 0  # a second line in the box of the feed-forward layer
    parts = [
        _row(tokens, 18, "chip"),
        _arrow(36, 56),
        _box(56, text("Embedding"), embedding),
        _arrow(100, 150),
        tag("rect", x=28, y=118, width=304, height=214 + more, rx=14, class_="block"),
        tag("text", f"× {config.layers}", x=318, y=140, class_="times", text_anchor="end"),
        _box(150, text("Attention"), _heads(text, config), strong=True),
        _around(136, 212),
        _arrow(194, 204),
        _sum(212),
        _arrow(220, 246),
        _box(246, text("Feed-forward"), *_layers(text, config), strong=True),
        _around(232, 310 + more),
        _arrow(290 + more, 302 + more),
        _sum(310 + more),
        _arrow(318 + more, 356 + more),
        _box(356 + more, text("Scores"), scores),
        _arrow(400 + more, 420 + more),
        _row(guesses, 438 + more, "guess"),
    ]
    label = text(
        "{blocks} blocks of attention and feed-forward layers between an embedding and scores", blocks=config.layers
    )
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {456 + more}", class_="diagram", role="img", aria_label=label)


def _heads(text: Language, config: ModelConfig) -> str:
    heads, width, keys = config.heads, config.head_width, config.kv_heads
    if keys == heads:
        return text("{heads} heads of {width}", heads=heads, width=width)
    return text("{heads} heads of {width}, {keys} for keys", heads=heads, width=width, keys=keys)


def _layers(text: Language, config: ModelConfig) -> list[str]:
    sizes = f"{count(config.width)} → {count(config.mlp_width)} → {count(config.width)}"
    if not config.experts:
        return [sizes]
    return [text("{chosen} of {experts} experts", chosen=config.experts_per_token, experts=config.experts), sizes]


def _box(y: float, name: str, *details: str, strong: bool = False) -> Markup:
    height, kind = 28 + _LINE * len(details), "layer strong" if strong else "layer"
    lines = [
        tag("text", detail, x=_MIDDLE, y=y + 35 + _LINE * i, class_="detail", text_anchor="middle")
        for i, detail in enumerate(details)
    ]
    box = tag("rect", x=70, y=y, width=220, height=height, rx=8, class_=kind)
    return join([box, tag("text", name, x=_MIDDLE, y=y + 19, class_="name", text_anchor="middle"), *lines])


def _arrow(y: float, end: float) -> Markup:
    return tag("path", d=f"M{_MIDDLE} {y}V{end}m-3.5 -5l3.5 5l3.5 -5", class_="wire")


def _around(y: float, end: float) -> Markup:
    """The residual connection: the input goes past the layer and is added to its output."""
    return tag(
        "path", d=f"M{_MIDDLE} {y}H56Q48 {y} 48 {y + 8}V{end - 8}Q48 {end} 56 {end}H{_MIDDLE - 9}", class_="wire"
    )


def _sum(y: float) -> Markup:
    plus = tag("path", d=f"M{_MIDDLE - 4} {y}h8m-4 -4v8", class_="wire")
    return join([tag("circle", cx=_MIDDLE, cy=y, r=8, class_="sum"), plus])


def _row(words: list[str], y: float, kind: str) -> Markup:
    """Tokens side by side, centred."""
    widths = [14 + sum(7 if character.isascii() else 14 for character in word) for word in words]
    x = _MIDDLE - (sum(widths) + 6 * (len(words) - 1)) / 2
    drawn = []
    for word, width in zip(words, widths, strict=True):
        drawn.append(tag("rect", x=f"{x:.0f}", y=y - 15, width=width, height=28, rx=6, class_=kind))
        middle = f"{x + width / 2:.0f}"
        drawn.append(tag("text", word, x=middle, y=y + 4, class_="piece-text", text_anchor="middle", lang="ja"))
        x += width + 6
    return join(drawn)


def blocks(data: RunData) -> Markup | None:
    """Step 3: the drawing, where the parameters are, the attention picture."""
    text, config = data.language, data.model
    if not config.vocabulary_size:
        return None
    tokens = [piece for piece, _ in data.splits[0][:3]] if data.splits else ["今日", "は", "いい"]
    picture = figure(transformer(text, config, tokens, ["天気", "日", "本"]))
    formula = text(
        "The Transformer is one large formula. Its input is the tokens so far. Its output is a probability for every "
        "token that may come next."
    )
    inside = text(
        "Between the two are {blocks} blocks. Attention lets every token gather what it needs from the tokens before "
        "it. Then a feed-forward layer works on each token by itself.",
        blocks=config.layers,
    )
    header = (text("part"), text("what it is"), text("here"))
    numbers = tag("div", table(header, _parts(data), left=2), *_parameters(data))
    both = tag("div", picture, numbers, class_="two")
    said = paragraph(text.join(formula, inside))
    return section("transformer", text("The Transformer"), said, both, *_attention(data), number=3)


def _parts(data: RunData) -> list[tuple[str, str, str]]:
    text, config, parameters = data.language, data.model, number(data.results, "model", "parameters")
    rows = [
        (text("blocks"), text("the same two layers, one after the other"), config.layers),
        (text("width"), text("numbers that represent one token inside the model"), config.width),
        (text("attention heads"), text("ways of looking back, side by side"), config.heads),
        (text("feed-forward width"), text("numbers inside the feed-forward layer"), config.mlp_width),
        (text("vocabulary"), text("tokens to choose the next one from"), config.vocabulary_size),
        (text("context"), text("tokens that the model can look back at"), config.context_length),
    ]
    if config.experts:
        chosen = text(
            "feed-forward layers; the router sends a token to {chosen} of them", chosen=config.experts_per_token
        )
        rows.insert(4, (text("experts"), chosen, config.experts))
    if parameters:
        rows.append((text("parameters"), text("numbers that training adjusts"), parameters))
    return [(name, what, count(size)) for name, what, size in rows]


def _parameters(data: RunData) -> list[Markup]:
    text, c = data.language, data.model
    attention = c.layers * 2 * c.width * c.head_width * (c.heads + c.kv_heads)
    feed_forward = c.layers * (3 if c.gated else 2) * c.width * c.mlp_width * (max(c.experts, 1) + c.shared_experts)
    tables = c.vocabulary_size * c.width * (1 if c.tied_embeddings else 2)
    parts = [(text("feed-forward"), feed_forward), (text("attention"), attention), (text("token table"), tables)]
    return [figure(share_bar(parts, text.compact), text("Where the parameters are."))]


def _attention(data: RunData) -> list[Markup]:
    tokens, weights = find(data.results, "attention", "tokens"), find(data.results, "attention", "weights")
    if not tokens or not weights:
        return []
    import numpy as np  # only where there is something to draw

    from tpullm.report.attention_picture import attention_html

    text = data.language
    back = text(
        "Each token looks only at itself and at the tokens before it, never ahead. If it could look ahead, there would "
        "be nothing to predict."
    )
    heads = text(
        "The heads differ: some look at the token just before, others at an earlier word that matters for what comes "
        "next."
    )
    picture = Markup(attention_html(tokens, np.asarray(weights), text))
    return [tag("h3", text("What it looks at")), picture, shows(text, back, heads)]
