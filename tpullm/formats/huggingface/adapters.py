"""Adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`, read and written.

Their module may hold several of our matrices (`qkv_proj`), whose adapters then stand in one: the first matrices side by
side, the second ones as blocks, and the rank and alpha times their number. If all have the same first matrix, as after
reading such a file, it is written once.

Beside them is `base.json`, some numbers of each matrix of the base: with another model of the same shapes the adapter
would compute nonsense, and nothing else would say so. Numbers are kept and no hash, because the same model may be
stored in another type.

Shapes: of our flat names, `a` is `[L, *inputs, R]`, `b` is `[L, R, *outputs]`, `magnitude` is `[L, *outputs]`. Theirs
are `lora_A` `[R, in]`, `lora_B` `[out, R]`, `lora_magnitude_vector` `[out]`.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm.formats.huggingface import tensors
from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.formats.huggingface.reading import WeightFiles
from tpullm.recipe.schema import AdapterConfig
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
MOST_RANK = 1 << 16
# What else PEFT can do with LoRA, and what it must be here. A key that is missing has that value.
ONLY: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    # Others change the parameters of the base when they are loaded.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
FILE = "base.json"  # `numbers` of each matrix of the base, beside `adapter_config.json`; PEFT does not read it
COUNT = 16  # numbers of a matrix
# bfloat16 rounds by up to 2^-8 of a number, float16 by 2^-11; both may have happened.
TOLERANCE = 0.005


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of theirs that an adapter may stand beside.

    Args:
        name: of its tensor, without `.weight`.
        ours: our matrices in it, by flat names without `.weight`.
        layer: their place in our arrays.
    """

    name: str
    ours: tuple[str, ...]
    layer: int


def modules_with_adapters(family: Family, shapes: dict[str, Any]) -> Iterator[Module]:
    """The modules whose matrices can have an adapter: those of layers, without experts and their router.

    Args:
        shapes: of our parameters, by flat name.
    """
    for theirs, ours, place in tensors.pieces(family, shapes):
        of_layer = len(place) == 1 and ours[0].endswith(".weight") and ours[0] != "layers.mlp.router.weight"
        if theirs.endswith(".weight") and of_layer:
            yield Module(theirs.removesuffix(".weight"), tuple(name.removesuffix(".weight") for name in ours), place[0])


def write(
    folder: Path, family: Family, adapters: dict[str, np.ndarray], config: AdapterConfig, shapes: dict, base: str
) -> int:
    """Write an adapter into a folder; returns the bytes of its tensors.

    Args:
        adapters: by flat name, such as `layers.attention.query.adapter.a`.
        shapes: of the parameters of the model, by flat name.
        base: the name of the model that it is an adapter of.

    Raises:
        UserError: PEFT has no form for it.
    """
    from safetensors.numpy import save_file

    found, ranks, used = {}, {}, set()
    for module in modules_with_adapters(family, shapes):
        parts = [name for name in module.ours if f"{name}.adapter.a" in adapters]
        used |= set(parts)
        if not parts:
            continue
        a, b = _fused_adapter(adapters, module, parts, shapes)
        where = f"{PREFIX}{module.name}."
        found |= {where + A: np.ascontiguousarray(a), where + B: np.ascontiguousarray(b)}
        # By its last two names, as `target_modules` has it: GPT-2 has a `c_proj` in attention and in the MLP.
        ranks[".".join(module.name.split(".")[-2:])] = len(a)
        if config.magnitude:
            if len(parts) < len(module.ours):
                whole, has = (", ".join(name.rpartition(".")[2] for name in names) for names in (module.ours, parts))
                raise UserError(
                    f"{module.name}: PEFT keeps one DoRA for {whole}, and the adapter has {has} alone; tune with all "
                    "of them as targets"
                )
            lengths = [adapters[f"{name}.adapter.magnitude"][module.layer].reshape(-1) for name in parts]
            found[where + MAGNITUDE] = np.concatenate(lengths)
    if left := {key.split(".adapter.")[0] for key in adapters} - used:
        name = min(left).rpartition(".")[2]
        raise UserError(f"export: PEFT has no form for an adapter of {name} of experts; use --merge")
    storage.write_json(folder / CONFIG, _peft_config(config, ranks, family, base))
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in found.values())


