"""A small model of each family, with odd settings, and weights that are a function of their names.

Heads that are not width / number, one or few key heads, windows shorter than the text, RoPE scalings beyond the
original length, biases, tied and untied, a vocabulary that is a multiple of nothing.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.small import mesh
from tpullm.data.batch import Batch
from tpullm.formats.huggingface import configs, tensors
from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.model.architecture import Architecture

V, LENGTH = 61, 40
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA = dict(vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=3, max_position_embeddings=64)
LLAMA |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=10, rope_parameters=ROPE, rms_norm_eps=1e-5)
LLAMA |= dict(hidden_act="silu", tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0)
NO_HEAD = {key: value for key, value in LLAMA.items() if key != "head_dim"}
GEMMA_1 = {key: value for key, value in LLAMA.items() if key != "hidden_act"} | {"tie_word_embeddings": True}
GEMMA = GEMMA_1 | dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=17, sliding_window=7)
QWEN_EXPERTS = LLAMA | dict(num_experts=5, num_experts_per_tok=3, moe_intermediate_size=20)
AS_THEY_ARE = dict(norm_topk_prob=False, attention_bias=True, tie_word_embeddings=True)
FIRST_DENSE = LLAMA | dict(num_hidden_layers=4, n_routed_experts=5, num_experts_per_tok=3, moe_intermediate_size=20)
FIRST_DENSE |= dict(n_shared_experts=2, routed_scaling_factor=1.7)
EXPERTS = LLAMA | dict(num_local_experts=5, num_experts_per_tok=2)
GRANITE = NO_HEAD | dict(embedding_multiplier=12, residual_multiplier=0.22, attention_multiplier=0.3, logits_scaling=8)
GRANITE_4 = dict(num_local_experts=0, shared_intermediate_size=36, position_embedding_type="rope", mamba_n_heads=4)
SLOW = ROPE | {"rope_theta": 5e5}
LINEAR, DYNAMIC = (ROPE | dict(rope_type=kind, factor=3.0) for kind in ("linear", "dynamic"))
SCALED = ROPE | dict(factor=4.0, original_max_position_embeddings=16)
LLAMA3 = SCALED | dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=3.0)
YARN = SCALED | dict(rope_type="yarn", beta_fast=8.0, beta_slow=1.0)
UNROUNDED = YARN | {"truncate": False}
LONG = SCALED | dict(rope_type="longrope", short_factor=[1, 1.1, 1.2, 1.3, 1.4], long_factor=[1, 1.5, 2, 3, 4])
PHI_LONG = ROPE | dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[1.0, 1.5, 2.0])
OF_BOTH = {
    "full_attention": ROPE | {"rope_type": "linear", "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
OF_FULL = OF_BOTH | {"full_attention": YARN, "sliding_attention": ROPE}
KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
GPT_2 = dict(vocab_size=V, n_embd=24, n_inner=44, n_layer=3, n_head=4, n_positions=48, activation_function="gelu_new")
GPT_2 |= dict(layer_norm_epsilon=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
GPT_2 |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)

# name -> (model_type, keys of config.json)
MODELS = {
    "llama-2": ("llama", LLAMA | {"head_dim": 6, "num_key_value_heads": 4}),
    "llama-2 linear": ("llama", LLAMA | {"rope_parameters": LINEAR}),
    "llama-2 dynamic": ("llama", LLAMA | {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
    "llama-3 one key head": ("llama", LLAMA | {"num_key_value_heads": 1, "rope_parameters": SLOW}),
    "llama-3.1": ("llama", LLAMA | {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-3.2 tied": ("llama", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama yarn": ("llama", LLAMA | {"rope_parameters": YARN}),
    "llama longrope": ("llama", LLAMA | {"rope_parameters": LONG}),
    "mistral": ("mistral", LLAMA | {"sliding_window": 9}),
    "qwen-2.5": ("qwen2", NO_HEAD | {"tie_word_embeddings": True}),
    "qwen-2.5 windows": ("qwen2", NO_HEAD | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen-3": ("qwen3", LLAMA | {"rope_parameters": UNROUNDED}),
    "qwen-3 biases": ("qwen3", LLAMA | {"attention_bias": True}),
    "olmo-2": ("olmo2", NO_HEAD),
    "olmo-3": (
        "olmo3",
        NO_HEAD | dict(num_hidden_layers=4, layer_types=KINDS, sliding_window=7, rope_parameters=OF_FULL),
    ),
    "smollm-3": ("smollm3", NO_HEAD | dict(num_hidden_layers=5, no_rope_layers=[1, 1, 1, 0, 1], rope_parameters=SLOW)),
    "smollm-3 biases": ("smollm3", NO_HEAD | dict(no_rope_layer_interval=2, mlp_bias=True)),
    "phi-4-mini": (
        "phi3",
        NO_HEAD | {"rope_parameters": ROPE | {"partial_rotary_factor": 2 / 3}, "sliding_window": None},
    ),
    "phi-3": ("phi3", LLAMA | {"sliding_window": 9}),
    # The text is always longer than the original context: where it crosses over, transformers computes its cache anew.
    "phi-3 longrope": (
        "phi3",
        NO_HEAD | {"original_max_position_embeddings": 4, "max_position_embeddings": 8, "rope_parameters": PHI_LONG},
    ),
    "gemma": ("gemma", GEMMA_1),
    "gemma-2": ("gemma2", GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0}),
    "gemma-3": ("gemma3_text", GEMMA | {"num_hidden_layers": 4, "layer_types": KINDS, "rope_parameters": OF_BOTH}),
    "granite-3": ("granite", GRANITE | {"attention_bias": True, "tie_word_embeddings": True}),
    "granite-4": ("granitemoehybrid", GRANITE | GRANITE_4 | {"layer_types": ["attention"] * 3}),
    "mixtral": ("mixtral", EXPERTS | {"sliding_window": 9}),
    "qwen-3 experts": ("qwen3_moe", QWEN_EXPERTS | {"norm_topk_prob": True, "rope_parameters": YARN}),
    "qwen-3 experts, weights as they are": (
        "qwen3_moe",
        QWEN_EXPERTS | AS_THEY_ARE | {"use_sliding_window": True, "sliding_window": 9},
    ),
    "glm-4.5": (
        "glm4_moe",
        FIRST_DENSE
        | dict(first_k_dense_replace=1, use_qk_norm=True, attention_bias=True, num_nextn_predict_layers=0)
        | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.6}},
    ),
    "glm-4.5 all experts": (
        "glm4_moe",
        FIRST_DENSE | dict(head_dim=12, first_k_dense_replace=0, norm_topk_prob=False),
    ),
    "dots-1": (
        "dots1",
        FIRST_DENSE | dict(first_k_dense_replace=2, layer_types=KINDS[1:] + KINDS[:1], sliding_window=7),
    ),
    "gpt-oss": ("gpt_oss", EXPERTS | {"swiglu_limit": 1.5, "sliding_window": 7, "rope_parameters": UNROUNDED}),
    "gpt-2": ("gpt2", GPT_2),
}

# One model of each family.
OF_FAMILIES = list({model_type: name for name, (model_type, _) in reversed(MODELS.items())}.values())


def weight(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """A random tensor that depends on its name and shape alone; scales of norms are near `scale`."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(shape).astype(np.float32)
    return values * 0.3 + (scale if len(shape) == 1 and "bias" not in name else 0.0)


