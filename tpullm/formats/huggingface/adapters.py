"""Adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`, read and written.

Their module may hold several of our matrices (`qkv_proj`), whose adapters then stand in one: the first matrices side by
side, the second ones as blocks, and the rank and alpha times their number. If all have the same first matrix, as after
reading such a file, it is written once.

Shapes: of our flat names, `a` is `[L, *inputs, R]`, `b` is `[L, R, *outputs]`, `magnitude` is `[L, *outputs]`. Theirs
are `lora_A` `[R, in]`, `lora_B` `[out, R]`, `lora_magnitude_vector` `[out]`.

Which model an exported adapter is beside: some numbers of its matrices, kept in the adapter's folder.

Another model of the same shapes would compute nonsense with the adapter, and nothing else would say so. Numbers are
kept and no hash, because the same model may be stored in another type.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm.formats.huggingface import tensors
from tpullm.formats.huggingface.families import FAMILIES, Family
from tpullm.formats.huggingface.weight_files import WeightFiles, opened
from tpullm.recipe.schema import AdapterConfig
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import read_json

FILE = "base.json"  # beside `adapter_config.json`; PEFT does not read it
COUNT = 16  # numbers of a matrix
# bfloat16 rounds by up to 2^-8 of a number, float16 by 2^-11; both may have happened.
TOLERANCE = 0.005


def sampled(matrix: jax.Array | np.ndarray) -> list[float]:
    """Numbers of a matrix `[L, ...]`, at places that are spread over all of its layers."""
    places = np.unravel_index(np.linspace(0, matrix.size - 1, COUNT).astype(np.int64), matrix.shape)
    if isinstance(matrix, jax.Array):
        with jax.set_mesh(matrix.sharding.mesh):
            matrix = jax.jit(lambda of: of.at[places].get(out_sharding=jax.sharding.PartitionSpec(None)))(matrix)
        return np.asarray(matrix, np.float32).tolist()
    return matrix[places].astype(np.float32).tolist()


def matrices(flat: Mapping[str, object]) -> list[str]:
    """The names of the matrices of layers among flat names of parameters; no family stores them in another form."""
    return [name for name in sorted(flat) if name.startswith("layers.") and name.endswith(".weight")]


def write_base(folder: Path, numbers: Mapping[str, list[float]]) -> None:
    """Note the numbers of each matrix of the base."""
    storage.write_json(folder / FILE, {"numbers": dict(numbers)})


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
    for name in matrices(flat):
        wanted = noted.get(name) if isinstance(noted, dict) else None
        numeric = isinstance(wanted, list) and all(type(one) in (int, float) and abs(one) < 1e30 for one in wanted)
        if not numeric or len(wanted) != COUNT:
            raise UserError(f"{folder / FILE}: has no numbers of {name}; export the adapter again")
        found, most = sample(flat[name])
        if not np.allclose(found, wanted, rtol=TOLERANCE, atol=1e-7 + most):
            raise UserError(
                f"{folder}: is an adapter of another model of the same shape ({name} has other numbers); give its base"
            )


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
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


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of theirs that an adapter may stand beside.

    Args:
        name: of its tensor, without `.weight`.
        ours: our matrices in it, by flat names without `.weight`.
        layer: the number of its layer.
    """

    name: str
    ours: tuple[str, ...]
    layer: int

    @property
    def last(self) -> str:
        """Its last two names, as `target_modules` has it: GPT-2 has a `c_proj` in attention and in the MLP."""
        return ".".join(self.name.split(".")[-2:])


