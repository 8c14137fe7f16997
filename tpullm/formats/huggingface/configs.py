"""`config.json` → `ModelConfig` and back. A setting that our model does not compute is refused and never ignored."""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.recipe.schema import ModelConfig, RopeScaling
from tpullm.system.errors import UserError

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# Keys that change what a model computes, and the values with which our model computes the same.
ONLY = {
    "use_bidirectional_attention": (False, None),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "swiglu_alpha": (1.702,),
    "quantization_config": (None,),
    "auto_map": (None,),
}
WHY = {
    "quantization_config": "its weights are quantized; use the checkpoint that it was made from",
    "auto_map": "it runs code of its own; use a version of transformers' own architecture",
}
# Sizes beyond ten times those of any model: a shape of such sizes can still be computed with. Others, of 1 at least.
MOST = {"layers": 4_096, "experts": 4_096, "experts_per_token": 4_096, "heads": 4_096, "kv_heads": 4_096}
MOST |= {
    "shared_experts": 4_096,
    "dense_width": 1 << 20,
    "head_width": 1 << 16,
    "width": 1 << 18,
    "mlp_width": 1 << 20,
    "vocabulary_size": 1 << 22,
}
ROOT = "query_pre_attn_scalar"  # Gemma's, whose root divides the scores; Granite's key is the factor
BALANCE_RATE = 0.001  # DeepSeek-V3's, as `families.yaml` has it
POSITIVE = ("router_scale", "embedding_scale", "residual_scale", "logit_divisor")
MOST_LENGTH = 1 << 30  # of a context or a window, in tokens


def read(config: Mapping[str, Any], where: str) -> ModelConfig:
    """The `ModelConfig` of a `config.json`.

    Raises:
        UserError: the family is unknown, or a setting is missing, of a wrong type, or one that we don't compute.
    """
    with faults_of(where):
        return _read_fields(config)


@contextlib.contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Inside, foreign settings are read; what is raised about them becomes a `UserError` that begins with `where`."""
    try:
        yield
        return
    except UserError as error:
        why = str(error)
    except KeyError as error:
        why = f"{error.args[0]} is missing; take it from the model's source"
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        why = f"a setting has a wrong type or value ({error!s:.200}); take it from the model's source"
    raise UserError(f"{where}: {why}")


def _read_fields(config: Mapping[str, Any]) -> ModelConfig:
    """A null is like a missing key, unless the default of the key is not null: then null turns the feature off."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"model_type {name!r:.80} is not known; known are {', '.join(sorted(FAMILIES))}")
    quantized, family = config.get("quantization_config"), FAMILIES[name]
    if isinstance(quantized, Mapping) and quantized.get("quant_method") == "mxfp4":  # `reading.py` unpacks it
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    said = {**family.defaults, **config}
    for key, values in (ONLY | family.only).items():
        if key in said and said[key] not in values:
            why = WHY.get(key, f"we compute {values[0]!r}")
            raise UserError(f"{key} {said[key]!r:.200} can't be used: {why}")
    if family.all_attention and set(said.get("layer_types") or "?") != {"attention"}:
        raise UserError(
            f"layer_types {said.get('layer_types')!r:.200} can't be used: we compute attention in each layer"
        )
    fields: dict[str, Any] = {"tied_embeddings": False} | dict(family.fixed)
    fields |= {ours: said[theirs] for ours, theirs in family.keys.items() if said.get(theirs) is not None}
    for needed in ("layers", "width", "heads", "vocabulary_size", "context_length"):
        if not isinstance(fields.get(needed), int):
            raise KeyError(family.keys[needed])
    check_sizes(fields)  # before anything is counted up to them
    if "head_width" not in fields and fields["width"] % fields["heads"]:
        raise ValueError(f"{fields['heads']} heads do not divide a width of {fields['width']}")
    if fields["activation"] not in ACTIVATIONS:
        raise UserError(f"{family.keys['activation']} {fields['activation']!r:.80} is not one of {list(ACTIVATIONS)}")
    fields["activation"] = ACTIVATIONS[fields["activation"]]
    fields["mlp_width"] = fields.get("mlp_width") or 4 * fields["width"]  # GPT-2's n_inner may be left out
    if "experts" in family.keys:  # transformers 5 writes the second name in every family
        fields["experts"] = said.get("num_experts") or said.get("num_local_experts") or said[family.keys["experts"]]
        if not 1 <= fields.get("experts_per_token", 0) <= fields["experts"]:
            raise ValueError(f"{said.get('num_experts_per_tok')} of {fields['experts']} experts can't be chosen")
    if family.keys.get("attention_scale") == ROOT:
        fields["attention_scale"] **= -0.5
    for key, ours in family.biases.items():
        fields |= dict.fromkeys(ours, bool(said.get(key)))
    if family.qk_norm:
        fields["qk_norm"] = "head" if said.get(family.qk_norm) else "none"
    if "dense_layers" in family.keys:
        if type(fields["dense_layers"]) is not int or not 0 <= fields["dense_layers"] < fields["layers"]:
            raise ValueError(f"{fields['dense_layers']!r:.40} of {fields['layers']} layers can't be without experts")
        if not fields["dense_layers"]:
            del fields["dense_width"]
    fields["windows"] = _attention_windows(family, said, fields["layers"])
    if fields.get("positions", "rotary") == "rotary":
        fields |= _read_rope(family, said, fields)
    return model_config(fields)


