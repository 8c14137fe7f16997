"""The settings of a model as keys of a GGUF file."""

import math

from tpullm.llamacpp.architectures import Architecture
from tpullm.recipe.schema import ModelConfig


def write(writer, config: ModelConfig, architecture: Architecture) -> None:
    """Add what the model computes to a `gguf.GGUFWriter`."""
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_vocab_size(config.vocabulary_size)
    (writer.add_layer_norm_eps if config.norm == "layer" else writer.add_layer_norm_rms_eps)(config.norm_epsilon)
    if config.experts:
        writer.add_expert_count(config.experts)
        writer.add_expert_used_count(config.experts_per_token)
        writer.add_expert_feed_forward_length(config.mlp_width)
    if architecture.windows:
        writer.add_sliding_window(max(config.windows))
        writer.add_sliding_window_pattern([window > 0 for window in config.windows])
    if config.attention_softcap:
        writer.add_attn_logit_softcapping(config.attention_softcap)
    if config.logit_softcap:
        writer.add_final_logit_softcapping(config.logit_softcap)
    if config.positions == "rotary":
        _positions(writer, config)


def _positions(writer, config: ModelConfig) -> None:
    import gguf

    scaling = config.rope_scaling
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    if config.local_rope_theta:
        writer.add_rope_freq_base_swa(config.local_rope_theta)
    if scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
        writer.add_rope_scaling_attn_factors(attention_factor(config))
    if scaling.kind == "yarn":
        writer.add_rope_scaling_yarn_beta_fast(scaling.fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.slow)


def attention_factor(config: ModelConfig) -> float:
    """The factor on cosine and sine beside the one that llama.cpp computes itself, `0.1 log(factor) + 1` for YaRN."""
    scaling = config.rope_scaling
    return scaling.scale / (0.1 * math.log(scaling.factor) + 1) if scaling.kind == "yarn" else scaling.scale
