"""A GGUF file is a model: what is written is read back, parameter by parameter and setting by setting."""

import contextlib
import dataclasses
import operator
import random
import re
from unittest import mock

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest

from tests.formats.gguf.small_gguf import KNOWN, QUICK, config_of, model, planned, tokenizer, write
from tests.formats.test_gguf_doctor import HOSTILE, rewritten
from tpullm.cli.main import main
from tpullm.engine.session import load_session, parameter_targets, place_array
from tpullm.formats.gguf import configs, reading, weights
from tpullm.formats.gguf.architectures import ARCHITECTURES
from tpullm.formats.gguf.layout import Layout
from tpullm.formats.gguf.reading import GgufFile, GgufTensor
from tpullm.formats.huggingface import configs as huggingface_configs
from tpullm.formats.huggingface import tensors
from tpullm.formats.published import fill, published
from tpullm.model.architecture import Architecture
from tpullm.model.attention.rope import scaled_frequencies
from tpullm.model.mesh import make_mesh
from tpullm.model.packed import Packed, is_packed
from tpullm.model.packing import packed_params
from tpullm.recipe.schema import RopeScaling
from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited

V = 320
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in KNOWN if name not in QUICK]


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(file):
    """The config of a file and its parameters, as they are stored."""
    found = published(file)
    architecture = Architecture(found.config)
    with found.weights() as source:
        types = source.types(architecture.shapes, architecture.axes)
        shapes = tensors.flat(architecture.shapes)
        targets = {key: np.broadcast_to(np.zeros((), types[key]), shapes[key].shape) for key in shapes}
        params = fill(source, tensors.nested(targets), architecture.axes, lambda array, _: array, lambda size: None)
    return found.config, tensors.flat(params)


def frequencies(config, length=0):
    return np.asarray(scaled_frequencies(config.head_width, config.rope_theta, config.rope_scaling, length))


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_what_is_written_is_read_back_bit_for_bit(name, small_tokenizer, tmp_path):
    """Of norms that are stored as their difference from 1, that is what is computed with: the sum."""
    made = planned(config_of(name, vocab_size=V))
    write(tmp_path / "small.gguf", config_of(name, vocab_size=V), small_tokenizer)
    found, params = read(tmp_path / "small.gguf")
    ours = made.layout.config
    assert dataclasses.replace(found, rope_scaling=ours.rope_scaling) == ours
    assert found.rope_scaling.scale == pytest.approx(ours.rope_scaling.scale, rel=1e-6)
    for length in (1, 1000):
        np.testing.assert_allclose(frequencies(found, length), frequencies(ours, length), rtol=1e-6)
    assert params.keys() == made.params.targets.keys()
    for key, array in params.items():
        one = np.float32(found.norm_unit_offset and key.endswith(".scale"))
        np.testing.assert_array_equal(array + one, made.params.read(key) + one, key)


