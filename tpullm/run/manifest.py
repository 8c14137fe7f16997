"""A stage's manifest names its inputs by hash, so a finished stage is skipped and a changed one is made again."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from tpullm import __version__, storage
from tpullm.errors import UserError

FILE = "manifest.json"


def inputs_hash(config: Any, upstream: dict[str, str]) -> dict[str, Any]:
    """What a stage depends on: its own slice of the recipe (dataclass or dict) and the hashes of what it reads."""
    if dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)
    return {"tpullm": __version__, "config": config, "upstream": upstream}


def is_finished(stage: Path, inputs: dict[str, Any]) -> bool:
    """Whether `stage` was finished from exactly these inputs."""
    path = stage / FILE
    try:
        return path.exists() and storage.read_json(path)["inputs"] == plain(inputs)
    except UserError:
        if path.exists():
            raise
        return False  # another process has begun to make the stage again, in between


def write(stage: Path, inputs: dict[str, Any], **facts: Any) -> None:
    """Mark `stage` as finished; `facts` (counts, seconds, figures) are for people and for later stages."""
    value = {
        "tpullm": __version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": plain(inputs),
        **facts,
    }
    storage.write_json(stage / FILE, value)


def identity(stage: Path) -> str:
    """Hash of a finished stage, for the stages that read it. It is that of its inputs: each stage is deterministic."""
    return identity_of(storage.read_json(stage / FILE)["inputs"])


def identity_of(inputs: dict[str, Any]) -> str:
    """The identity of a stage that is made, or will be, from these inputs."""
    return storage.hash_json(plain(inputs))


def plain(value: Any) -> Any:
    """`value` as it comes back from JSON (tuples become lists), so that a comparison means what it says."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
