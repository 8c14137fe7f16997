"""The picture of attention for a text of the reader: its weights are those of the report's code; what is refused."""

import json
from functools import partial

import numpy as np
import pytest

from tests.small_model import session_of, small_tokenizer  # noqa: F401
from tpullm.evaluation.scoring import attention_weights
from tpullm.report.pictures import MOST_TOKENS
from tpullm.serving import attention_picture as made
from tpullm.serving.refusal import Refusal
from tpullm.serving.served_model import ServedModel

ASKED = {"model": "small", "prompt": "今日はいい天気です。"}


@pytest.fixture(scope="module")
def model(small_tokenizer):  # noqa: F811
    session = session_of(small_tokenizer, layers=2)
    return ServedModel("small", session, session.context_length, attention=partial(attention_weights, session))


def all_of(tree, kind: str) -> list[list]:
    """The elements of a class, in their order."""
    own = [tree] if kind in tree[1].get("class", "").split() else []
    return [*own, *(one for child in tree[2:] if isinstance(child, list) for one in all_of(child, kind))]


def test_the_weights_are_those_of_the_report_causal_and_one_in_all(model):
    """The picture holds thousandths, so a row of T of them may miss 1 by T / 2000."""
    tokens, weights_LNTT = model.attention(ASKED["prompt"])
    figure = made.attention_picture(ASKED, model, "")["picture"]
    held = json.loads(figure[1]["data-held"])
    T, below = len(tokens), np.tril_indices(len(tokens))
    assert held["tokens"] == tokens and "".join(tokens[1:]) == ASKED["prompt"]
    found = np.zeros(weights_LNTT.shape)
    found[:, :, *below] = np.array(held["weights"]) / 1000
    np.testing.assert_allclose(found, weights_LNTT, atol=5e-4)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=T / 2000)
    cells = [(int(cell[1]["data-t"]), int(cell[1]["data-s"])) for cell in all_of(figure, "cell")]
    assert cells == list(zip(*(part.tolist() for part in below), strict=True))


def test_the_words_are_of_the_language(model):
    figures = [made.attention_picture(ASKED | {"language": name}, model, "")["picture"] for name in ("en", "ja")]
    assert [all_of(figure, "said")[0][2].count("が見ているトークン") for figure in figures] == [0, 1]
    assert all_of(figures[1], "grid")[0][0] == "svg" and all_of(figures[0], "arcs")[0][1]["hidden"] == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prompt": ""}, "prompt: "),
        ({"prompt": 1}, "prompt: "),
        ({"language": "fr"}, "language: should be 'en' or 'ja'"),
        ({"color": "red"}, "color: is not a field"),
        ({"prompt": "天気" * 9000}, "holds 32 with the answer; shorten it"),
    ],
)
def test_what_is_wrong_is_refused(model, change, why):
    with pytest.raises(Refusal, match=why):
        made.attention_picture(ASKED | change, model, "")


def test_a_longer_text_than_the_picture_holds_is_refused_before_anything_is_computed(small_tokenizer, monkeypatch):  # noqa: F811
    model = ServedModel("small", session_of(small_tokenizer, layers=2), 1024, attention=lambda text: pytest.fail(text))
    with pytest.raises(Refusal, match=f"tokens, and the picture shows {MOST_TOKENS} at most"):
        made.attention_picture(ASKED | {"prompt": "天気です。" * 60}, model, "")
    monkeypatch.setattr(made, "MOST_WEIGHTS", 8 * 6 * 6 // 2)  # of 2 layers with 4 heads: 6 tokens
    with pytest.raises(Refusal, match="shows 6 at most"):
        made.attention_picture(ASKED | {"prompt": "天気です。" * 3}, model, "")


def test_it_is_made_for_those_who_show_the_key_by_a_server_that_can(served, model, monkeypatch):
    assert served.ask("/v1/attention", ASKED, headers={"authorization": None}).status == 401
    refused = served.ask("/v1/attention", ASKED)
    assert refused.status == 400 and "serve the model on one" in json.loads(refused.text)["error"]["message"]
    monkeypatch.setitem(served.service.models, "small", model)
    answer = json.loads(served.ask("/v1/attention", ASKED).text)
    assert answer == made.attention_picture(ASKED, model, "")
    assert [one["attention"] for one in json.loads(served.ask("/v1/models").text)["data"]] == [True]