@pytest.fixture(scope="module")
def good(small_tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("good") / "good.gguf"
    write(file, config_of("llama-2", vocab_size=V), small_tokenizer)
    return file


# Each type: the bytes that `gguf` itself rounds to, or a pattern of bytes, and what it makes of them.
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TYPES += ["IQ4_NL", "MXFP4"]


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_read_as_gguf_dequantizes_it(good, kind, tmp_path):
    """The values of a layer of a matrix; each place of the three dimensions of ours is where it belongs."""
    type_ = gguf.GGMLQuantizationType[kind]
    width, (block, size) = 256, gguf.GGML_QUANT_SIZES[type_]
    config = config_of("llama-2", vocab_size=V, hidden_size=width, num_hidden_layers=2, intermediate_size=width)
    data = np.random.default_rng(0).integers(0, 60, (width, width // block * size)).astype(np.uint8)
    wanted = gguf.dequantize(data, type_).reshape(width, width)
    file = GgufFile(tmp_path / "raw", {}, [GgufTensor("blk.1.ffn_up.weight", (width, width), kind, 0, data.nbytes)])
    (tmp_path / "raw").write_bytes(data.tobytes())
    held = Layout(model(config)[0].config, ARCHITECTURES["llama"], *shapes_and_axes(config))
    source = weights.GgufWeights(tmp_path / "raw", file.tensors, held.config, "llama")
    tensor = next(tensor for tensor in held.tensors() if tensor.name == "blk.1.ffn_up.weight")
    source._checked = lambda *_: (held, [(tensor, file.tensors[0])])
    ((key, place, part),) = source.parts_of(model(config)[0].shapes, {}, lambda size: None)
    assert (key, place) == ("layers.mlp.up.weight", (1,)) and np.isfinite(wanted).all()
    np.testing.assert_array_equal(part, wanted.T)
    stored = source.types({}, {})["layers.mlp.up.weight"]
    assert stored.name == {"F16": "float16", "BF16": "bfloat16", "MXFP4": "bfloat16"}.get(kind, "float32")
    np.testing.assert_array_equal(part.astype(stored), part)


def test_every_number_of_mxfp4_is_one_of_bfloat16():
    codes = np.arange(16, dtype=np.uint8)
    blocks = np.stack([np.insert(codes | codes << 4, 0, scale) for scale in range(255)])  # 255 is NaN
    found = gguf.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(found.astype(ml_dtypes.bfloat16).astype(np.float32), found)


def shapes_and_axes(config):
    architecture = model(config)[0]
    return tensors.flat(architecture.shapes), tensors.flat(architecture.axes)


LIES = {
    "a part": ({"split.count": 3}, "is one of 3 parts; join them"),
    "architecture": ({"general.architecture": "bert"}, "its architecture 'bert' is not computed; read are gemma, "),
    "no architecture": ({"general.architecture": None}, "its architecture None is not computed"),
    "layers": ({"llama.block_count": 1 << 40}, "layers 1099511627776 is not from 1 to 4,096"),
    "no layers": ({"llama.block_count": None}, "llama.block_count is missing"),
    "no heads": ({"llama.attention.head_count": 0}, "heads 0 is not from 1 to 4,096"),
    "heads of layers": ({"llama.attention.head_count_kv": [4, 2]}, "layers differ: [4, 2]"),
    "text for a size": ({"llama.embedding_length": "24"}, "width '24' is not from 1"),
    "context": ({"llama.context_length": -1}, "a context or window of -1 is not from 1"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "norm_epsilon nan is no number from 0"),
    "base": ({"llama.rope.freq_base": float("inf")}, "rope_theta inf is no number from 0"),
    "part of a head": ({"llama.rope.dimension_count": 4}, "dimension_count 4 can't be used: heads are 6 wide"),
    "scaling": ({"llama.rope.scaling.type": "odd"}, "rope.scaling.type 'odd' is not computed for llama"),
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": -4.0}, "a wrong type or value"),
    "window": ({"llama.attention.sliding_window": 9}, "sliding_window 9: such a llama is not computed"),
    "unknown": ({"llama.logit_scale": 16.0}, "llama.logit_scale 16.0 can't be used: we don't compute it"),
    "softcap": ({"llama.attn_logit_softcapping": 50.0}, "no family of"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_setting_that_can_not_be_true_or_is_not_computed_is_named(good, lie):
    changes, why = LIES[lie]
    read = reading.read(good)
    settings = {key: value for key, value in (read.settings | changes).items() if value is not None}
    with pytest.raises(UserError) as error:
        configs.config_json(dataclasses.replace(read, settings=settings))
    assert str(error.value).startswith(f"{good}: ") and why in str(error.value) and "\n" not in str(error.value)


# Model, other settings → fields of our config.
SAID = {
    "no key heads": ("llama-2", {"attention.head_count_kv": None}, {"kv_heads": 4}),
    "no head width": ("qwen-2.5", {"attention.key_length": None}, {"head_width": 6}),
    "old name of linear scaling": ("llama-2", {"rope.scale_linear": 4.0}, {"rope_scaling.factor": 4.0}),
    "a window beyond the context": ("llama-2", {"attention.sliding_window": 64}, {"windows": ()}),
    "Phi-3's window": ("phi-3 longrope", {"attention.sliding_window": 5}, {"windows": (5, 5, 5)}),
    "a window in all but each third": ("gemma-3", {"attention.sliding_window_pattern": 3}, {"windows": (7, 7, 0, 7)}),
    "Gemma 3's own pattern": ("gemma-3", {"attention.sliding_window_pattern": None}, {"windows": (7, 7, 7, 7)}),
    "Gemma 3 without a window": ("gemma-3", {"attention.sliding_window": None}, {"windows": ()}),
    "Gemma 3's local base": ("gemma-3", {"rope.freq_base_swa": None}, {"local_rope_theta": 10_000.0}),
    "Gemma 2's window": ("gemma-2", {"attention.sliding_window": None}, {"windows": (4096, 0, 4096)}),
    "Gemma 2's caps": (
        "gemma-2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"attention_softcap": 50.0, "logit_softcap": 30.0},
    ),
    "no base": ("llama-2", {"rope.freq_base": None}, {"rope_theta": 10_000.0}),
    "YaRN as llama.cpp has it": (
        "llama-2",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
        {"rope_scaling": RopeScaling("yarn", 4.0, 16, scale=1.1386294)},
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_file_leaves_out_is_what_llama_cpp_computes_then(case, small_tokenizer, tmp_path):
    """Its `src/models` and `llama-model.cpp`, version 0.3.36 of llama-cpp-python."""
    name, changes, wanted = SAID[case]
    write(tmp_path / "small.gguf", config_of(name, vocab_size=V), small_tokenizer)
    read = reading.read(tmp_path / "small.gguf")
    prefix = read.settings["general.architecture"]
    settings = read.settings | {f"{prefix}.{key}": value for key, value in changes.items()}
    settings = {key: value for key, value in settings.items() if value is not None}
    found = configs.config_json(dataclasses.replace(read, settings=settings))
    config = huggingface_configs.read(found, "config.json")
    for field, value in wanted.items():
        assert operator.attrgetter(field)(config) == value


def test_llama_3s_own_divisors_become_its_own_scaling(small_tokenizer, tmp_path):
    own = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    own |= {"rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = config_of(
        "llama-3.2 tied", vocab_size=V, head_dim=64, max_position_embeddings=1 << 17, rope_parameters=own
    )
    write(tmp_path / "small.gguf", config, small_tokenizer)
    assert published(tmp_path / "small.gguf").config == planned(config).layout.config


# Model, the divisors of RoPE in its file.
UNUSED = {
    "no scaling": ("qwen-2.5", "freqs"),
    "no RoPE": ("gpt-2", "freqs"),
    "LongRoPE of another": ("llama-2", "short", "long"),
    "Llama 3's of another": ("phi-3 longrope", "freqs"),
    "short alone": ("phi-3 longrope", "short"),
    "long alone": ("phi-3 longrope", "long"),
    "both kinds": ("phi-3 longrope", "freqs", "short", "long"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_divisors_of_rope_that_would_not_be_used_are_refused(case, small_tokenizer, tmp_path):
    name, *kinds = UNUSED[case]
    write(tmp_path / "small.gguf", config_of(name, vocab_size=V), small_tokenizer)
    read = reading.read(tmp_path / "small.gguf")
    named = ["rope_freqs.weight" if kind == "freqs" else f"rope_factors_{kind}.weight" for kind in kinds]
    kept = [tensor for tensor in read.tensors if tensor.name not in configs.DIVISORS]
    tensors = kept + [GgufTensor(of, (3,), "F32", 0, 12) for of in named]
    with pytest.raises(UserError, match=f"{' and '.join(named)}: RoPE of .* with these is not computed"):
        configs.config_json(dataclasses.replace(read, tensors=tensors))


ODD = [None, True, -1, 0, 1.5, 1e300, float("nan"), "x", "", [], [1, 2], [-1] * 3, ["a"], 1 << 31, 1 << 63]


def test_no_setting_makes_more_than_a_line(good):
    """2,000 heads with 1 to 4 settings of odd values: they are read, or refused by one line."""
    read, chance = reading.read(good), random.Random(0)
    keys = [f"llama.{key}" for key in sorted(configs.KNOWN)]
    for _ in range(2000):
        changes = {chance.choice(keys): chance.choice(ODD) for _ in range(chance.randint(1, 4))}
        with contextlib.suppress(UserError):
            configs.config_json(dataclasses.replace(read, settings=read.settings | changes))


TENSORS = {
    "missing": ({"blk.1.attn_q.weight": None}, "missing blk.1.attn_q.weight; its settings and its tensors"),
    "shape": ({"blk.1.attn_q.weight": np.ones((24, 20), np.float32)}, "blk.1.attn_q.weight is [24, 20] instead of "),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_every_tensor_is_used_once_and_every_parameter_is_set_once(good, kind, tmp_path):
    changes, why = TENSORS[kind]
    with pytest.raises(UserError, match=re.escape(why)):
        read(rewritten(good, tmp_path / "bad.gguf", (), changes))


SOME = ("list", "lie", "overlap")  # `test_gguf_doctor.py` reads all
FILES = [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in SOME)) for kind in [*HOSTILE, "lie"]]


@pytest.mark.parametrize("verb", ["import", pytest.param("generate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_ends_a_verb_in_one_line_and_nothing_is_written(good, verb, kind, tmp_path, capsys):
    file, run = tmp_path / "bad.gguf", tmp_path / "run"
    if kind == "lie":
        rewritten(good, file, {"llama.block_count": 1 << 31})
    else:
        file.write_bytes(HOSTILE[kind][0])
    options = [str(file), "--run", str(run)] if verb == "import" else [str(file), "--prompt", "a"]
    assert main([verb, *options]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and str(file) in printed[0] and not run.exists()


@pytest.mark.ci
def test_an_import_makes_a_base_of_a_file(good, tmp_path, capsys):
    """And what is generated from it is what is generated from the file."""
    assert main(["import", str(good), "--run", str(tmp_path / "run")]) == 0
    said = [
        main(["generate", str(of), "--tokens", "8", "--temperature", "0", "--prompt", "a"])
        for of in (good, tmp_path / "run")
    ]
    first, second = capsys.readouterr().out.splitlines()
    assert said == [0, 0] and first == second


@pytest.mark.ci
def test_a_file_is_exported_as_a_folder_and_as_a_file_of_another_type(good, tmp_path, capsys):
    """Both hold the parameters of the file, and nothing else is left beside them."""
    assert main(["export", str(good), str(tmp_path / "folder")]) == 0
    assert main(["export", str(good), str(tmp_path / "file"), "--format", "gguf", "--weights", "f32"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert f"export: {good}, to {tmp_path / 'folder'}" in capsys.readouterr().err
    config, params = read(good)
    for path in (tmp_path / "folder", tmp_path / "file" / "file-f32.gguf"):
        of, held = read(path)
        assert of == config and held.keys() == params.keys()
        for key, array in held.items():
            np.testing.assert_array_equal(array, params[key], key)


@pytest.mark.parametrize("name", ["good.gguf", "other"])
def test_a_file_without_a_template_is_named_where_a_conversation_is_asked_for(good, name, tmp_path, capsys):
    file = tmp_path / name
    file.write_bytes(good.read_bytes())
    assert main(["chat", str(file), "--prompt", "a"]) == 2
    assert f"{file}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_model_in_use_on_a_cpu_keeps_the_codes_of_a_file(kind, small_tokenizer, tmp_path):
    """Its numbers are those that are read otherwise, in 8.5 or 4.5 bits each; no scale is rounded again."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = config_of("llama-3.2 tied", vocab_size=V, head_dim=32, **sizes)
    write(tmp_path / "small.gguf", config, small_tokenizer, kind)
    kept, numbers = (load_session(tmp_path / "small.gguf", exact=exact) for exact in (False, True))
    found, wanted = tensors.flat(kept.params), tensors.flat(numbers.params)
    packed = {key: leaf for key, leaf in found.items() if is_packed(leaf)}
    assert packed.keys() == {key for key, leaf in wanted.items() if leaf.ndim > 2} | {"embedding"}
    for key, leaf in packed.items():
        with jax.set_mesh(kept.mesh):
            own = np.asarray(jax.jit(Packed.unpacked)(leaf))
        np.testing.assert_array_equal(own.T if key == "embedding" else own, wanted[key], key)
        bits = 8 * sum(of.nbytes for of in jax.tree.leaves(leaf)) / wanted[key].size
        assert bits == 8.5 if kind == "q8_0" or key == "embedding" else bits == 4.5, key


def test_matrices_are_packed_as_they_are_read(small_tokenizer, tmp_path):
    """With the same bytes as whole parameters that are packed later; none of these is placed on a device before."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = config_of("llama-3.2 tied", vocab_size=V, head_dim=32, **sizes)
    write(tmp_path / "small.gguf", config, small_tokenizer, "q4_1")
    found = published(tmp_path / "small.gguf")
    architecture, mesh = Architecture(found.config), make_mesh({})
    targets, placed = parameter_targets(architecture, mesh, jax.numpy.dtype("bfloat16")), []

    def filled(packs):
        with found.weights() as source, jax.set_mesh(mesh):
            place = lambda array, target: placed.append(array) or place_array(array, target)  # noqa: E731
            return fill(source, targets, architecture.axes, place, lambda size: None, packs)

    with jax.set_mesh(mesh):
        whole = packed_params(filled(False), architecture.axes)
    placed.clear()
    own = filled(True)
    assert [is_packed(array) for array in placed].count(True) == 8  # seven matrices of all layers, and the embedding
    assert jax.tree.structure(own) == jax.tree.structure(whole)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("most", [0, 40_000, 1 << 30])
def test_tensors_are_read_ahead_within_so_many_bytes(most, good, monkeypatch):
    """With any number of threads; one that is larger is read when those before it are gone."""
    now = mock.MagicMock()
    now.return_value.__enter__.return_value.submit = lambda of, *more: mock.Mock(
        result=mock.Mock(return_value=of(*more))
    )
    monkeypatch.setattr(weights, "ThreadPoolExecutor", now)
    monkeypatch.setattr(weights, "_BYTES_AHEAD", most)
    begun, gone, counts, read_values = [], [], [], reading.values

    def noted(file, tensor):
        begun.append(tensor.size)  # all of them are in float32
        return read_values(file, tensor)

    monkeypatch.setattr(reading, "values", noted)
    found = published(good)
    architecture = Architecture(found.config)
    with found.weights() as source:
        for _ in source.parts_of(architecture.shapes, architecture.axes, gone.append):
            counts.append((len(gone), len(begun)))
    assert begun == gone and len(gone) > 10
    for number, end in counts:
        fits = [last for last in range(number + 2, len(gone) + 1) if sum(gone[number:last]) <= most]
        assert end == max([number + 1, *fits])


def test_a_second_process_reads_a_head_from_what_the_first_has_kept_until_the_file_changes(good, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, calls, call = tmp_path / "a.gguf", [], Limited.call
    file.write_bytes(good.read_bytes())
    monkeypatch.setattr(Limited, "call", lambda self, *arguments: calls.append(1) or call(self, *arguments))
    assert weights.head(file) == weights.head(file) == weights.head(file) and len(calls) == 1
    file.write_bytes(good.read_bytes()[:1000])
    for count in (2, 3):  # an error is not kept
        with pytest.raises(UserError, match="broken or hostile"):
            weights.head(file)
        assert len(calls) == count
