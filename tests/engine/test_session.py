import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tpullm.engine.session import load_session, parameter_targets, with_adapter
from tpullm.evaluation.scoring import text_log_probabilities
from tpullm.formats.checkpoints import Checkpoints, description
from tpullm.formats.huggingface import adapters
from tpullm.formats.huggingface.families import FAMILIES
from tpullm.formats.huggingface.tensors import flat
from tpullm.model.packed import is_packed
from tpullm.recipe.schema import AdapterConfig, CheckpointConfig, Recipe
from tpullm.system.errors import UserError


@pytest.fixture(scope="module")
def run(session, small_tokenizer, tmp_path_factory):
    """A run directory with the small model as its pretrained one, trained in fp8: in use it is multiplied as others."""
    run = tmp_path_factory.mktemp("run")
    (run / "pretrain" / "tokenizer").mkdir(parents=True)
    (run / "pretrain" / "tokenizer" / "tokenizer.model").write_bytes(small_tokenizer.serialized())
    checkpoints = Checkpoints(run / "pretrain" / "checkpoints", CheckpointConfig())
    state = {"params": session.params, "step": jax.numpy.zeros((), jax.numpy.int32)}
    trained = dataclasses.replace(session.architecture.config, matmuls="fp8")
    checkpoints.save(3, state, description("pretrain", trained, Recipe(), {}))
    checkpoints.close()
    return run


def test_a_loaded_model_scores_as_the_saved_one(session, run):
    loaded = load_session(run)
    assert not loaded.talks and loaded.context_length == session.context_length
    texts = ["今日はいい天気ですね。", "私は本を読む。"]
    np.testing.assert_array_equal(text_log_probabilities(loaded, texts), text_log_probabilities(session, texts))


def test_matrices_are_restored_in_the_dtype_of_use_and_vectors_in_that_of_the_file(session):
    found = parameter_targets(session.architecture, session.mesh, jax.numpy.dtype("bfloat16"))
    dtypes = {leaf.dtype.name for name, leaf in flat(found).items() if name.endswith("norm.scale")}
    assert dtypes == {"float32"} and found["embedding"].dtype == "bfloat16"


@pytest.mark.parametrize(
    "weights", [pytest.param("", marks=pytest.mark.ci), pytest.param("int8", marks=pytest.mark.slow)]
)
def test_an_exported_adapter_knows_its_base_with_packed_matrices(session, run, weights, tmp_path):
    """A folder with the note of numbers that `export` writes, beside a model that writes text on a CPU."""
    config, params = AdapterConfig(2, 3.0, targets=("query", "up")), flat(session.params)
    arrays = {}
    for part in ("layers.attention.query", "layers.mlp.up"):
        layers, width, *outputs = params[f"{part}.weight"].shape
        arrays[f"{part}.adapter.a"] = np.ones((layers, width, 2), np.float32)
        arrays[f"{part}.adapter.b"] = np.ones((layers, 2, *outputs), np.float32)
    adapters.write(tmp_path, FAMILIES["llama"], arrays, config, flat(session.architecture.shapes), "base")
    numbers = {name: adapters.sampled_numbers(params[name]) for name in adapters.matrix_names(params)}
    (tmp_path / adapters.FILE).write_text(json.dumps({"numbers": numbers}), encoding="utf-8")
    base = load_session(run, exact=False, weights=weights)
    assert is_packed(base.params["layers"]["mlp"]["up"]["weight"])
    assert with_adapter(base, tmp_path).architecture.adapter.targets == config.targets
    numbers["layers.attention.key.weight"][3] += 1.0
    (tmp_path / adapters.FILE).write_text(json.dumps({"numbers": numbers}), encoding="utf-8")
    with pytest.raises(UserError, match="is an adapter of another model"):
        with_adapter(base, tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="MODEL is a run directory"):
        load_session(tmp_path)


def test_the_tokenizer_of_another_model_is_refused(session, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "pretrain" / "checkpoints")
    config = dataclasses.replace(session.architecture.config, vocabulary_size=300)
    checkpoints = Checkpoints(other / "pretrain" / "checkpoints", CheckpointConfig())
    checkpoints.save(1, {"params": {}, "step": jax.numpy.zeros(())}, description("pretrain", config, Recipe(), {}))
    checkpoints.close()
    with pytest.raises(UserError, match=f"{session.tokenizer.vocabulary_size} tokens, more than the model's 300"):
        load_session(other)
