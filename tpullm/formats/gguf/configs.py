"""The settings of a GGUF file → a `config.json`, as a folder in the format of Hugging Face has it.

What llama.cpp computes for an architecture is its code (`src/models`), so a setting that is missing has the value that
is in that code. A setting that changes what is computed, and that our model does not compute, is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tpullm.formats.gguf.architectures import ARCHITECTURES, COUNTS, NUMBERS, ONLY, READ, Architecture
from tpullm.formats.gguf.reading import GgufFile, GgufTensor, values
from tpullm.formats.huggingface import configs
from tpullm.formats.huggingface.families import FAMILIES
from tpullm.recipe.schema import ModelConfig, RopeScaling
from tpullm.system.errors import UserError

_KEYS = COUNTS | NUMBERS
KNOWN = {*_KEYS.values(), *READ, *ONLY}
_YARN = (("fast", 32), ("slow", 1))  # llama.cpp's bounds, in turns
_DEFAULTS = {"gemma2": {"attention_softcap": 50.0, "logit_softcap": 30.0}}
DIVISORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_SCALING_OF_DIVISORS = {DIVISORS[:1]: "llama3", DIVISORS[1:]: "longrope"}
# llama.cpp's architecture → its family, the first one of the table; another one if the file has a setting.
_FAMILY = {found.name: name for name, found in reversed(ARCHITECTURES.items())}
_WITH = {"llama": ("expert_count", "mixtral"), "olmo2": ("attention.sliding_window", "olmo3")}
_EVERY = {"gemma3_text": 6, "olmo3": 4}  # layers, of which the last one has no window


def family(file: GgufFile) -> str:
    """The `model_type` of a file; `UserError` if its architecture is not read."""
    name = file.settings.get("general.architecture")
    if name not in (known := sorted(_FAMILY)):
        raise UserError(f"{file.path}: its architecture {name!r:.80} is not computed; read are {', '.join(known)}")
    setting, other = _WITH.get(name, ("", ""))
    return other if file.settings.get(f"{name}.{setting}") else _FAMILY[name]


def config_json(file: GgufFile) -> dict[str, Any]:
    """The `config.json` of the model in a file.

    Raises:
        UserError: the architecture is not read, or a setting is missing, of a wrong type, or one that we don't compute.
    """
    model_type = family(file)
    if (parts := file.settings.get("split.count", 1)) not in (0, 1):
        raise UserError(f"{file.path}: is one of {parts!r:.20} parts; join them: llama-gguf-split --merge FIRST WHOLE")
    with configs.faults_of(str(file.path)):
        config = _model_config(file, ARCHITECTURES[model_type], model_type)
        return configs.write(config, model_type)


def _model_config(file: GgufFile, architecture: Architecture, model_type: str) -> ModelConfig:
    prefix = f"{architecture.name}."
    said = {key.removeprefix(prefix): value for key, value in file.settings.items() if key.startswith(prefix)}
    said = {key: _one(value) if "pattern" not in key else value for key, value in said.items()}
    for key, value in said.items():
        if key not in KNOWN or key in ONLY and value != ONLY[key]:
            raise UserError(f"{prefix}{key} {value!r:.80} can't be used: we don't compute it")
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    divisors = tuple(name for name in DIVISORS if name in shapes)
    if divisors and _SCALING_OF_DIVISORS.get(divisors) not in architecture.scalings:
        raise UserError(f"{' and '.join(divisors)}: RoPE of {architecture.name} with these is not computed")
    fields: dict[str, Any] = dict(FAMILIES[model_type].fixed) | _DEFAULTS.get(model_type, {})
    fields |= {ours: said[key] for ours, key in _KEYS.items() if key in said}
    if not said.get("expert_count"):
        fields = {key: value for key, value in fields.items() if not key.startswith("experts")}
    for needed in ("layers", "width", "heads", "mlp_width", "context_length"):
        if needed not in fields:
            raise KeyError(prefix + _KEYS[needed])
    norm = "norm_epsilon" if fields.get("norm") == "layer" else "norm_rms_epsilon"
    fields["norm_epsilon"] = said[f"attention.layer_{norm}"]
    fields["mlp_width"] = said.get("expert_feed_forward_length") or fields["mlp_width"]
    fields["vocabulary_size"] = shapes["token_embd.weight"][0]
    fields["tied_embeddings"] = "output.weight" not in shapes
    fields |= {"activation": architecture.activation, "swiglu_limit": architecture.swiglu_limit}
    fields = {"kv_heads": fields["heads"], "rope_theta": 10_000.0} | fields
    configs.check_sizes(fields)  # before anything is counted up to them
    fields.setdefault("head_width", fields["width"] // fields["heads"])
    turned = said.get("rope.dimension_count", fields["head_width"])
    if architecture.partial_rope and turned != fields["head_width"]:
        if type(turned) is not int or not 2 <= turned < fields["head_width"] or turned % 2:
            raise ValueError(f"rope.dimension_count {turned!r:.40} of heads that are {fields['head_width']} wide")
        fields["rotary_width"] = turned
    for bias, tensor in (("qkv_bias", "attn_q"), ("out_bias", "attn_output"), ("mlp_bias", "ffn_up")):
        fields[bias] = fields.get(bias, False) or f"blk.0.{tensor}.bias" in shapes
    if fields["layers"] == architecture.whole_scale_layers:
        fields["attention_scale"] = (fields["width"] // fields["heads"]) ** -0.5
    elif "attention_scale" in FAMILIES[model_type].keys:
        fields["attention_scale"] = fields["head_width"] ** -0.5
    if fields.get("positions", "rotary") == "rotary":
        fields["rope_scaling"] = _rope_scaling(file, said, architecture, fields)
        if FAMILIES[model_type].local_rope:
            theta = fields["rope_theta"] if architecture.one_base else 10_000.0
            fields["local_rope_theta"] = said.get("rope.freq_base_swa", theta)
        fields["rotary_layers"] = architecture.rotary_layers(fields["layers"])
    fields["windows"] = _windows(said, architecture, model_type, fields)
    for key in ("rope.dimension_count", "attention.value_length"):
        ours = fields.get("rotary_width") if "rope" in key else 0
        if said.get(key, fields["head_width"]) != (ours or fields["head_width"]):
            raise UserError(f"{prefix}{key} {said[key]!r:.40} can't be used: heads are {fields['head_width']} wide")
    return configs.model_config(fields)


def _one(value: Any) -> Any:
    """A setting: of a list for the layers, its one value; of a float32, the shortest decimal number for it."""
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError(f"layers differ: {value!r:.80}")
        value = value[0]
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _windows(said: Mapping, architecture: Architecture, model_type: str, fields: Mapping) -> tuple[int, ...]:
    """The window of each layer. Of Phi-3 llama.cpp leaves it out, and transformers does not."""
    window, layers = said.get("attention.sliding_window", 4096 if model_type == "gemma2" else 0), fields["layers"]
    if not window or not architecture.windows and window >= fields["context_length"]:
        return ()
    if model_type == "phi3":
        return (window,) * layers
    base, own_base = said.get("rope.freq_base", 10_000.0), FAMILIES[model_type].local_rope and not architecture.one_base
    if not architecture.windows or not own_base and said.get("rope.freq_base_swa", base) != base:
        raise UserError(f"attention.sliding_window {window!r:.40}: such a {architecture.name} is not computed")
    pattern = said.get("attention.sliding_window_pattern", _EVERY.get(model_type, 2))
    local = pattern if isinstance(pattern, list) else [layer % pattern < pattern - 1 for layer in range(layers)]
    if len(local) != layers:
        raise ValueError(f"{len(local)} windows for {layers} layers")
    return tuple(window if is_local else 0 for is_local in local) if any(local) else ()


def _rope_scaling(file: GgufFile, said: Mapping, architecture: Architecture, fields: Mapping) -> RopeScaling:
    """Our `RopeScaling`. A file has the divisors of Llama 3 and of LongRoPE as tensors."""
    divisors = {tensor.name: _divisors(file, tensor, fields) for tensor in file.tensors if tensor.name in DIVISORS}
    kind = said.get("rope.scaling.type", "linear")
    factor = float(said.get("rope.scaling.factor") or said.get("rope.scale_linear") or 1)
    scale = float(said.get("rope.scaling.attn_factor", 1))
    context = said.get("rope.scaling.original_context_length") or fields["context_length"]
    if len(divisors) == 2:
        of_length = {"short": divisors[DIVISORS[1]], "long": divisors[DIVISORS[2]]}
        return RopeScaling("longrope", fields["context_length"] / context, context, scale=scale, **of_length)
    if divisors:
        return _of_llama_3(divisors[DIVISORS[0]], fields)
    if kind == "yarn" and kind in architecture.scalings:
        scale = _one(scale * (0.1 * math.log(factor) + 1))  # llama.cpp computes the second factor itself
        fast, slow = (float(said.get(f"rope.scaling.yarn_beta_{end}", turns)) for end, turns in _YARN)
        return RopeScaling(kind, factor, context, fast=fast, slow=slow, scale=scale)
    if kind == "linear" and (factor == 1 or kind in architecture.scalings):
        return RopeScaling(kind, factor, fields["context_length"]) if factor != 1 else RopeScaling()
    if kind not in ("none", "longrope"):
        raise UserError(f"rope.scaling.type {kind!r:.40} is not computed for {architecture.name}")
    return RopeScaling()


def _divisors(file: GgufFile, tensor: GgufTensor, fields: Mapping) -> tuple[float, ...]:
    """The divisors of the frequencies of RoPE."""
    if tensor.kind != "F32" or tensor.shape != ((fields.get("rotary_width") or fields["head_width"]) // 2,):
        raise ValueError(f"{tensor.name} of {tensor.kind} {list(tensor.shape)}")
    found = tuple(_one(float(value)) for part in values(file, tensor) for value in part)
    if not all(0 < value < math.inf for value in found):
        raise ValueError(f"{tensor.name} of other values than divisors")
    return found


def _of_llama_3(divisors: tuple[float, ...], fields: Mapping) -> RopeScaling:
    """Llama 3's own scaling if these are its divisors; else the divisors for all lengths, which computes the same."""
    found = RopeScaling("llama3", max(divisors), 8192)
    frequencies = fields["rope_theta"] ** -(np.arange(len(divisors)) / len(divisors))
    turns = found.original_context * frequencies / (2 * math.pi)
    kept = np.clip((turns - found.low_frequency) / (found.high_frequency - found.low_frequency), 0, 1)
    if np.allclose(1 / (kept + (1 - kept) / found.factor), divisors, rtol=1e-5, atol=0):
        return found
    return RopeScaling("longrope", found.factor, fields["context_length"], short=divisors, long=divisors)