def _fused_adapter(adapters: dict, module: Module, parts: list[str], shapes: dict) -> tuple[np.ndarray, np.ndarray]:
    """`lora_A` and `lora_B` of a module from the adapters of our matrices in it."""
    a, b = ({name: adapters[f"{name}.adapter.{key}"][module.layer] for name in parts} for key in "ab")
    firsts = [array.reshape(-1, array.shape[-1]).T for array in a.values()]
    shared = all(np.array_equal(first, firsts[0]) for first in firsts[1:])
    rank, inputs = firsts[0].shape
    rows = []
    for name in module.ours:
        outputs = math.prod(shapes[f"{name}.weight"].shape[1:]) // inputs
        row = np.zeros((outputs, rank if shared else rank * len(parts)), firsts[0].dtype)
        if name in parts:
            begin = 0 if shared else rank * parts.index(name)
            row[:, begin : begin + rank] = b[name].reshape(rank, -1).T
        rows.append(row)
    return firsts[0] if shared else np.concatenate(firsts), np.concatenate(rows)


def _peft_config(config: AdapterConfig, ranks: dict[str, int], family: Family, base: str) -> dict[str, Any]:
    alpha = config.alpha or 2 * config.rank
    wide = {name: rank for name, rank in ranks.items() if rank != config.rank}
    # The scale stays what it is: alpha over the rank, or over its root.
    alphas = {name: alpha * (rank / config.rank) ** (0.5 if config.root_scale else 1.0) for name, rank in wide.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": wide,
        "alpha_pattern": alphas,
        "target_modules": sorted(ranks),
        "use_rslora": config.root_scale,
        "use_dora": config.magnitude,
        "fan_in_fan_out": not family.transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def read(folder: Path, shapes: dict[str, Any]) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    """The settings of an adapter, and its parameters by flat name, float32; a matrix that has none in a layer gets 0.

    Args:
        shapes: of the parameters of the model, by flat name.

    Raises:
        UserError: we cannot compute this adapter, or it belongs to another model; the error names the tensor.
    """
    said = read_json(folder / CONFIG)
    for key, allowed in ONLY.items():
        if said.get(key, allowed[0]) not in allowed:
            raise UserError(f"{folder / CONFIG}: {key} is {said[key]!s:.80}; only {allowed[0]} is known here")
    rank, alpha = _peft_number(said, "r", folder), _peft_number(said, "lora_alpha", folder)
    root, magnitude = bool(said.get("use_rslora")), bool(said.get("use_dora"))
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: is no adapter in the format of PEFT: it has no {WEIGHTS}; give such a folder")
    found: dict[str, np.ndarray] = {}
    seen: Counter[str] = Counter()
    with WeightFiles(folder, WEIGHTS) as source:
        left = set(source.files)
        # The family after whose modules most tensors are named.
        named = [
            [module for module in modules_with_adapters(family, shapes) if f"{PREFIX}{module.name}.{A}" in left]
            for family in FAMILIES.values()
        ]
        given = max(named, key=len)
        if not given:
            one = min(left, default="")
            raise UserError(f"{folder}: {one!s:.120} is no matrix of this model; its base is another one")
        most = max(source.shape(f"{PREFIX}{module.name}.{A}")[0] for module in given)
        if most > MOST_RANK:
            raise UserError(f"{folder}: has an adapter of rank {most:,}; at most {MOST_RANK:,} is known here")
        scale = alpha / (rank**0.5 if root else rank)
        config = AdapterConfig(most, scale * (most**0.5 if root else most), root, magnitude)
        for module in given:
            names = [f"{PREFIX}{module.name}.{part}" for part in (A, B, *([MAGNITUDE] if magnitude else []))]
            if missing := [name for name in names if name not in left]:
                raise UserError(f"{folder}: {missing[0]} is missing; fetch the adapter again")
            parts = [source(name).astype(np.float32) for name in names]
            parts[1] *= _module_scale(said, module.name, rank, alpha, root) / scale
            _set_adapter(found, module, parts, most, shapes, folder)
            seen.update(module.ours)
            left -= set(names)
    if magnitude and (short := [name for name, count in seen.items() if count < shapes[f"{name}.weight"].shape[0]]):
        name = short[0].rpartition(".")[2]
        raise UserError(f"{folder}: {name} has no DoRA in some layers; only LoRA may leave layers out")
    if left:
        raise UserError(f"{folder}: {min(left)!s:.120} is no matrix of this model; the adapter's base is another one")
    targets = sorted({name.split(".")[-3] for name in found})
    return dataclasses.replace(config, targets=tuple(targets)), found


def _peft_number(said: dict, key: str, folder: Path) -> float:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(f"{folder / CONFIG}: {key} is {value!s:.80}, and no number above 0; fetch the adapter again")
    return value


def _module_scale(said: dict, name: str, rank: float, alpha: float, root: bool) -> float:
    """The factor of one module: PEFT's patterns name some with another rank or alpha."""
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = said.get(key) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{CONFIG}: {key} is {patterns!s:.80}, and no object; fetch the adapter again")
        for pattern, value in patterns.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            if not re.fullmatch(r"[\w.]{1,200}", pattern) or not number:
                raise UserError(f"{CONFIG}: {key} has {pattern!s:.80}: {value!s:.40}; only plain names are known here")
            if name == pattern or name.endswith(f".{pattern}"):
                rank, alpha = (value, alpha) if key == "rank_pattern" else (rank, value)
                break
    return alpha / (rank**0.5 if root else rank)


def _set_adapter(found: dict, module: Module, parts: list[np.ndarray], rank: int, shapes: dict, folder: Path) -> None:
    """Put the adapter of one module into the stacked arrays of our matrices; up to `rank` is 0, which adds nothing."""
    first, second, *norms = parts
    inputs = 2 if module.ours[0].endswith("attention.out") else 1  # heads and their width
    ours = {name: shapes[f"{name}.weight"].shape for name in module.ours}
    layers, *before = next(iter(ours.values()))[: 1 + inputs]
    after = {name: shape[1 + inputs :] for name, shape in ours.items()}
    wanted = math.prod(before), sum(map(math.prod, after.values()))
    if first.ndim != 2 or second.ndim != 2 or (first.shape[1], second.shape[0]) != wanted:
        raise UserError(
            f"{folder}: the adapter of {module.name} is for a matrix of {list(first.shape[1:])} inputs and "
            f"{list(second.shape[:1])} outputs instead of {wanted[0]} and {wanted[1]}; its base is another model"
        )
    own = len(first)
    if own != second.shape[1]:
        raise UserError(f"{folder}: the two matrices of {module.name} are of different ranks; fetch it again")
    if norms and norms[0].size != wanted[1]:
        raise UserError(f"{folder}: {module.name} has {norms[0].size} lengths for {wanted[1]} outputs; fetch it again")

    def array(key: str, *shape: int) -> np.ndarray:
        return found.setdefault(key, np.zeros((layers, *shape), np.float32))[module.layer]

    offset = 0
    for name, shape in after.items():
        of = slice(offset, offset + math.prod(shape))
        offset = of.stop
        array(f"{name}.adapter.a", *before, rank)[..., :own] = first.T.reshape(*before, own)
        array(f"{name}.adapter.b", rank, *shape)[:own] = second[of].T.reshape(own, *shape)
        if norms:
            array(f"{name}.adapter.magnitude", *shape)[...] = norms[0].reshape(-1)[of].reshape(shape)


def sampled_numbers(matrix: jax.Array | np.ndarray) -> list[float]:
    """Numbers of a matrix `[L, ...]`, at places that are spread over all of its layers."""
    places = np.unravel_index(np.linspace(0, matrix.size - 1, COUNT).astype(np.int64), matrix.shape)
    if isinstance(matrix, jax.Array):
        with jax.set_mesh(matrix.sharding.mesh):
            matrix = jax.jit(lambda of: of.at[places].get(out_sharding=jax.sharding.PartitionSpec(None)))(matrix)
        return np.asarray(matrix, np.float32).tolist()
    return matrix[places].astype(np.float32).tolist()


def matrix_names(flat: Mapping[str, object]) -> list[str]:
    """The names of the matrices of layers among flat names of parameters; no family stores them in another form."""
    return [name for name in sorted(flat) if "layers." in name and name.endswith(".weight")]


def check(folder: Path, flat: Mapping[str, Any], sample: Callable[[Any], tuple[list[float], float]]) -> None:
    """Refuse a base whose parameters are others than those that are noted; without a note any is taken.

    Args:
        flat: parameters by flat name.
        sample: of a matrix, what `sampled` gives, and by how much these may differ from those of the base.

    Raises:
        UserError: a number is another one, or the note is none.
    """
    if not (folder / FILE).is_file():
        return
    noted = read_json(folder / FILE).get("numbers")
    for name in matrix_names(flat):
        wanted = noted.get(name) if isinstance(noted, dict) else None
        numeric = isinstance(wanted, list) and all(type(one) in (int, float) and abs(one) < 1e30 for one in wanted)
        if not numeric or len(wanted) != COUNT:
            raise UserError(f"{folder / FILE}: has no numbers of {name}; export the adapter again")
        found, most = sample(flat[name])
        if not np.allclose(found, wanted, rtol=TOLERANCE, atol=1e-7 + most):
            raise UserError(
                f"{folder}: is an adapter of another model of the same shape ({name} has other numbers); give its base"
            )
