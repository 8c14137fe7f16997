"""Step 3 on the page: the Transformer, drawn with this model's numbers, and what it looks at."""

from tpullm.report.charts import share_bar
from tpullm.report.diagram import transformer
from tpullm.report.html import Markup, figure, paragraph, section, shows, table, tag
from tpullm.report.inputs import RunData
from tpullm.report.units import compact, count, find, number


def blocks(data: RunData) -> Markup | None:
    """Step 3: the drawing, where the parameters are, the attention picture."""
    config = data.model
    if not config.vocabulary_size:
        return None
    tokens = [piece for piece, _ in data.splits[0][:3]] if data.splits else ["今日", "は", "いい"]
    rows = [
        ("blocks", "the same two layers, one after the other", count(config.layers)),
        ("width", "numbers that stand for one token on its way through", count(config.width)),
        ("attention heads", "ways of looking back, side by side", count(config.heads)),
        ("feed-forward width", "numbers inside the feed-forward layer", count(config.mlp_width)),
        ("vocabulary", "tokens to choose the next one from", count(config.vocabulary_size)),
        ("context", "tokens that it can look back on", count(config.context_length)),
    ]
    if config.experts:
        chosen = f"feed-forward layers; a token goes to the {config.experts_per_token} that its router chooses"
        rows.insert(4, ("experts", chosen, count(config.experts)))
    parameters = number(data.results, "model", "parameters")
    if parameters:
        rows.append(("parameters", "numbers that training adjusts", count(parameters)))
    picture = figure(transformer(config, tokens, ["天気", "日", "本"]))
    return section(
        "transformer",
        "The Transformer",
        paragraph(
            "The Transformer is one large formula. In go the tokens so far, out comes a probability for every token "
            f"that may come next. Between the two are {config.layers} blocks: in each, attention lets every token "
            "gather what it needs from the tokens before it, then a feed-forward layer works on each token by itself."
        ),
        tag(
            "div",
            picture,
            tag("div", table(("part", "what it is", "here"), rows, left=2), *_parameters(data)),
            class_="two",
        ),
        *_attention(data),
        number=3,
    )


def _parameters(data: RunData) -> list[Markup]:
    c = data.model
    attention = c.layers * 2 * c.width * c.head_width * (c.heads + c.kv_heads)
    feed_forward = c.layers * (3 if c.gated else 2) * c.width * c.mlp_width * (max(c.experts, 1) + c.shared_experts)
    tables = c.vocabulary_size * c.width * (1 if c.tied_embeddings else 2)
    parts = [("feed-forward", feed_forward), ("attention", attention), ("token table", tables)]
    return [figure(share_bar(parts, compact), "Where the parameters are.")]


def _attention(data: RunData) -> list[Markup]:
    tokens, weights = find(data.results, "attention", "tokens"), find(data.results, "attention", "weights")
    if not tokens or not weights:
        return []
    import numpy as np

    from tpullm.inference.attention_picture import attention_html  # only where there is something to draw

    return [
        tag("h3", "What it looks at"),
        Markup(attention_html(tokens, np.asarray(weights))),
        shows(
            "Each token looks only at itself and at the tokens before it, never ahead: otherwise guessing the next "
            "token would be no task. Heads differ: some look at the token just before, others at a word further "
            "back that matters here."
        ),
    ]
