"""llama.cpp itself reads what is written: the same ids, the same logits, the same greedy tokens.

It needs llama-cpp-python, which is no extra: PyPI has its source alone, and that takes 15 minutes to build.
"""

import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.formats.gguf.small_gguf import KNOWN, config_of, model, parameters, tokenizer, write
from tests.formats.gguf.test_gguf_vocabulary import GPT_4O, LLAMA_3, TEKKEN, changed, of_pairs, splitting, trained
from tests.formats.gguf.test_tokenizer_files import SPLITS
from tests.formats.gguf.test_tokenizer_files import published as published_tokenizer
from tests.formats.huggingface.small import as_ours
from tests.training.small import mesh
from tpullm.formats.gguf import reading, writing
from tpullm.formats.gguf import vocabulary as gguf_vocabulary
from tpullm.formats.gguf.pre_tokenizers import PRE_TOKENIZERS
from tpullm.formats.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tpullm.formats.huggingface import configs
from tpullm.formats.huggingface.tensors import is_vector
from tpullm.formats.huggingface.writing import Parameters
from tpullm.formats.published import fill, published
from tpullm.model.architecture import Architecture
from tpullm.tokenizer.byte_pairs import byte_letters

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


# llama.cpp's own types of files, two for each of our families.
QUANTIZED = {
    "llama-2": "Q4_0 Q4_1",
    "llama-3.1": "Q4_K_M Q2_K",
    "qwen-2.5": "Q5_K_M Q8_0",
    "qwen-3": "Q3_K_M Q6_K",
    "olmo-2": "Q5_0 Q4_K_S",
    "olmo-3": "Q4_0 Q6_K",
    "smollm-3": "Q4_K_M Q8_0",
    "phi-3 longrope": "Q5_1 BF16",
    "phi-4-mini": "Q5_K_M Q4_1",
    "gemma": "IQ4_NL Q6_K",
    "gemma-2": "Q5_K_S Q4_0",
    "gemma-3": "Q4_K_M Q8_0",
    "mixtral": "Q3_K_S Q4_1",
    "qwen-3 experts": "F16 IQ4_NL",
    "gpt-oss": "MXFP4_MOE Q8_0",
    "gpt-2": "Q5_0 Q5_1",
}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "head_dim": 64, "n_embd": 256}
WIDE |= {"query_pre_attn_scalar": 64, "n_inner": 512, "max_position_embeddings": 128, "n_positions": 128}
FACTORS = dict(short_factor=[1.0 + 0.01 * n for n in range(32)], long_factor=[1.0 + 0.1 * n for n in range(32)])


def wide(name):
    """A model whose rows are as long as the longest blocks."""
    config = config_of(name, vocab_size=V)
    config |= {key: size for key, size in WIDE.items() if key in config}
    if name == "phi-3 longrope":  # llama.cpp has the long factors where its context is longer than the original one
        config |= {"rope_parameters": config["rope_parameters"] | FACTORS}
    return config


def write_wide(file, name, tokenizer):
    """The model, with matrices that are smaller as their rows are longer."""
    config = wide(name)
    given = parameters(config)
    read = lambda key: given.read(key) * np.float32(1 if is_vector(key) else 0.3)  # noqa: E731
    scaled = Parameters(given.targets, given.axes, read)
    planned = writing.planned(configs.read(config, "config.json"), scaled, "f32", config["model_type"])
    writing.write(file, planned, tokenizer, "f32", ("small", ""), False, lambda size: None)


def in_float32(file, copy):
    """The same file with each tensor in float32, by the package `gguf` alone."""
    read = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(copy, read.fields["general.architecture"].contents())
    for name, field in read.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in read.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, of in QUANTIZED.items() for kind in of.split()])
def test_a_file_of_llama_cpp_is_read_as_llama_cpp_reads_it(name, kind, small_tokenizer, tmp_path):
    """The greedy text of the same numbers in float32, with logits as near as above; and logits of the file itself.

    These are further off, since llama.cpp rounds what it multiplies quantized matrices with to 8 bits.
    """
    whole, file, copy = (tmp_path / f"{of}.gguf" for of in ("whole", "file", "copy"))
    write_wide(whole, name, small_tokenizer)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    assert llama_cpp.llama_model_quantize(bytes(whole), bytes(file), options) == 0
    in_float32(file, copy)
    found = published(file)
    architecture = Architecture(found.config)
    with found.weights() as source:
        params = fill(source, architecture.shapes, architecture.axes, lambda array, _: array, lambda size: None)
    prompt = np.random.default_rng(1).integers(3, 300, PROMPT).tolist()
    ids, logits = greedy(architecture, params, prompt)
    limits = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0}
    of_copy, of_file = (logits_of(path, ids[:-1], **limits) - logits for path in (copy, file))
    assert (of_copy + logits)[PROMPT - 1 :].argmax(-1).tolist() == ids[PROMPT:]
    spread = np.std(logits)
    assert np.abs(of_copy).max() < (5e-3 if "gelu" in architecture.config.activation else 2e-4) * spread
    assert np.sqrt(np.mean(of_file**2)) < 0.25 * spread


def logits_of(file, ids, **options):
    theirs = llama_cpp.Llama(str(file), logits_all=True, verbose=False, **options)
    theirs.eval(ids)
    return np.array(theirs.scores[: len(ids)])


def vocabulary(file, tokenizer):
    writer = gguf.GGUFWriter(file, "llama")
    gguf_vocabulary.write(writer, tokenizer, tokenizer.vocabulary_size, talks=False)
    return opened(writer, file)


def opened(writer, file):
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


CUT = [line.replace("¦", "") for lines in SPLITS.values() for line in lines] + LINES + PAIRS


@pytest.fixture(scope="module")
def learned():
    """Tokens, and merges that go over any cut, so that a text that is cut elsewhere gets other ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    options = {"vocab_size": 1_200, "initial_alphabet": list(byte_letters()), "show_progress": False}
    made.train_from_iterator(CUT, trainers.BpeTrainer(**options))
    described = json.loads(made.to_str())["model"]
    return list(described["vocab"]), [" ".join(merge) for merge in described["merges"]]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_pre_tokenizer_gives_the_same_ids(tmp_path, learned, name):
    """Also of texts with the names of special tokens; and the first token and the ends are the same."""
    tokens, merges = learned
    tokens = [*tokens, "</s>", "<|im_end|>", "<u>", "[PAD]"]
    kinds = [*[NORMAL] * (len(tokens) - 4), CONTROL, NORMAL, USER_DEFINED, UNUSED]
    first, end = len(tokens) - 1, len(tokens) - 4
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(first)
    theirs = opened(writer, tmp_path / "small.gguf")
    made = published_tokenizer(tmp_path / "made", reading.read(tmp_path / "small.gguf").settings)
    for line in [*CUT, "<u>a</s><|im_end|> <u></u>\n"]:
        assert theirs.tokenize(line.encode(), add_bos=False, special=True) == made.encode(line), line
        found = theirs.tokenize(line.encode(), add_bos=False, special=False)
        assert found == made.document(line)[len(made.begin) : -1], line
    assert theirs.tokenize(b"", add_bos=True) == made.begin
    assert [llama_cpp.llama_vocab_is_eog(theirs._model.vocab, token) for token in (end, end + 1, end + 2)] == [
        token in made.stop_ids for token in (end, end + 1, end + 2)
    ]
