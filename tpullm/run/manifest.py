"""A stage's manifest names its inputs by hash, so a finished stage is skipped and a changed one is made again.

`of_model` finds the results of `evaluate RUN --tasks`: `RUN/measured/STAGE-HASH/results.json`.
"""

import datetime
import json
import shlex
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from tpullm import __version__
from tpullm.recipe.fields import Changes, part, result
from tpullm.recipe.schema import TrainConfig
from tpullm.system import storage
from tpullm.system.errors import UserError

FILE = "manifest.json"


def inputs(
    settings: Any, upstream: dict[str, str], length: TrainConfig | None = None, /, **others: Any
) -> dict[str, Any]:
    """What a stage depends on.

    Args:
        settings: the slice of the recipe; of a settings dataclass, the keys that decide the numbers of the stage.
        upstream: the hashes of what it reads, by name.
        length: the settings that say how far it goes (`Changes.LENGTH`).
        others: slices that come beside `settings`.
    """
    others = {name: result(value) if is_dataclass(value) else value for name, value in others.items()}
    config = (result(settings) if is_dataclass(settings) else settings) | others
    return plain({"config": config, "upstream": upstream, "length": part(length, Changes.LENGTH) if length else {}})


def differ_in_length_alone(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a stage made from one can resume and become the other: all but how far it goes is equal."""
    return {**one, "length": None} == {**other, "length": None}


def is_finished(stage: Path, inputs: dict[str, Any]) -> bool:
    """Whether `stage` was finished from exactly these inputs."""
    path = stage / FILE
    try:
        return path.exists() and storage.read_json(path)["inputs"] == inputs
    except UserError:
        if path.exists():
            raise
        return False  # another process has begun to make the stage again, in between


def write(stage: Path, inputs: dict[str, Any], **facts: Any) -> None:
    """Mark `stage` as finished; `facts` (counts, seconds, figures) are for people and for later stages."""
    value = {
        "tpullm": __version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": inputs,
        **facts,
    }
    storage.write_json(stage / FILE, value)


def finished_identity(stage: Path) -> str:
    """Hash of a finished stage, for the stages that read it. It is that of its inputs: each stage is deterministic."""
    return identity_of(storage.read_json(stage / FILE)["inputs"])


def identity_of(inputs: dict[str, Any]) -> str:
    """The identity of a stage that is made, or will be, from these inputs."""
    return storage.hash_json(inputs)


def plain(value: Any) -> Any:
    """`value` as it comes back from JSON (tuples become lists), so that a comparison means what it says."""
    return json.loads(json.dumps(value))


FOLDER, RESULTS = "measured", "results.json"


def of_model(run: Path, stage: str, step: int) -> dict[str, Any]:
    """What the results say of a checkpoint of a run. Its stage has an `identity` if it is finished."""
    identity = finished_identity(run / stage) if (run / stage / FILE).exists() else ""
    return {"stage": stage, "step": step, "identity": identity}


def tasks(run: Path, stage: str, step: int | None = None) -> dict[str, dict[str, Any]]:
    """The figures of each task that a finished stage, as it is now, was measured on.

    Args:
        step: of the checkpoint; None is the last one that was measured.
    """
    if not (run / FOLDER).is_dir() or not (run / stage / FILE).exists():
        return {}
    identity, found = finished_identity(run / stage), []
    for file in sorted((run / FOLDER).glob(f"{stage}-*/{RESULTS}")):
        results = storage.read_json(file)
        model = results.get("model", {})
        if (model.get("stage"), model.get("identity")) == (stage, identity) and step in (None, model["step"]):
            found.append((model["step"], results["tasks"]))
    return max(found, key=lambda pair: pair[0])[1] if found else {}


def command(task: str, figures: dict[str, Any], model: str) -> str:
    """The command that repeats a measurement."""
    settings = figures["settings"]
    words = ["tpullm", "evaluate", model, "--tasks", figures.get("file") or task]
    for option, usual in (("shots", 0), ("seed", 0), ("limit", 0), ("samples", 1), ("temperature", 0)):
        value = settings.get(option)
        words += [f"--{option}", str(value)] if value and value != usual else []
    return shlex.join([*words, "--chat" if settings.get("form") == "chat" else "--no-chat"])
