"""llama.cpp itself reads what is written: the same ids, the same logits, the same greedy tokens.

It needs llama-cpp-python, which is no extra: PyPI has its source alone, and that takes 15 minutes to build.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.llamacpp.small_gguf import KNOWN, config_of, nested_parameters, tokenizer, write
from tests.training.small import mesh

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
V, PROMPT, NEW = 320, 12, 64


def greedy(architecture, params, prompt):
    """The ids of a prompt and of the 64 tokens after it, and the logits after all ids but the last."""

    @jax.jit
    def run(ids_T, length):
        seen = (jnp.arange(PROMPT + NEW) < length).astype(jnp.int32)[None]
        model = architecture.model(params)
        hidden = model(ids_T[None], seen, jnp.arange(PROMPT + NEW)[None], dtype=jnp.float32).hidden
        return model.logits(hidden)[0]

    ids_T = np.zeros(PROMPT + NEW, np.int32)
    ids_T[:PROMPT] = prompt
    with jax.set_mesh(mesh()):
        for length in range(PROMPT, PROMPT + NEW):
            ids_T[length] = np.asarray(run(ids_T, length))[length - 1].argmax()
        logits = np.asarray(run(ids_T, PROMPT + NEW - 1))[:-1]
    return ids_T.tolist(), logits


def loaded(file, **options):
    """llama.cpp with a cache in float32."""
    return llama_cpp.Llama(
        str(file), n_ctx=128, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0, **options
    )


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_a_family_has_the_same_logits_and_greedy_tokens(name, small_tokenizer, tmp_path):
    """Logits within 1e-4 of their spread; of Gemma within 5e-3, since llama.cpp looks GELU up in a float16 table."""
    length = "n_positions" if name == "gpt-2" else "max_position_embeddings"
    changes = {} if name == "phi-3 longrope" else {length: 128}
    config = config_of(name, vocab_size=V, **changes)
    write(tmp_path / "small.gguf", config, small_tokenizer)
    theirs = loaded(tmp_path / "small.gguf")
    architecture, params = nested_parameters(config)
    prompt = np.random.default_rng(1).integers(3, 300, PROMPT).tolist()
    ids, logits = greedy(architecture, params, prompt)
    theirs.eval(ids[:-1])
    found = np.array(theirs.scores[: len(ids) - 1])
    tolerance = 5e-3 if "gelu" in architecture.config.activation else 1e-4
    spread = np.std(logits)
    assert np.abs(found - logits).max() < tolerance * spread, (np.abs(found - logits).max() / spread, name)
    assert found[PROMPT - 1 :].argmax(-1).tolist() == ids[PROMPT:]