def modules(family: Family, shapes: dict[str, Any], layers: int) -> Iterator[Module]:
    """The modules whose matrices can have an adapter: those of layers, without experts and their router.

    Args:
        shapes: of our parameters, by flat name.
    """
    for theirs, ours, place in tensors.pieces(family, shapes, layers):
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

    layers = next(iter(adapters.values())).shape[0]
    found, ranks, used = {}, {}, set()
    for module in modules(family, shapes, layers):
        parts = [name for name in module.ours if f"{name}.adapter.a" in adapters]
        used |= set(parts)
        if not parts:
            continue
        a, b = _fused(adapters, module, parts, shapes)
        where = f"{PREFIX}{module.name}."
        found |= {where + A: np.ascontiguousarray(a), where + B: np.ascontiguousarray(b)}
        ranks[module.last] = len(a)
        if config.magnitude:
            if len(parts) < len(module.ours):
                raise UserError(
                    f"{module.name}: PEFT keeps one DoRA for {', '.join(_last(name) for name in module.ours)}, and the "
                    f"adapter has {', '.join(_last(name) for name in parts)} alone; tune with all of them as targets"
                )
            lengths = [adapters[f"{name}.adapter.magnitude"][module.layer].reshape(-1) for name in parts]
            found[where + MAGNITUDE] = np.concatenate(lengths)
    if left := {key.split(".adapter.")[0] for key in adapters} - used:
        raise UserError(f"export: PEFT has no form for an adapter of {_last(min(left))} of experts; use --merge")
    storage.write_json(folder / CONFIG, _config(config, ranks, family, base))
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in found.values())


def _fused(adapters: dict, module: Module, parts: list[str], shapes: dict) -> tuple[np.ndarray, np.ndarray]:
    """`lora_A` and `lora_B` of a module from the adapters of our matrices in it."""
    firsts = [_two(adapters[f"{name}.adapter.a"][module.layer], -1).T for name in parts]
    seconds = {name: _two(adapters[f"{name}.adapter.b"][module.layer], 1).T for name in parts}
    shared = all(np.array_equal(first, firsts[0]) for first in firsts[1:])
    rank, rows = len(firsts[0]), []
    width = rank if shared else rank * len(parts)
    for name in module.ours:
        inputs = math.prod(adapters[f"{parts[0]}.adapter.a"].shape[1:-1])
        outputs = math.prod(shapes[f"{name}.weight"].shape[1:]) // inputs
        row = np.zeros((outputs, width), firsts[0].dtype)
        if name in seconds:
            begin = 0 if shared else rank * parts.index(name)
            row[:, begin : begin + rank] = seconds[name]
        rows.append(row)
    return firsts[0] if shared else np.concatenate(firsts), np.concatenate(rows)


def _two(array: np.ndarray, dimensions: int) -> np.ndarray:
    """An array as a matrix: its first dimensions together, and the others."""
    return array.reshape(math.prod(array.shape[:dimensions]), -1)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _config(config: AdapterConfig, ranks: dict[str, int], family: Family, base: str) -> dict[str, Any]:
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


@contextmanager
def _opened(folder: Path) -> Iterator[WeightFiles]:
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: is no adapter in the format of PEFT: it has no {WEIGHTS}; give such a folder")
    with opened(folder, WEIGHTS) as source:
        yield source


def _family(names: set[str], shapes: dict[str, Any], layers: int, folder: Path) -> Family:
    """The family after whose modules most tensors of an adapter are named."""

    def matches(family: Family) -> int:
        return sum(f"{PREFIX}{module.name}.{A}" in names for module in modules(family, shapes, layers))

    family = max(FAMILIES.values(), key=matches)
    if matches(family):
        return family
    raise UserError(f"{folder}: {min(names, default='')!s:.120} is no matrix of this model; its base is another one")


