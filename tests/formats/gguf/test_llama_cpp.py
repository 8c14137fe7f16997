"""llama.cpp itself reads what is written: the same ids, the same logits, the same greedy tokens.

It needs llama-cpp-python, which is no extra: PyPI has its source alone, and that takes 15 minutes to build.
"""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.formats.gguf.small_gguf import KNOWN, config_of, model, tokenizer, write
from tests.formats.gguf.test_gguf_vocabulary import GPT_4O, LLAMA_3, TEKKEN, changed, of_pairs, splitting, trained
from tests.formats.huggingface.small import as_ours
from tests.training.small import mesh
from tpullm.formats.gguf import vocabulary as gguf_vocabulary

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
    options = {"n_ctx": 128, "logits_all": True, "verbose": False, "n_threads": 1, "type_k": 0, "type_v": 0}
    theirs = llama_cpp.Llama(str(tmp_path / "small.gguf"), **options)  # its cache is in float32
    architecture, *rest = model(config)
    prompt = np.random.default_rng(1).integers(3, 300, PROMPT).tolist()
    ids, logits = greedy(architecture, as_ours(architecture, *rest), prompt)
    theirs.eval(ids[:-1])
    found = np.array(theirs.scores[: len(ids) - 1])
    tolerance = 5e-3 if "gelu" in architecture.config.activation else 1e-4
    spread = np.std(logits)
    assert np.abs(found - logits).max() < tolerance * spread, (np.abs(found - logits).max() / spread, name)
    assert found[PROMPT - 1 :].argmax(-1).tolist() == ids[PROMPT:]


def vocabulary(file, tokenizer):
    writer = gguf.GGUFWriter(file, "llama")
    gguf_vocabulary.write(writer, tokenizer, tokenizer.vocabulary_size, talks=False)
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return llama_cpp.Llama(str(file), vocab_only=True, verbose=False)


LINES = [
    "今日はいい天気ですね。元気ですか？ はい、元気です。",
    "\n\n The cat sat on the mat.\n\tdef f(x):\n        return [x] * 2  # é 龘 😀\r\n",
    "<|user|><0x41></s>\u3000 \x00 trailing  ",
    "",
]


@pytest.mark.parametrize("kind", ["unigram", "char", "bpe"])
def test_our_tokenizers_split_alike(tmp_path, kind):
    """No text here has two splits of the same score. The character U+2581, which is a space in `llama`, is left out."""
    made = trained(tmp_path, kind)
    theirs = vocabulary(tmp_path / "vocabulary.gguf", made)
    for line in LINES:
        found = theirs.tokenize(line.encode(), add_bos=False, special=False)
        assert found == made.encode(line), line
        assert theirs.detokenize(found).decode() == line
    talk = "<s><|user|>今日は<|end|><|assistant|>"
    assert theirs.tokenize(talk.encode(), add_bos=False, special=True) == made.encode_marked(talk)


PAIRS = ["It'S 12345 ÉcoleABC\n\n  x ", "a  b\n \n<|im_start|>user\n今日<|im_end|>"]
PATTERNS = [None, LLAMA_3, LLAMA_3.replace("{1,3}", ""), GPT_4O, TEKKEN]


@pytest.mark.parametrize("pattern", [*PATTERNS, "pairs"])
def test_published_tokenizers_split_alike(tmp_path, pattern):
    lines = [*LINES[:2], *PAIRS]
    if pattern == "pairs":
        made, lines = of_pairs(tmp_path / "pairs"), [LINES[0], "The cat  sat on the mat. 龘", "  猫が好きです。"]
    else:
        made = changed(tmp_path, splitting(pattern) if pattern else lambda file: None)
    theirs = vocabulary(tmp_path / "vocabulary.gguf", made)
    for line in lines:
        assert theirs.tokenize(line.encode(), add_bos=False, special=True) == made.encode(line), line
