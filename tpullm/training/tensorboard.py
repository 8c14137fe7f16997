"""TensorBoard's file of one training: numbers by name and step.

tensorboardX has the format. Its own writer hands events to a thread. On a full disk that thread ends, and the training
waits forever for room in its queue. Here an event is written at once, by the caller, who gets the error.
"""

import os
import socket
import struct
import sys
import time
from pathlib import Path

from tpullm import storage


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
