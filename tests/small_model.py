"""A small model with random parameters and a tokenizer of tenki's language, shared by the tests of its use."""

import jax
import pytest

from tpullm.corpus import tenki
from tpullm.engine.session import Session
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.schema import ModelConfig, TokenizerConfig
from tpullm.tokenizer import trainer


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory):
    texts = [("ja", text) for text in tenki.documents(600, 0)]
    # Twice the 171 characters of tenki fit beside the bytes, so each character has a token.
    config = TokenizerConfig(vocabulary_size=640, words="none", reserved_tokens=2)
    return trainer.train(texts, config, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="session")
def session(small_tokenizer):
    return session_of(small_tokenizer, layers=2)


def session_of(tokenizer, layers: int) -> Session:
    """A model of that many layers; one layer compiles in half the time."""
    config = ModelConfig(layers=layers, width=32, heads=4, kv_heads=2, context_length=32)
    architecture = Architecture(config.resolved(tokenizer.vocabulary_size))
    mesh = make_mesh({"fsdp": -1})
    with jax.set_mesh(mesh):
        params = jax.device_put(architecture.init(jax.random.key(0)), architecture.shardings(mesh))
        # Random embeddings are small; larger ones make the scores differ enough to tell tokens apart.
        params["embedding"] = params["embedding"] * 20
    return Session(tokenizer, architecture, params, mesh, jax.numpy.dtype("float32"))