def model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of foreign fields; `ValueError` for a size or a number that no model can have."""
    check_sizes(fields)
    _check_numbers(fields)
    numbers = {name for name, kind in _kinds().items() if kind is float}
    fields = {name: float(value) if name in numbers else value for name, value in fields.items()}
    return ModelConfig(**fields).resolved(fields["vocabulary_size"])


def check_sizes(fields: Mapping[str, Any]) -> None:
    """`ValueError` for a size that no model can have."""
    for name in MOST.keys() & fields.keys():
        if type(fields[name]) is not int or not 1 <= fields[name] <= MOST[name]:
            raise ValueError(f"{name} {fields[name]!r:.40} is not from 1 to {MOST[name]:,}")
    for size in (fields["context_length"], *filter(None, fields.get("windows", ()))):
        if type(size) is not int or not 1 <= size <= MOST_LENGTH:
            raise ValueError(f"a context or window of {size!r:.40} is not from 1 to {MOST_LENGTH:,}")


def _check_numbers(fields: Mapping[str, Any]) -> None:
    """`ValueError` for a value that is not a finite number of 0 or more, or a switch that is not true or false."""
    kinds = _kinds()
    for name, value in fields.items():
        if kinds[name] is float and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise ValueError(f"{name} {value!r:.40} is no number from 0")
        if name in POSITIVE and not value:
            raise ValueError(f"{name} is 0")
        if kinds[name] is bool and not isinstance(value, bool):
            raise ValueError(f"{name} {value!r:.40} is neither true nor false")
    scaling = fields.get("rope_scaling", RopeScaling())
    numbers = [value for value in vars(scaling).values() if type(value) in (int, float)]
    if not all(0 <= value < math.inf for value in (*numbers, *scaling.short, *scaling.long)):
        raise ValueError("a number of the RoPE scaling is none, infinite or negative")


def _kinds() -> dict[str, Any]:
    """The types of the fields of `ModelConfig`, without their bounds."""
    return typing.get_type_hints(ModelConfig)


def _attention_windows(family: Family, said: Mapping, layers: int) -> tuple[int, ...]:
    window, kinds = said.get("sliding_window"), said.get("layer_types")
    if not family.window or not window or said.get("use_sliding_window") is False:
        return ()
    local = [family.has_window(layer, said) for layer in range(layers)]
    if kinds is not None:
        if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
            raise UserError(f"layer_types {kinds!r:.200} are not {layers} of sliding_attention and full_attention")
        listed = [kind == "sliding_attention" for kind in kinds]
        if not family.lists_windows and listed != local:
            raise UserError("layer_types are not used by this model_type, which has the window in every layer")
        local = listed
    return tuple(window if is_local else 0 for is_local in local) if any(local) else ()


def _read_rope(family: Family, said: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    newer, older = said.get("rope_parameters") or {}, said.get("rope_scaling") or {}
    local = newer.get("sliding_attention") or {}
    newer = newer.get("full_attention", newer) or {}
    kinds = [place.get("rope_type", place.get("type", "default")) for place in (older, newer)]
    if older and newer and (kinds[0] != kinds[1] or older.get("factor") != newer.get("factor")):
        raise UserError(f"rope_scaling says {kinds[0]!s:.80} and rope_parameters {kinds[1]!s:.80}; make them agree")
    found: dict[str, Any] = {}
    places = (place.get("partial_rotary_factor") for place in (said, older, newer, local))
    for factor in (factors := [factor for factor in places if factor is not None]):
        if factor != 1 and not (family.partial_rope and type(factor) is float and 0 < factor < 1):
            raise UserError(f"partial_rotary_factor {factor!s:.80} can't be used: we compute 1")
    if factors and factors[-1] != 1:
        found["rotary_width"] = int((fields.get("head_width") or fields["width"] // fields["heads"]) * factors[-1])
        if not found["rotary_width"] or found["rotary_width"] % 2:
            raise ValueError(f"{found['rotary_width']} dimensions of a head can't be turned in pairs")
    if (kind := local.get("rope_type", "default")) != "default":
        raise UserError(f"RoPE of type {kind!s:.80} in sliding_attention can't be used: we compute default")
    scaling = {**older, **newer}
    theta = scaling.get("rope_theta") or said.get("rope_theta") or 10_000.0
    found |= {"rope_theta": float(theta), "rope_scaling": _read_rope_scaling(scaling, fields["context_length"], said)}
    own = local.get("rope_theta") or said.get("rope_local_base_freq")
    if family.local_rope:
        found["local_rope_theta"] = float(own or theta)
    elif own and own != theta:
        raise UserError(f"rope_theta {own!s:.80} of sliding_attention can't be used: we compute that of all layers")
    if family.lists_rope:
        each, layers = said["no_rope_layer_interval"], fields["layers"]
        listed = said.get("no_rope_layers") or [(layer + 1) % each for layer in range(layers)]
        if len(listed) != layers:
            raise ValueError(f"no_rope_layers has {len(listed)} values for {layers} layers")
        found["rotary_layers"] = () if all(listed) else tuple(map(bool, listed))
    return found


def _read_rope_scaling(scaling: Mapping[str, Any], context: int, said: Mapping[str, Any]) -> RopeScaling:
    """Our `RopeScaling` for theirs. The older name of `rope_type` is `type`."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return RopeScaling()
    if "short_factor" in scaling:  # early files of Phi-3 call it `su` or `yarn`
        kind = "longrope"
    original = scaling.get("original_max_position_embeddings") or said.get("original_max_position_embeddings")
    original, factor = int(original or context), scaling.get("factor")
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, float(factor), context)
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        return RopeScaling(kind, float(factor), original, low_frequency=low, high_frequency=high)
    factor = float(factor or context / original)
    if kind == "yarn":
        fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)
        truncate = scaling.get("truncate", True)
        # The factor of cosine and sine (Peng et al. 2023, section 3.4; DeepSeek has two `mscale`s).
        of = lambda weight: 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
        if scaling.get("attention_factor"):
            scale = float(scaling["attention_factor"])
        elif scaling.get("mscale") and scaling.get("mscale_all_dim"):
            scale = of(scaling["mscale"]) / of(scaling["mscale_all_dim"])
        else:
            scale = of(1.0)
        return RopeScaling(kind, factor, original, fast=fast, slow=slow, truncate=truncate, scale=scale)
    if kind == "longrope":
        scale = scaling.get("attention_factor") or math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
        short, long = (tuple(map(float, scaling[key])) for key in ("short_factor", "long_factor"))
        return RopeScaling(kind, factor, original, scale=float(scale), short=short, long=long)
    raise UserError(f"RoPE of type {kind!r:.80} is not known; known are linear, dynamic, llama3, yarn and longrope")


