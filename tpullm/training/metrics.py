"""The log of metrics: one JSON line a report in `metrics.jsonl`, and its numbers for TensorBoard and the trackers.

Beside it stands `hours.jsonl` (see `hours.py`), of which no line is ever dropped.
"""

import json
import os
from pathlib import Path

from tpullm import storage
from tpullm.run import hours
from tpullm.storage.mirror import mirrored
from tpullm.training.tensorboard import TensorBoard
from tpullm.training.trackers import Trackers

FILE = "metrics.jsonl"


class MetricsLog:
    """Writes `metrics.jsonl` and TensorBoard files of one stage, and gives its numbers to the trackers.

    Args:
        directory: the stage.
        step: training resumes after this step; lines of later steps, written before an interruption, are dropped, since
            these steps will be repeated.
        trackers: others that get the numbers.
    """

    def __init__(self, directory: Path, step: int, trackers: Trackers | None = None):
        self._trackers = trackers
        self._place = mirrored(directory)
        path, before = self._place.folder / FILE, directory / FILE
        if before.exists():
            kept = [line for line in before.read_text().splitlines() if _stays(line, step)]
            storage.write_text(path, "".join(line + "\n" for line in kept))
        spent = [json.dumps(line) + "\n" for line in hours.read(directory / hours.FILE)]
        storage.write_text(self._place.folder / hours.FILE, "".join(spent))
        # Not buffered: after a full disk, what is left in a buffer would fail a second time when the program ends.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (kept open for the whole stage)
        self._hours = open(self._place.folder / hours.FILE, "ab", buffering=0)  # noqa: SIM115
        self._tensorboard = TensorBoard(self._place.folder / "tensorboard", step + 1)

    def write(self, values: dict) -> None:
        """Append one line. TensorBoard and the trackers get its `numbers`, and TensorBoard its `samples`."""
        storage.append(self._file, _line(values))
        found = numbers(values)
        self._tensorboard.add(found, values["step"])
        if samples := values.get("samples"):
            texts = {f"samples/{n}": f"{each['prompt']} → {each['text']}" for n, each in enumerate(samples, 1)}
            self._tensorboard.add_texts(texts, values["step"])
        if self._trackers:
            self._trackers.write(found)
        self._place.changed()

    def evaluated(self, step: int) -> dict | None:
        """The held-out results after `step`, if they are in the log."""
        rows = [row for row in read(self._place.folder / FILE) if row["step"] == step and "eval_loss" in row]
        return {name: value for name, value in rows[-1].items() if name.startswith("eval_")} if rows else None

    def is_measured(self, step: int) -> bool:
        """Whether what `measure` asks for after `step` is in the log."""
        return any(row["step"] == step and "measured" in row for row in read(self._place.folder / FILE))

    def write_hours(self, line: dict) -> None:
        """Append a line of `Hours`."""
        storage.append(self._hours, _line(line))

    def sync(self) -> None:
        """Return when everything is on disk, or on `gs://`."""
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        self._place.wait()

    def close(self) -> None:
        """The same, and end the log."""
        self.sync()
        self._file.close()
        self._hours.close()
        self._tensorboard.close()
        self._place.close()
        if self._trackers:
            self._trackers.close()


class NoLog:
    """The log of hosts other than the first, which writes none."""

    def write(self, values: dict) -> None:
        """Nothing."""

    write_hours = write

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _line(value: dict) -> bytes:
    return (json.dumps(value) + "\n").encode()


def numbers(values: dict) -> dict[str, float]:
    """The numbers of a row, nested ones as `name/source`; neither its lists nor its texts."""
    found = {}
    for name, value in values.items():
        nested = {f"{name}/{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: number for key, number in nested.items() if isinstance(number, int | float)}
    return found


def _stays(line: str, step: int) -> bool:
    """Whether a line is of the steps up to `step`. That of a rollback to `step` is written again by the training."""
    try:
        row = json.loads(line)
        return row["step"] < step or row["step"] == step and "rolled_back" not in row
    except (json.JSONDecodeError, KeyError):
        return False


def read(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds(path: Path, first: int = 0) -> float:
    """Seconds spent in training steps, over all processes that wrote the log; the training began after step `first`."""
    total, before = 0.0, first
    for row in read(path):
        if "step_seconds" in row:
            total += row["step_seconds"] * (row["step"] - before)
            before = row["step"]
    return round(total, 1)
