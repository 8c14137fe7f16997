"""Step 3 on the page: a drawing of the Transformer with this model's sizes, and the attention picture."""

from tpullm.report.charts import share_bar
from tpullm.report.diagram import transformer
from tpullm.report.html import Markup, figure, paragraph, section, shows, table, tag
from tpullm.report.run_data import RunData, find, number
from tpullm.report.units import count


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
