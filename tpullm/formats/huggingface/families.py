"""The families of published models, from `families.yaml`.

A family is a table and has no model code of its own: `model/` computes all families.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tpullm.system.storage import read_tables


@dataclass(frozen=True)
class Family:
    """The files of one family of models.

    Args:
        architecture: the class in transformers.
        names: the names of tensors.
        keys: the keys of `config.json`.
        fixed: fields of our config that all models of the family share.
        defaults: the values of missing keys of `config.json`.
        window: which layers have the window if `layer_types` is missing: `all`; `later` than `max_window_layers`;
            `even` ones; all but each last of a `pattern`; all `if_used`; "", none in any case.
        lists_windows: whether `layer_types` says which layers have the window.
        local_rope: RoPE of layers with a window is not scaled. Its base is its own (Gemma 3), or that of the others.
        partial_rope: `partial_rotary_factor` says which share of a head rotary positions turn.
        qk_norm: the key that says whether each head's queries and keys are normalized.
        multi_token: the key that says how many layers of multi-token prediction follow. They are left out.
        lists_rope: `no_rope_layers`, or each last of `no_rope_layer_interval`, says which layers have no positions.
        all_attention: `layer_types` must say that each layer has attention.
        written: keys of `config.json` that are the same for all models of the family that we compute.
        biases: their key of biases, and our fields for it.
        only: keys of `config.json` that change what a model of this family computes, and the values that we compute.
        transposed: whether matrices are `[out, in]`.
    """

    architecture: str
    names: Mapping[str, str | tuple[str, ...]]
    keys: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    window: Literal["", "all", "later", "even", "pattern", "if_used"] = ""
    lists_windows: bool = True
    local_rope: bool = False
    partial_rope: bool = False
    qk_norm: str = ""
    multi_token: str = ""
    lists_rope: bool = False
    all_attention: bool = False
    written: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: Mapping[str, tuple] = field(default_factory=dict)
    transposed: bool = True

    def has_window(self, layer: int, config: Mapping[str, Any]) -> bool:
        """Whether a layer has the window by the family's own rule."""
        if self.window in ("later", "if_used") and not config.get("use_sliding_window"):
            return False
        if self.window == "later":
            return layer >= config["max_window_layers"]
        if self.window == "pattern":
            return (layer + 1) % config["sliding_window_pattern"] != 0
        return layer % 2 == 0 if self.window == "even" else self.window != ""


(FAMILIES,) = read_tables(Path(__file__).with_suffix(".yaml"), families=dict[str, Family])
