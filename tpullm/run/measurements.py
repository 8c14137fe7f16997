"""What `evaluate MODEL --tasks` found of the models of a run: `RUN/measured/STAGE-HASH/results.json`."""

import shlex
from pathlib import Path
from typing import Any, Protocol

from tpullm import storage
from tpullm.run import manifest

FOLDER, RESULTS = "measured", "results.json"


class OfRun(Protocol):
    """A checkpoint of a run: `checkpoint.models.Model`."""

    run: Path
    stage: str
    step: int


def of_model(model: OfRun) -> dict[str, Any]:
    """What the results say of the checkpoint. Its stage has an `identity` if it is finished."""
    stage = model.run / model.stage
    identity = manifest.identity(stage) if (stage / manifest.FILE).exists() else ""
    return {"stage": model.stage, "step": model.step, "identity": identity}


def tasks(run: Path, stage: str, step: int | None = None) -> dict[str, dict[str, Any]]:
    """The figures of each task that a finished stage, as it is now, was measured on.

    Args:
        step: of the checkpoint; None is the last one that was measured.
    """
    if not (run / FOLDER).is_dir() or not (run / stage / manifest.FILE).exists():
        return {}
    identity, found = manifest.identity(run / stage), []
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
    return shlex.join([*words, *["--chat"] * (settings.get("form") == "chat")])
