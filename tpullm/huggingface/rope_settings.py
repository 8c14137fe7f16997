"""Rotary positions in `config.json`, read into our fields and written from them."""

import math
from collections.abc import Mapping
from typing import Any

from tpullm.errors import UserError
from tpullm.recipe.schema import ModelConfig, RopeScaling


def read(said: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The rotary fields, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    newer, older = said.get("rope_parameters") or {}, said.get("rope_scaling") or {}
    local = newer.get("sliding_attention") or {}
    newer = newer.get("full_attention", newer) or {}
    kinds = [place.get("rope_type", place.get("type", "default")) for place in (older, newer)]
    if older and newer and (kinds[0] != kinds[1] or older.get("factor") != newer.get("factor")):
        raise UserError(
            f"{where}: rope_scaling says {kinds[0]!s:.80} and rope_parameters {kinds[1]!s:.80}; make them agree"
        )
    for place in (older, newer, local):
        if place.get("partial_rotary_factor", 1) != 1:
            raise UserError(
                f"{where}: partial_rotary_factor {place['partial_rotary_factor']!s:.80} can't be used: we compute 1"
            )
    if local.get("rope_type", "default") != "default":
        raise UserError(
            f"{where}: RoPE of type {local['rope_type']!s:.80} in sliding_attention can't be used: we compute default"
        )
    scaling = {**older, **newer}
    theta = scaling.get("rope_theta") or said.get("rope_theta") or 10_000.0
    found = {"rope_theta": float(theta), "rope_scaling": _scaling(scaling, fields["context_length"], said, where)}
    local_theta = local.get("rope_theta") or said.get("rope_local_base_freq")
    return found | ({"local_rope_theta": float(local_theta)} if local_theta else {})


def _scaling(scaling: Mapping[str, Any], context: int, said: Mapping[str, Any], where: str) -> RopeScaling:
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
        return RopeScaling(
            kind, factor, original, fast=fast, slow=slow, truncate=truncate, scale=_yarn(scaling, factor)
        )
    if kind == "longrope":
        scale = scaling.get("attention_factor") or math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
        short, long = (tuple(map(float, scaling[key])) for key in ("short_factor", "long_factor"))
        return RopeScaling(kind, factor, original, scale=float(scale), short=short, long=long)
    raise UserError(
        f"{where}: RoPE of type {kind!r:.80} is not known; known are linear, dynamic, llama3, yarn and longrope"
    )


def _yarn(scaling: Mapping[str, Any], factor: float) -> float:
    """The factor of cosine and sine in YaRN (Peng et al. 2023, section 3.4; DeepSeek has two `mscale`s)."""
    if scaling.get("attention_factor"):
        return float(scaling["attention_factor"])
    scale = lambda weight: 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return scale(scaling["mscale"]) / scale(scaling["mscale_all_dim"])
    return scale(1.0)


def write(name: str, config: ModelConfig) -> dict[str, Any]:
    """The keys that transformers 5 writes, and the older keys that engines read."""
    scaling = _scaling_written(config.rope_scaling)
    whole = {"rope_theta": config.rope_theta, **scaling}
    older = {"rope_theta": config.rope_theta, "rope_scaling": scaling if config.rope_scaling.kind != "none" else None}
    if config.rope_scaling.kind == "longrope":  # Phi-3 looks for it here alone
        older["original_max_position_embeddings"] = config.rope_scaling.original_context
    if name != "gemma3_text":
        return {"rope_parameters": whole, **older}
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    parameters = {"full_attention": whole, "sliding_attention": local}
    return {"rope_parameters": parameters, "rope_local_base_freq": config.local_rope_theta, **older}


def _scaling_written(scaling: RopeScaling) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": scaling.kind if scaling.kind != "none" else "default"}
    if scaling.kind != "none":
        found["factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn", "longrope"):
        found["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_frequency, "high_freq_factor": scaling.high_frequency}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.fast, "beta_slow": scaling.slow, "truncate": scaling.truncate}
    if scaling.kind in ("yarn", "longrope"):
        found["attention_factor"] = scaling.scale
    if scaling.kind == "longrope":
        found |= {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
    return found
