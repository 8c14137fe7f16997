"""A stage's manifest names its inputs by hash, so a finished stage is skipped and a changed one is made again."""

import datetime
from pathlib import Path
from typing import Any

from tpullm import __version__, storage
from tpullm.errors import UserError

FILE = "manifest.json"


def inputs(config: dict[str, Any], upstream: dict[str, str], length: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a stage depends on.

    Args:
        config: the keys that decide its numbers (`recipe.changes.result`), and no others.
        upstream: the hashes of what it reads, by name.
        length: the keys that say how far it goes (`Changes.LENGTH`).
    """
    return plain({"config": config, "upstream": upstream, "length": length or {}})


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


def identity(stage: Path) -> str:
    """Hash of a finished stage, for the stages that read it. It is that of its inputs: each stage is deterministic."""
    return identity_of(storage.read_json(stage / FILE)["inputs"])


def identity_of(inputs: dict[str, Any]) -> str:
    """The identity of a stage that is made, or will be, from these inputs."""
    return storage.hash_json(inputs)


def plain(value: Any) -> Any:
    """`value` as it comes back from JSON (tuples become lists), so that a comparison means what it says."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
