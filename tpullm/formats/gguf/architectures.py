"""What llama.cpp computes for each family: the architecture of a GGUF file, and the settings of a model as its keys.

An architecture in llama.cpp is code, so a setting that its code lacks can't be written into a file. Such a model is
refused, and never written as another one. The tables are in `architectures.yaml`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpullm.recipe.schema import ModelConfig, RopeScaling
from tpullm.system.errors import UserError
from tpullm.system.log import warn
from tpullm.system.storage import read_tables


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Args:
        name: its `general.architecture`.
        interleaved: RoPE turns neighbouring dimensions, not those of two halves.
        activation: the only activation.
        biases: our fields of biases that it adds.
        scalings: the kinds of RoPE scaling.
        windows: whether layers can have an attention window.
        one_base: RoPE of these has the base of the others.
        partial_rope: RoPE can turn a part of each head.
        no_rope_every: of so many layers the last one has no positions; 0 is none.
        whole_heads: the heads together must be as wide as the model.
        output: `either` a table of its own or the embedding; `tied`, only the embedding; `own`, a table in any case.
        fused: the tensor that holds several of our parameters → these, in order.
        mlp_norm: the tensor of the norm before the MLP.
        whole_scale_layers: layers of the one size whose attention scale is (width / heads)^-1/2.
        swiglu_limit: the only bound of SwiGLU.
    """

    name: str
    interleaved: bool = False
    activation: str = "silu"
    biases: tuple[str, ...] = ("qkv_bias",)
    scalings: tuple[str, ...] = ("linear", "yarn")
    windows: bool = False
    one_base: bool = False
    partial_rope: bool = False
    no_rope_every: int = 0
    whole_heads: bool = False
    output: str = "either"
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mlp_norm: str = "FFN_NORM"
    whole_scale_layers: int = 0
    swiglu_limit: float = 0.0

    def rotary_layers(self, layers: int) -> tuple[bool, ...]:
        """`ModelConfig.rotary_layers` of a model with so many layers."""
        found = tuple(bool((layer + 1) % self.no_rope_every) for layer in range(layers)) if self.no_rope_every else ()
        return () if all(found) else found


_TABLES = {"names": dict[str, str], "architectures": dict[str, Architecture]}
_TABLES |= {"counts": dict[str, str], "numbers": dict[str, str], "read": set[str], "only": dict[str, Any]}
NAMES, ARCHITECTURES, COUNTS, NUMBERS, READ, ONLY = read_tables(Path(__file__).with_suffix(".yaml"), **_TABLES)


def of_model(config: ModelConfig, model_type: str) -> Architecture:
    """The architecture for a model of the family `model_type`.

    Raises:
        UserError: llama.cpp lacks a setting of the model, and the error names it; or we don't write such files.
    """
    if model_type not in ARCHITECTURES:
        raise UserError(f"export: GGUF files of {model_type} are not written; use --format huggingface")
    found = ARCHITECTURES[model_type]
    for setting, value in _lacking_settings(config, found):
        why = f"can't compute model.{setting}: {value}; use --format huggingface"
        raise UserError(f"export: llama.cpp's {found.name} {why}")
    if config.rope_scaling.kind == "yarn" and not config.rope_scaling.truncate:
        warn(
            "llama.cpp rounds the bounds of YaRN to whole dimensions (model.rope_scaling.truncate): a small difference"
        )
    return found


