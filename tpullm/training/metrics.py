"""The log of metrics: one JSON line a report in `metrics.jsonl`, and its numbers for TensorBoard and the trackers.

When a training resumes, lines after its checkpoint are dropped. `hours.jsonl` beside it keeps all
lines (`run/hours.py`).

tensorboardX has the format of TensorBoard's file. Its own writer hands events to a thread. On a full disk that thread
ends, and the training waits forever for room in its queue. Here the caller writes an event at once and gets the error.
"""

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tpullm.run import hours
from tpullm.system import storage
from tpullm.system.storage.mirror import mirrored
from tpullm.training.trackers import Trackers


class TensorBoard:
    """One more file in `directory`.

    Args:
        directory: `STAGE/tensorboard`.
        step: TensorBoard discards what other files have of this step and later.
    """

    def __init__(self, directory: Path, step: int):
        # tensorboardX imports torch if it is installed, for types that we never pass: 1.2 s and 0.3 GB of a start.
        hidden = {} if "torch" in sys.modules else {"torch": None}
        sys.modules |= hidden
        try:
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import masked_crc32c
        finally:
            for name in hidden:
                del sys.modules[name]
        self._event, self._checksum = Event, masked_crc32c
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():020.9f}.{socket.gethostname()}"
        self._file = open(directory / name, "ab", buffering=0)  # noqa: SIM115 (kept open for the whole stage)
        self._write(file_version="brain.Event:2")
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def add(self, numbers: dict[str, float], step: int) -> None:
        """Append numbers by name."""
        self._write(step=step, summary={"value": [{"tag": tag, "simple_value": n} for tag, n in numbers.items()]})

    def add_texts(self, texts: dict[str, str], step: int) -> None:
        """Append texts by name, for the page Text. It reads Markdown, where indented text stands as it is."""
        values = []
        for tag, text in texts.items():
            lines = "\n".join(f"    {line}" for line in text.splitlines())
            tensor = {"dtype": "DT_STRING", "string_val": [lines.encode()], "tensor_shape": {"dim": [{"size": 1}]}}
            metadata = {"plugin_data": {"plugin_name": "text"}}
            values.append({"tag": f"{tag}/text_summary", "metadata": metadata, "tensor": tensor})
        self._write(step=step, summary={"value": values})

    def _write(self, **event) -> None:
        data = self._event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, data)]
        storage.append(self._file, length + checksums[0] + data + checksums[1])

    def flush(self) -> None:
        """Return when everything is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the file."""
        self._file.close()


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
            kept = []
            for line in before.read_text().splitlines():
                # The row of a rollback to `step` is written again by the training.
                with contextlib.suppress(json.JSONDecodeError, KeyError):
                    row = json.loads(line)
                    kept += [line] * (row["step"] < step or row["step"] == step and "rolled_back" not in row)
            storage.write_text(path, "".join(line + "\n" for line in kept))
        spent = [json.dumps(line) + "\n" for line in hours.read(directory / hours.FILE)]
        storage.write_text(self._place.folder / hours.FILE, "".join(spent))
        # Not buffered: after a full disk, what is left in a buffer would fail a second time when the program ends.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (kept open for the whole stage)
        self._hours = open(self._place.folder / hours.FILE, "ab", buffering=0)  # noqa: SIM115
        self._tensorboard = TensorBoard(self._place.folder / "tensorboard", step + 1)

    def write(self, values: dict) -> None:
        """Append one line. TensorBoard and the trackers get its `numbers`, and TensorBoard its `samples`."""
        storage.append(self._file, _json_line(values))
        found = numbers_of_row(values)
        self._tensorboard.add(found, values["step"])
        if samples := values.get("samples"):
            texts = {f"samples/{n}": f"{each['prompt']} → {each['text']}" for n, each in enumerate(samples, 1)}
            self._tensorboard.add_texts(texts, values["step"])
        if self._trackers:
            self._trackers.write(found)
        self._place.changed()

    def evaluated(self, step: int) -> dict | None:
        """The held-out results after `step`, if they are in the log."""
        rows = [row for row in read_rows(self._place.folder / FILE) if row["step"] == step and "eval_loss" in row]
        return {name: value for name, value in rows[-1].items() if name.startswith("eval_")} if rows else None

    def is_measured(self, step: int) -> bool:
        """Whether what `measure` asks for after `step` is in the log."""
        return any(row["step"] == step and "measured" in row for row in read_rows(self._place.folder / FILE))

    def write_hours(self, line: dict) -> None:
        """Append a line of `Hours`."""
        storage.append(self._hours, _json_line(line))

    def sync(self) -> None:
        """Return when everything is on disk, or on `gs://`."""
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        self._place.wait()

    def close(self, whole: bool = True) -> None:
        """End the log.

        Args:
            whole: first `sync`. False if an error ended the training: the storage may be what failed.
        """
        if whole:
            self.sync()
        for file in (self._file, self._hours, self._tensorboard):
            file.close()
        if self._trackers:
            self._trackers.close(whole)
        if whole:
            self._place.close()


class NoLog:
    """The log of hosts other than the first, which writes none."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Whatever is called does nothing."""
        return lambda *_: None


def _json_line(value: dict) -> bytes:
    return (json.dumps(value) + "\n").encode()


def numbers_of_row(values: dict) -> dict[str, float]:
    """The numbers of a row, nested ones as `name/source`; neither its lists nor its texts."""
    found = {}
    for name, value in values.items():
        nested = {f"{name}/{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        found |= {key: number for key, number in nested.items() if isinstance(number, int | float)}
    return found


def read_rows(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds_in_steps(path: Path, first: int = 0) -> float:
    """Seconds spent in training steps, over all processes that wrote the log; the training began after step `first`."""
    total, before = 0.0, first
    for row in read_rows(path):
        if "step_seconds" in row:
            total += row["step_seconds"] * (row["step"] - before)
            before = row["step"]
    return round(total, 1)
