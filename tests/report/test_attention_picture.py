"""The attention picture: whole, true to the weights, and safe from what a token says."""

import json
import re

import numpy as np

from tpullm.report.attention_picture import attention_html, attention_page


def picture():
    tokens = ["<s>", "雨", "</script><b>", " and"]
    logits = np.random.default_rng(0).random((2, 3, 4, 4))
    found = np.tril(logits) / np.tril(logits).sum(axis=-1, keepdims=True)
    return tokens, found, attention_html(tokens, found)


def test_the_picture_needs_nothing_else():
    _, _, fragment = picture()
    assert not re.search(r"https?://|url\(|@import|<link|src=", fragment)
    assert fragment.startswith("<figure") and "<html" not in fragment


def test_the_picture_holds_every_weight():
    tokens, found, fragment = picture()
    data = json.loads(re.search(r'getElementById\("[^"]+"\), (.*)\);</script>', fragment)[1])
    held = np.array(data["weights"]) / 1000
    np.testing.assert_allclose(held, found[:, :, *np.tril_indices(4)], atol=5e-4)
    assert fragment.count('class="cell"') == 10
    assert f"雨 looks at &lt;s&gt;: {found.mean(axis=(0, 1))[1, 0]:.0%}" in fragment


def test_no_token_can_break_the_page():
    _, _, fragment = picture()
    assert "<b>" not in fragment and fragment.count("</script>") == 1
    assert "␣and" in fragment


def test_two_pictures_on_one_page_have_their_own_names():
    tokens, found, fragment = picture()
    other = attention_html(tokens, found[:1])
    names = [re.search(r'id="([^"]+)"', text)[1] for text in (fragment, other)]
    assert names[0] != names[1]


def test_the_page_is_whole():
    tokens, found, fragment = picture()
    page = attention_page(tokens, found)
    assert page.startswith("<!doctype html>") and fragment in page and 'name="viewport"' in page