def read(folder: Path, shapes: dict[str, Any], layers: int) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    """The settings of an adapter, and its parameters by flat name, float32; a matrix that has none in a layer gets 0.

    Args:
        shapes: of the parameters of the model, by flat name.

    Raises:
        UserError: it is no adapter that we can compute, or it is one of another model; the error names the tensor.
    """
    said = read_json(folder / CONFIG)
    for key, allowed in ONLY.items():
        if said.get(key, allowed[0]) not in allowed:
            raise UserError(f"{folder / CONFIG}: {key} is {said[key]!s:.80}; only {allowed[0]} is known here")
    rank, alpha = _number(said, "r", folder), _number(said, "lora_alpha", folder)
    root, magnitude = bool(said.get("use_rslora")), bool(said.get("use_dora"))
    found: dict[str, np.ndarray] = {}
    seen: Counter[str] = Counter()
    with _opened(folder) as source:
        left, ranks = set(source.files), []
        family = _family(left, shapes, layers, folder)
        for module in modules(family, shapes, layers):
            where = f"{PREFIX}{module.name}."
            if where + A not in left:
                continue
            ranks.append(source.shape(where + A)[0])
        most = max(ranks, default=0)
        if most > 1 << 16:
            raise UserError(f"{folder}: has an adapter of rank {most:,}; at most 65,536 is known here")
        config = AdapterConfig(most, 0.0, root, magnitude)
        scale = alpha / (rank**0.5 if root else rank)
        config = dataclasses.replace(config, alpha=scale * (most**0.5 if root else most))
        for module in modules(family, shapes, layers):
            where = f"{PREFIX}{module.name}."
            if where + A in left:
                names = [where + A, where + B, *([where + MAGNITUDE] if magnitude else [])]
                if missing := [name for name in names if name not in left]:
                    raise UserError(f"{folder}: {missing[0]} is missing; fetch the adapter again")
                tensors_of = [source(name).astype(np.float32) for name in names]
                seen.update(module.ours)
                ratio = _scale(said, module.name, rank, alpha, root) / scale
                _set(found, module, tensors_of, config.rank, ratio, shapes, folder)
                left -= set(names)
    if magnitude and (short := [name for name, count in seen.items() if count < layers]):
        raise UserError(f"{folder}: {_last(short[0])} has no DoRA in some layers; only LoRA may leave layers out")
    if left:
        raise UserError(f"{folder}: {min(left)!s:.120} is no matrix of this model; the adapter's base is another one")
    targets = sorted({name.split(".")[-3] for name in found})
    return dataclasses.replace(config, targets=tuple(targets)), found


def _number(said: dict, key: str, folder: Path) -> float:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(f"{folder / CONFIG}: {key} is {value!s:.80}, and no number above 0; fetch the adapter again")
    return value


def _scale(said: dict, name: str, rank: float, alpha: float, root: bool) -> float:
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


def _set(
    found: dict, module: Module, given: list[np.ndarray], rank: int, ratio: float, shapes: dict, folder: Path
) -> None:
    """Put the adapter of one module into the stacked arrays of our matrices."""
    first, second = given[:2]
    offset = 0
    for name in module.ours:
        shape = shapes[f"{name}.weight"].shape
        inputs = 2 if name.endswith("attention.out") else 1  # heads and their width
        outputs = math.prod(shape[1 + inputs :])
        written = [math.prod(shapes[f"{of}.weight"].shape[1 + inputs :]) for of in module.ours]
        wanted = math.prod(shape[1 : 1 + inputs]), sum(written)
        if first.ndim != 2 or second.ndim != 2 or (first.shape[1], second.shape[0]) != wanted:
            raise UserError(
                f"{folder}: the adapter of {module.name} is for a matrix of {list(first.shape[1:])} inputs and "
                f"{list(second.shape[:1])} outputs instead of {wanted[0]} and {wanted[1]}; its base is another model"
            )
        if len(first) != second.shape[1]:
            raise UserError(f"{folder}: the two matrices of {module.name} are of different ranks; fetch it again")
        arrays = {
            "a": ((shape[0], *shape[1 : 1 + inputs], rank), _padded(first.T, rank, 1)),
            "b": (
                (shape[0], rank, *shape[1 + inputs :]),
                _padded(ratio * second[offset : offset + outputs].T, rank, 0),
            ),
        }
        if len(given) > 2:
            if given[2].size != wanted[1]:
                raise UserError(
                    f"{folder}: {module.name} has {given[2].size} lengths for {wanted[1]} outputs; fetch it again"
                )
            arrays["magnitude"] = ((shape[0], *shape[1 + inputs :]), given[2].reshape(-1)[offset : offset + outputs])
        for key, (whole, values) in arrays.items():
            array = found.setdefault(f"{name}.adapter.{key}", np.zeros(whole, np.float32))
            array[module.layer] = values.reshape(whole[1:])
        offset += outputs


def _padded(matrix: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """With zeros up to `rank` along `axis`: they add nothing."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, rank - matrix.shape[axis])
    return np.pad(matrix, widths)
