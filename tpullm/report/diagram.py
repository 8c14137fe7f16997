"""The Transformer as a drawing, with the sizes of one model."""

from tpullm.recipe.schema import ModelConfig
from tpullm.report.html import Markup, join, tag
from tpullm.report.language import Language
from tpullm.report.units import count

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