def write(config: ModelConfig, preferred: str = "") -> dict[str, Any]:
    """The `config.json` of a model, in the first family whose `config.json` reads back as exactly this config.

    Args:
        preferred: the `model_type` to try first, which is that of the model's source.

    Raises:
        UserError: no family has all settings of this config.
    """
    if config.balance_rate:  # of a training; published models have the bias, and no rate
        config = dataclasses.replace(config, balance_rate=BALANCE_RATE)
    for name in sorted(FAMILIES, key=lambda name: name != preferred):
        written = _written_in_family(name, config)
        try:
            if read(written, name) == config:
                return written
        except UserError:
            continue
    raise UserError(
        f"export: no family of {', '.join(FAMILIES)} has such a model; nothing is left out silently ({config})"
    )


def _written_in_family(name: str, config: ModelConfig) -> dict[str, Any]:
    family = FAMILIES[name]
    found: dict[str, Any] = {"model_type": name, "architectures": [family.architecture]}
    found |= {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    if family.keys.get("attention_scale") == ROOT:
        scale = config.attention_scale
        scalar = round(scale**-2, 6) if scale else config.head_width
        found[ROOT] = int(scalar) if scalar == int(scalar) else scalar  # Gemma's is a whole number
    for softcap in ("attention_softcap", "logit_softcap"):
        if softcap in family.keys:
            found[family.keys[softcap]] = getattr(config, softcap) or None
    if config.activation == "gelu_tanh":
        found[family.keys["activation"]] = "gelu_new" if name == "gpt2" else "gelu_pytorch_tanh"
    found |= {key: getattr(config, ours[0]) for key, ours in family.biases.items()}
    found |= {family.qk_norm: config.qk_norm == "head"} if family.qk_norm else {}
    found |= {family.multi_token: 0} if family.multi_token else {}
    found |= family.written | ({"layer_types": ["attention"] * config.layers} if family.all_attention else {})
    if "dense_layers" in family.keys and not config.dense_layers:
        found[family.keys["dense_width"]] = config.mlp_width  # not used
    if family.window:
        window = max(config.windows, default=0)
        kinds = ["sliding_attention" if size else "full_attention" for size in config.windows or (0,) * config.layers]
        found |= {"sliding_window": window or None, "layer_types": kinds}
        if name.startswith("qwen"):
            found |= {"use_sliding_window": bool(window), "max_window_layers": kinds.count("full_attention")}
        if not family.lists_windows:
            del found["layer_types"]
    if config.positions == "rotary":
        found |= _write_rope(name, config)
    return found


def _write_rope(name: str, config: ModelConfig) -> dict[str, Any]:
    """The keys that transformers 5 writes, and the older keys that engines read."""
    of, kind = config.rope_scaling, config.rope_scaling.kind
    scaling: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind}
    if kind != "none":
        scaling["factor"] = of.factor
    if kind in ("llama3", "yarn", "longrope"):
        scaling["original_max_position_embeddings"] = of.original_context
    if kind == "llama3":
        scaling |= {"low_freq_factor": of.low_frequency, "high_freq_factor": of.high_frequency}
    if kind == "yarn":
        scaling |= {"beta_fast": of.fast, "beta_slow": of.slow, "truncate": of.truncate}
    if kind in ("yarn", "longrope"):
        scaling["attention_factor"] = of.scale
    if kind == "longrope":
        scaling |= {"short_factor": list(of.short), "long_factor": list(of.long)}
    family, partial = FAMILIES[name], {}
    if family.partial_rope and (config.rotary_width or "partial_rotary_factor" in family.defaults):
        partial = {"partial_rotary_factor": (config.rotary_width or config.head_width) / config.head_width}
    whole = {"rope_theta": config.rope_theta, **scaling, **partial}
    older = {"rope_theta": config.rope_theta, "rope_scaling": None if kind == "none" else scaling}
    older |= partial
    if kind == "longrope":  # Phi-3 looks for it here alone
        older["original_max_position_embeddings"] = of.original_context
    if family.lists_rope:
        older["no_rope_layers"] = list(map(int, config.rotary_layers or (True,) * config.layers))
    if not family.local_rope:
        return {"rope_parameters": whole, **older}
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    parameters = {"full_attention": whole, "sliding_attention": local}
    if name == "gemma3_text":
        older["rope_local_base_freq"] = config.local_rope_theta
    return {"rope_parameters": parameters, **older}
