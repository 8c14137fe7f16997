import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.checkpoint.saving import Checkpoints, description
from tpullm.errors import UserError
from tpullm.inference.scoring import text_log_probabilities
from tpullm.inference.session import bucket, load
from tpullm.recipe.schema import CheckpointConfig, Recipe


@given(st.integers(1, 10_000))
def test_a_bucket_holds_its_length_and_few_share_one(length):
    assert length <= bucket(length) < max(17, 2 * length)


@pytest.fixture(scope="module")
def run(session, small_tokenizer, tmp_path_factory):
    """A run directory with the small model as its pretrained one."""
    run = tmp_path_factory.mktemp("run")
    (run / "pretrain" / "tokenizer").mkdir(parents=True)
    (run / "pretrain" / "tokenizer" / "tokenizer.model").write_bytes(small_tokenizer.serialized())
    checkpoints = Checkpoints(run / "pretrain" / "checkpoints", CheckpointConfig())
    state = {"params": session.params, "step": jax.numpy.zeros((), jax.numpy.int32)}
    checkpoints.save(3, state, description("pretrain", session.architecture.config, Recipe(), {}))
    checkpoints.close()
    return run


def test_a_loaded_model_scores_as_the_saved_one(session, run):
    loaded = load(run)
    assert not loaded.talks and loaded.context_length == session.context_length
    texts = ["今日はいい天気ですね。", "私は本を読む。"]
    np.testing.assert_array_equal(text_log_probabilities(loaded, texts), text_log_probabilities(session, texts))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="MODEL is a run directory"):
        load(tmp_path)


def test_the_tokenizer_of_another_model_is_refused(session, run, tmp_path):
    import dataclasses
    import shutil

    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "pretrain" / "checkpoints")
    config = dataclasses.replace(session.architecture.config, vocabulary_size=300)
    checkpoints = Checkpoints(other / "pretrain" / "checkpoints", CheckpointConfig())
    checkpoints.save(1, {"params": {}, "step": jax.numpy.zeros(())}, description("pretrain", config, Recipe(), {}))
    checkpoints.close()
    with pytest.raises(UserError, match=f"{session.tokenizer.vocabulary_size} tokens, more than the model's 300"):
        load(other)
