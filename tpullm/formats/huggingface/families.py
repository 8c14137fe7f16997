"""The families of published models: for each the names of its tensors and the keys of its `config.json`.

A family is a table and has no model code of its own: `model/` computes all families.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The name of their tensor → the name of our parameter, or of several that their tensor holds. The first `{}` is the
# number of the layer, the second that of the expert.
Names = Mapping[str, str | tuple[str, ...]]


def _linear(where: str, **matrices: str | tuple[str, ...]) -> Names:
    """The weight and the bias of each matrix of a layer."""
    found = {}
    for theirs, ours in matrices.items():
        for part in ("weight", "bias"):
            several = tuple(f"layers.{name}.{part}" for name in ((ours,) if isinstance(ours, str) else ours))
            found[f"{where}.{theirs}.{part}"] = several[0] if len(several) == 1 else several
    return found


_LAYER, _ATTENTION, _MLP = "model.layers.{}", "model.layers.{}.self_attn", "model.layers.{}.mlp"
_QKV = ("attention.query", "attention.key", "attention.value")
LLAMA_NAMES: Names = {
    "model.embed_tokens.weight": "embedding",
    f"{_LAYER}.input_layernorm.weight": "layers.attention_norm.scale",
    **_linear(_ATTENTION, q_proj=_QKV[0], k_proj=_QKV[1], v_proj=_QKV[2], o_proj="attention.out"),
    f"{_ATTENTION}.q_norm.weight": "layers.attention.query_norm.scale",
    f"{_ATTENTION}.k_norm.weight": "layers.attention.key_norm.scale",
    f"{_LAYER}.post_attention_layernorm.weight": "layers.mlp_norm.scale",
    **_linear(_MLP, gate_proj="mlp.gate", up_proj="mlp.up", down_proj="mlp.down"),
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "head",
}
# Norms after attention and MLP (OLMo 2), and around both (Gemma 2 and 3).
AFTER_NAMES = LLAMA_NAMES | {
    f"{_LAYER}.post_attention_layernorm.weight": "layers.attention_out_norm.scale",
    f"{_LAYER}.post_feedforward_layernorm.weight": "layers.mlp_out_norm.scale",
}
AROUND_NAMES = AFTER_NAMES | {f"{_LAYER}.pre_feedforward_layernorm.weight": "layers.mlp_norm.scale"}
# Tensors of Llama that Phi-3 fuses.
_FUSED = tuple(f".{part}_proj.weight" for part in ("q", "k", "v", "gate", "up"))
PHI3_NAMES = {theirs: ours for theirs, ours in LLAMA_NAMES.items() if not theirs.endswith(_FUSED)} | {
    f"{_ATTENTION}.qkv_proj.weight": tuple(f"layers.{name}.weight" for name in _QKV),
    f"{_MLP}.gate_up_proj.weight": ("layers.mlp.gate.weight", "layers.mlp.up.weight"),
}
_NO_MLP = {theirs: ours for theirs, ours in LLAMA_NAMES.items() if ".mlp." not in theirs}
MIXTRAL_NAMES = _NO_MLP | {
    f"{_LAYER}.block_sparse_moe.gate.weight": "layers.mlp.router.weight",
    f"{_LAYER}.block_sparse_moe.experts.{{}}.w1.weight": "layers.mlp.gate.weight",
    f"{_LAYER}.block_sparse_moe.experts.{{}}.w3.weight": "layers.mlp.up.weight",
    f"{_LAYER}.block_sparse_moe.experts.{{}}.w2.weight": "layers.mlp.down.weight",
}
QWEN3_MOE_NAMES = _NO_MLP | {
    f"{_MLP}.gate.weight": "layers.mlp.router.weight",
    f"{_MLP}.experts.{{}}.gate_proj.weight": "layers.mlp.gate.weight",
    f"{_MLP}.experts.{{}}.up_proj.weight": "layers.mlp.up.weight",
    f"{_MLP}.experts.{{}}.down_proj.weight": "layers.mlp.down.weight",
}
GPT_OSS_NAMES = _NO_MLP | {
    f"{_ATTENTION}.sinks": "layers.attention.sinks",
    **_linear(_MLP, router="mlp.router"),
    f"{_MLP}.experts.gate_up_proj": ("layers.mlp.gate.weight", "layers.mlp.up.weight"),
    f"{_MLP}.experts.gate_up_proj_bias": ("layers.mlp.gate.bias", "layers.mlp.up.bias"),
    f"{_MLP}.experts.down_proj": "layers.mlp.down.weight",
    f"{_MLP}.experts.down_proj_bias": "layers.mlp.down.bias",
}
GPT2_NAMES: Names = {
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "position_embedding",
    "transformer.h.{}.ln_1.weight": "layers.attention_norm.scale",
    "transformer.h.{}.ln_1.bias": "layers.attention_norm.bias",
    **_linear("transformer.h.{}.attn", c_attn=_QKV, c_proj="attention.out"),
    "transformer.h.{}.ln_2.weight": "layers.mlp_norm.scale",
    "transformer.h.{}.ln_2.bias": "layers.mlp_norm.bias",
    **_linear("transformer.h.{}.mlp", c_fc="mlp.gate", c_proj="mlp.down"),
    "transformer.ln_f.weight": "norm.scale",
    "transformer.ln_f.bias": "norm.bias",
    "lm_head.weight": "head",
}

# Our field of `ModelConfig` → their key of `config.json`.
LLAMA_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "mlp_width": "intermediate_size",
    "vocabulary_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "activation": "hidden_act",
    "tied_embeddings": "tie_word_embeddings",
}
GEMMA_KEYS = LLAMA_KEYS | {
    "activation": "hidden_activation",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
    "attention_scale": "query_pre_attn_scalar",
}
MIXTRAL_KEYS = LLAMA_KEYS | {"experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
GPT_OSS_KEYS = MIXTRAL_KEYS | {"swiglu_limit": "swiglu_limit"}
QWEN3_MOE_KEYS = LLAMA_KEYS | {
    "mlp_width": "moe_intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "normalize_router": "norm_topk_prob",
}
GPT2_KEYS = {
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "mlp_width": "n_inner",
    "vocabulary_size": "vocab_size",
    "context_length": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
    "activation": "activation_function",
    "tied_embeddings": "tie_word_embeddings",
}


@dataclass(frozen=True)
class Family:
    """The files of one family of models.

    Args:
        architecture: the class in transformers.
        names: the names of tensors.
        keys: the keys of `config.json`.
        fixed: fields of our config that all models of the family share.
        defaults: the values of missing keys of `config.json`.
        window_of_layer: whether a layer has the window if `layer_types` is missing; None if no layer has one.
        lists_windows: whether `layer_types` says which layers have the window.
        biases: their key of biases, and our fields for it.
        only: keys of `config.json` that change what a model of this family computes, and the values that we compute.
        transposed: whether matrices are `[out, in]`.
    """

    architecture: str
    names: Names = field(default_factory=lambda: LLAMA_NAMES)
    keys: Mapping[str, str] = field(default_factory=lambda: LLAMA_KEYS)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    window_of_layer: Callable[[int, dict], bool] | None = None
    lists_windows: bool = True
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: Mapping[str, tuple] = field(default_factory=dict)
    transposed: bool = True


_PLAIN = {"qk_norm": "none", "scale_embeddings": False}
_GEMMA = {"norm_unit_offset": True, "norm_placement": "both"}
_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "out_bias")}
_SILU = {"hidden_act": "silu"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_GEMMA_DEFAULTS = _GELU | {"sliding_window": 4096, "query_pre_attn_scalar": 256, "num_key_value_heads": 4}


def _every_layer(layer: int, config: dict) -> bool:
    return True


def _later_layers(layer: int, config: dict) -> bool:
    return bool(config.get("use_sliding_window")) and layer >= config["max_window_layers"]


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM", fixed=_PLAIN, defaults=_SILU, biases=_ATTENTION_BIAS | {"mlp_bias": ("mlp_bias",)}
    ),
    "mistral": Family(
        "MistralForCausalLM",
        fixed=_PLAIN,
        defaults=_SILU | {"sliding_window": 4096, "num_key_value_heads": 8},
        window_of_layer=_every_layer,
        lists_windows=False,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed=_PLAIN | {"qkv_bias": True},
        defaults=_SILU | {"max_window_layers": 28, "sliding_window": 4096, "num_key_value_heads": 32},
        window_of_layer=_later_layers,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed=_PLAIN | {"qk_norm": "head"},
        defaults=_SILU | {"max_window_layers": 28, "sliding_window": 4096, "num_key_value_heads": 32, "head_dim": 128},
        biases=_ATTENTION_BIAS,
        window_of_layer=_later_layers,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        names=AFTER_NAMES,
        fixed=_PLAIN | {"qk_norm": "all", "norm_placement": "after"},
        defaults=_SILU | {"rms_norm_eps": 1e-5},
        biases=_ATTENTION_BIAS,
    ),
    # Phi-3 computes the same as Llama or, with a window, as Mistral.
    "phi3": Family(
        "Phi3ForCausalLM",
        names=PHI3_NAMES,
        fixed=_PLAIN,
        defaults=_SILU | {"rms_norm_eps": 1e-5},
        window_of_layer=_every_layer,
        lists_windows=False,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        keys=LLAMA_KEYS | {"activation": "hidden_activation"},
        fixed={"norm_unit_offset": True, "qk_norm": "none"},
        defaults=_GELU | {"num_key_value_heads": 16},
        biases=_ATTENTION_BIAS,
        # Gemma was trained with the tanh approximation, which its first published files call `gelu`.
        only={"hidden_act": ("gelu_pytorch_tanh", "gelu", None), "hidden_activation": ("gelu_pytorch_tanh", None)},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        names=AROUND_NAMES,
        keys=GEMMA_KEYS,
        fixed=_GEMMA | {"qk_norm": "none"},
        defaults=_GEMMA_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        biases=_ATTENTION_BIAS,
        window_of_layer=lambda layer, config: layer % 2 == 0,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        names=AROUND_NAMES,
        keys=GEMMA_KEYS,
        fixed=_GEMMA | {"qk_norm": "head"},
        defaults=_GEMMA_DEFAULTS
        | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6},
        biases=_ATTENTION_BIAS,
        window_of_layer=lambda layer, config: (layer + 1) % config["sliding_window_pattern"] != 0,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        names=MIXTRAL_NAMES,
        keys=MIXTRAL_KEYS,
        fixed=_PLAIN,
        defaults=_SILU
        | {"num_key_value_heads": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0},
        window_of_layer=_every_layer,
        lists_windows=False,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        names=QWEN3_MOE_NAMES,
        keys=QWEN3_MOE_KEYS,
        fixed=_PLAIN | {"qk_norm": "head"},
        defaults=_SILU
        | {"num_key_value_heads": 4, "sliding_window": 4096, "norm_topk_prob": False}
        | {"moe_intermediate_size": 768, "num_experts_per_tok": 8},
        biases=_ATTENTION_BIAS,
        window_of_layer=lambda layer, config: bool(config.get("use_sliding_window")),
        lists_windows=False,
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        names=GPT_OSS_NAMES,
        keys=GPT_OSS_KEYS,
        fixed=_PLAIN | {"sinks": True, "mlp_bias": True},
        defaults=_SILU
        | {"head_dim": 64, "num_key_value_heads": 8, "num_experts_per_tok": 4, "swiglu_limit": 7.0}
        | {"sliding_window": 128, "rms_norm_eps": 1e-5, "rope_theta": 150_000.0, "attention_bias": True},
        biases=_ATTENTION_BIAS,
        window_of_layer=lambda layer, config: layer % 2 == 0,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        names=GPT2_NAMES,
        keys=GPT2_KEYS,
        fixed={"norm": "layer", "positions": "learned", "qk_norm": "none", "gated": False, "scale_embeddings": False}
        | {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        defaults={"tie_word_embeddings": True, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
        transposed=False,
    ),
}