def rows(count: int = 3) -> np.ndarray:
    """Token ids `[count, LENGTH + 1]`."""
    return np.random.default_rng(0).integers(3, V, (count, LENGTH + 1)).astype(np.int32)


def batch() -> Batch:
    inputs, targets = rows()[:, :-1], rows()[:, 1:]
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), inputs.shape)
    return Batch(inputs, targets, np.ones_like(inputs), positions, np.ones(inputs.shape, np.float32))


def published(config: dict) -> tuple[Architecture, Family, dict[str, np.ndarray]]:
    """The model of a `config.json`: our architecture, its family, and their tensors with the weights of `weight`."""
    model = configs.read(config, "config.json")
    architecture, family, found = Architecture(model), FAMILIES[config["model_type"]], {}
    for name, shapes, _, _, inputs in _pieces(architecture, family):
        shape, scale = tensors.their_shape(family, shapes, inputs), 1.0 - model.norm_unit_offset
        found[name] = weight(name, shape, scale)
    return architecture, family, found


def as_ours(architecture: Architecture, family: Family, found: dict[str, np.ndarray]) -> dict:
    """Our parameters, of their tensors: every one of them is used."""
    flat = {key: np.zeros(shape.shape, np.float32) for key, shape in tensors.flat(architecture.shapes).items()}
    used = set()
    for name, shapes, ours, place, inputs in _pieces(architecture, family):
        for key, part in zip(ours, tensors.split(family, found[name], shapes, inputs), strict=True):
            flat[key][place] = part
        used.add(name)
    assert used == found.keys()
    return tensors.nested(flat)


def logits(architecture: Architecture, params: dict, tokens: np.ndarray, segments=None, positions=None) -> np.ndarray:
    """Our logits of rows of tokens, in float32; by default each row is one text."""
    segments = np.ones_like(tokens) if segments is None else segments
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions

    @jax.jit
    def run(params):
        model = architecture.model(params)
        return model.logits(model(tokens, segments, positions, dtype=jnp.float32).hidden)

    with jax.set_mesh(mesh()):
        return np.asarray(run(params))


def _pieces(architecture: Architecture, family: Family):
    shapes, axes = tensors.flat(architecture.shapes), tensors.flat(architecture.axes)
    for name, ours, place in tensors.pieces(family, shapes):
        of = [shapes[key].shape[len(place) :] for key in ours]
        yield name, of, ours, place, tensors.input_dimensions(ours[0], axes[ours[0]], place)
