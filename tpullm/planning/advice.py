"""What does not fit: by how much, what is largest, and the one key whose change makes it fit."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from tpullm.mesh.axes import written
from tpullm.planning.search import Candidate, assessed, meshes
from tpullm.planning.setting import RECOMPUTED, Setting, divisors, with_remat
from tpullm.planning.state_bytes import resting
from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import sections


@dataclass(frozen=True)
class Advice:
    """For a setting that does not fit.

    Args:
        over_bytes: what is missing on each device.
        largest: the kind of memory that is largest, and its bytes.
        change: the key and the value that make it fit; empty if no one key does. A key that changes no number of the
            result comes before one that does, then the fastest comes first.
    """

    over_bytes: float
    largest: str
    largest_bytes: float
    change: str


def advise(candidate: Candidate) -> Advice | None:
    """Advice for what does not fit; None for what does."""
    if candidate.estimate:
        return None
    kinds, limit = candidate.memory.kinds, candidate.setting.device.hbm_bytes
    largest = max(kinds, key=kinds.get)
    tried = [
        (key, assessed(setting, resting(setting.model, setting.optimizer, setting.adapter)))
        for key, setting in _changes(candidate.setting)
    ]
    fitting = [(key, found) for key, found in tried if found.estimate]
    best = min(
        fitting,
        key=lambda pair: (not _resumes(pair[0], candidate.setting.key), -pair[1].estimate.tokens_per_second),
        default=None,
    )
    return Advice(candidate.memory.peak - limit, largest, kinds[largest], best[0] if best else "")


def _resumes(change: str, key: str) -> bool:
    """Whether a change leaves the result as it is, up to rounding. Every training has the keys of `pretrain`."""
    dotted = change.split(":")[0].replace(key, "pretrain")
    keys = {section.dotted(key): key for section in sections(Recipe) for key in section.keys}
    return keys[dotted].changes.resumes


def _changes(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Every setting that differs in one key of the recipe, and that key with its value."""
    for remat in RECOMPUTED:
        yield f"model.remat: {remat}", with_remat(setting, remat)
    rows = setting.rows // setting.along("data", "fsdp", "expert")
    for parts in divisors(rows):
        if parts > setting.accumulation:
            yield f"{setting.key}.accumulation: {parts}", dataclasses.replace(setting, accumulation=parts)
    length = setting.length // setting.along("sequence")
    for count in divisors(length):
        if count > setting.chunks:
            yield f"{setting.key}.loss_chunks: {count}", dataclasses.replace(setting, loss_chunks=count)
    for sizes in meshes(setting):
        if setting.rows // setting.accumulation % (sizes[0] * sizes[1] * sizes[2]) == 0:
            changed = dataclasses.replace(setting, sizes=sizes)
            yield f"mesh: {written(Candidate(changed, None, None).mesh)}", changed
    for key, value in (("moments", "bfloat16"), ("kind", "adafactor"), ("kind", "muon")):
        own = {"moments": "float32"} if value == "adafactor" else {}
        optimizer = dataclasses.replace(setting.optimizer, **own | {key: value})
        if setting.optimizer.kind != "adafactor":
            yield f"{setting.key}.optimizer.{key}: {value}", dataclasses.replace(setting, optimizer=optimizer)
    least = setting.along("data", "fsdp", "expert") * setting.accumulation
    for parts in divisors(setting.rows // least)[1:] if setting.rows % least == 0 else []:
        yield (
            f"{setting.key}.batch_size: {setting.rows // parts}",
            dataclasses.replace(setting, rows=setting.rows // parts),
        )
