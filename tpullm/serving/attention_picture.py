"""The report's picture of attention, for a text that the reader of the page typed: a tree that its script builds.

The page may not make a text into HTML (`page.py`), so the HTML of the picture is taken apart here.
"""

import math
from html.parser import HTMLParser
from typing import Any

from tpullm.report.language import named
from tpullm.report.pictures import MOST_TOKENS, attention_html
from tpullm.serving.refusal import Refusal
from tpullm.serving.request_models import AttentionRequest, validated_request
from tpullm.serving.served_model import ServedModel

MOST_WEIGHTS = 1 << 20  # of all layers and heads: 3 MB of JSON


def attention_picture(body: dict[str, Any], model: ServedModel, client: str) -> dict[str, Any]:
    """`picture`, a tree of `[name, attributes, *children]`, where a child is a tree or a text.

    Raises:
        Refusal: a field is wrong, the text is too long, or the server can't compute the weights.
    """
    asked = validated_request(AttentionRequest, body, model.vocabulary_size)
    if model.attention is None:
        raise Refusal("a server on several hosts does not compute attention weights; serve the model on one")
    heads = model.config.layers * model.config.heads
    most = min(MOST_TOKENS, math.isqrt(2 * MOST_WEIGHTS // heads))
    if (count := len(model.text_ids(asked.prompt))) > most:
        raise Refusal(
            f"prompt: {count} tokens, and the picture shows {most} at most; give a shorter text", param="prompt"
        )
    tree = _Tree()
    tree.feed(attention_html(*model.attention(asked.prompt), named(asked.language), alone=False))
    tree.close()
    return {"picture": tree.top[2]}


class _Tree(HTMLParser):
    """The elements of HTML, in `top`."""

    def __init__(self):
        super().__init__()
        self.top: list[Any] = ["", {}]
        self._open = [self.top]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = [tag, {name: value or "" for name, value in attrs}]
        self._open[-1].append(made)
        self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self._open[-1].append(data)
