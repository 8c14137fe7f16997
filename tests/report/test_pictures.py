"""The attention picture: whole, true to the weights, and safe from what a token says."""

import html
import json
import re

import numpy as np
import pytest

from tpullm.report.pictures import CELL, attention_html, attention_page

TOKENS = ["<s>", "雨", "</script><b>", " and"]
LOGITS = np.random.default_rng(0).random((2, 3, 4, 4))
WEIGHTS = np.tril(LOGITS) / np.tril(LOGITS).sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def fragment():
    return attention_html(TOKENS, WEIGHTS)


def test_the_picture_needs_nothing_else_and_no_token_can_break_its_page(fragment):
    assert not re.search(r"https?://|url\(|@import|<link|src=", fragment)
    assert fragment.startswith("<figure") and "<html" not in fragment
    assert "<b>" not in fragment and fragment.count("</script>") == 1 and "␣and" in fragment
    page = attention_page(TOKENS, WEIGHTS)
    assert page.startswith("<!doctype html>") and fragment in page and 'name="viewport"' in page


def test_the_picture_holds_every_weight(fragment):
    data = json.loads(html.unescape(re.search('data-held="([^"]*)"', fragment)[1]))
    held = np.array(data["weights"]) / 1000
    np.testing.assert_allclose(held, WEIGHTS[:, :, *np.tril_indices(4)], atol=5e-4)
    assert f"雨 looks at &lt;s&gt;: {WEIGHTS.mean(axis=(0, 1))[1, 0]:.0%}" in fragment


def test_the_words_on_the_line_are_in_order_within_the_picture_which_has_its_own_name(fragment):
    width = float(re.search(r'class="arcs" hidden width="(\d+)"', fragment)[1])
    places = [float(x) for x in re.findall(r'class="word" data-t="\d" x="([\d.]+)"', fragment)]
    assert places == sorted(places) and len(places) == 4 and 0 < places[0] and places[-1] < width < 1.5 * places[-1]
    names = [re.search(r'id="([^"]+)"', text)[1] for text in (fragment, attention_html(TOKENS, WEIGHTS[:1]))]
    assert names[0] != names[1]


def sentence(weights_TT):
    made = attention_html(list("abcdefgh")[: len(weights_TT)], weights_TT[None, None])
    return re.search('<p class="said"[^>]*>(.*?)</p>', made)[1]


def test_the_first_sentence_is_of_the_token_that_attends_most_to_a_distant_one_and_has_its_five_largest_shares():
    """Token 4 attends to token 2; more weight is on the start, on neighbours and on the tokens themselves."""
    weights = np.full((7, 7), 0.01)
    weights[np.arange(7), np.arange(7)] = weights[:, 0] = weights[np.arange(1, 7), np.arange(6)] = 0.9
    weights[4, 2] = 0.5
    assert sentence(np.tril(weights)).startswith("e looks at: ") and "c 50%" in sentence(np.tril(weights))
    weights = np.triu(np.full((8, 8), 99.0), 1)  # the future, which nobody sees
    weights[5, :6] = np.arange(40, 46) / 100
    assert sentence(weights) == "f looks at: f 45%, e 44%, d 43%, c 42%, b 41%"


def test_the_cells_are_a_grid_and_a_larger_share_has_a_stronger_colour(fragment):
    cell = r'class="cell" data-t="(\d)" data-s="(\d)" x="([\d.]+)" y="([\d.]+)"[^>]* fill-opacity="([\d.]+)"'
    cells = re.findall(cell, fragment)
    xs, ys = {s: float(x) for _, s, x, _, _ in cells}, {t: float(y) for t, _, _, y, _ in cells}
    for places in (xs, ys):
        assert {b - a for a, b in zip(sorted(places.values()), sorted(places.values())[1:], strict=False)} == {CELL}
    assert xs["0"] == ys["0"] and len(cells) == 10
    opacities, shares = np.array([float(one[-1]) for one in cells]), WEIGHTS.mean(axis=(0, 1))[np.tril_indices(4)]
    assert np.diff(opacities[np.argsort(shares)]).min() >= 0
    assert max(opacities) == 1 and min(opacities) < 0.6
