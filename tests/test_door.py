"""The Python door: what a notebook calls."""

import numpy as np
import pytest

import tpullm
from tests.huggingface.published import directory
from tpullm.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tpullm.load(directory(tmp_path_factory.mktemp("published") / "model"))


def test_logits_and_text_of_a_published_model(model):
    ids = np.array([model.tokenizer.encode("猫が好き")] * 3)
    logits = model.logits(ids)
    assert logits.shape == (3, ids.shape[1], model.config.vocabulary_size) and logits.dtype == np.float32
    np.testing.assert_array_equal(logits[0], logits[2])
    text = model.generate("猫が好き", tokens=5)
    likeliest = model.tokenizer.decode([int(logits[0, -1].argmax())])
    assert text.startswith(likeliest)


def test_wrong_ids_are_refused(model):
    for ids, message in (
        ([1, 2], "give integers"),
        ([[0.5]], "give integers"),
        ([[-1]], "run from -1"),
        ([[9999]], "use 0 to"),
    ):
        with pytest.raises(UserError, match=message):
            model.logits(np.array(ids))
    with pytest.raises(UserError, match="longer|context holds"):
        model.logits(np.zeros((1, 500), np.int32))
    with pytest.raises(UserError, match="empty"):
        model.generate("")


def test_a_run_of_ours_is_a_model_too(tiny_run):
    model = tpullm.load(tiny_run / "pretrain")
    ids = np.array([[*model.tokenizer.begin, *model.tokenizer.encode("今日は")]])
    text = model.generate("今日は", tokens=3)
    assert model.logits(ids).shape == (1, ids.shape[1], model.config.vocabulary_size)
    assert isinstance(text, str) and text == model.generate("今日は", tokens=3)