def _lacking_settings(config: ModelConfig, found: Architecture):
    """The settings, with their values, that the architecture lacks."""
    if config.activation != found.activation:
        yield "activation", config.activation
    for bias in ("qkv_bias", "out_bias", "mlp_bias"):
        if getattr(config, bias) and bias not in found.biases:
            yield bias, "true"
    if config.rope_scaling.kind not in ("none", *found.scalings):
        yield "rope_scaling.kind", config.rope_scaling.kind
    if not found.windows and any(0 < window < config.context_length for window in config.windows):
        yield "windows", f"{min(filter(None, config.windows))} of a context of {config.context_length}"
    if found.windows and len(set(filter(None, config.windows))) != 1:
        yield "windows", "every layer sees all" if not any(config.windows) else "of several lengths"
    if found.one_base and config.local_rope_theta != config.rope_theta:
        yield "local_rope_theta", config.local_rope_theta
    if config.rotary_width and not found.partial_rope:
        yield "rotary_width", config.rotary_width
    if config.rotary_layers != found.rotary_layers(config.layers):
        yield "rotary_layers", list(config.rotary_layers)
    if found.whole_heads and config.heads * config.head_width != config.width:
        yield "head_width", f"{config.heads} heads of {config.head_width} are not the width of {config.width}"
    if found.output == "tied" and not config.tied_embeddings:
        yield "tied_embeddings", "false"
    if config.swiglu_limit != found.swiglu_limit:
        yield "swiglu_limit", config.swiglu_limit
    if not config.normalize_router:
        yield "normalize_router", "false"
    # llama.cpp knows Gemma's largest models by their number of layers.
    is_largest = config.layers == found.whole_scale_layers
    theirs = (config.width // config.heads if is_largest else config.head_width) ** -0.5
    ours = config.attention_scale or config.head_width**-0.5
    if not math.isclose(ours, theirs, rel_tol=1e-6):
        yield "attention_scale", f"{ours:.6g} is not {theirs:.6g}"


def write(writer, config: ModelConfig, architecture: Architecture) -> None:
    """Add what the model computes to a `gguf.GGUFWriter`."""
    import gguf

    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    for key, value in _settings(config, architecture).items():
        writer.add_key_value(f"{architecture.name}.{key}", value, gguf.GGUFValueType[kinds[type(value)]])


def _settings(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """What the model computes, as settings of a file without the name of the architecture before them."""
    counts = {ours: key for ours, key in COUNTS.items() if config.experts or not ours.startswith("experts")}
    found: dict[str, Any] = {key: getattr(config, ours) for ours, key in counts.items()}
    found |= {key: float(getattr(config, ours)) for ours, key in NUMBERS.items()}
    found |= {"attention.value_length": config.head_width, "vocab_size": config.vocabulary_size}
    norm = "norm_epsilon" if config.norm == "layer" else "norm_rms_epsilon"
    found[f"attention.layer_{norm}"] = float(config.norm_epsilon)
    found["expert_feed_forward_length"] = config.mlp_width if config.experts else 0
    if architecture.windows:
        found["attention.sliding_window"] = max(config.windows)
        found["attention.sliding_window_pattern"] = [window > 0 for window in config.windows]
    if config.positions != "rotary":
        del found[NUMBERS["rope_theta"]]
        return {key: value for key, value in found.items() if value}
    width = config.rotary_width or config.head_width
    found |= {"rope.dimension_count": width, "rope.freq_base_swa": float(config.local_rope_theta)}
    of_scaling = {f"rope.scaling.{key}": value for key, value in _scaling_settings(config.rope_scaling)}
    return {key: value for key, value in found.items() if value} | of_scaling


def _scaling_settings(scaling: RopeScaling) -> Iterator[tuple[str, Any]]:
    if scaling.kind in ("linear", "yarn"):
        yield from (("type", scaling.kind), ("factor", float(scaling.factor)))
    if scaling.kind in ("yarn", "longrope"):
        # Beside the factor on cosine and sine that llama.cpp computes itself, which is 1 for LongRoPE.
        own = 0.1 * math.log(scaling.factor) + 1 if scaling.kind == "yarn" else 1
        yield from (("original_context_length", scaling.original_context), ("attn_factor", scaling.scale / own))
    if scaling.kind == "yarn":
        yield from (("yarn_beta_fast", float(scaling.fast)), ("yarn_beta_slow", float(scaling.slow)))
