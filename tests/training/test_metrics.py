"""The log of metrics: what a resumed training keeps of it, and what TensorBoard gets."""

import errno
import json
import os
import struct
import sys

import pytest

from tpullm.system.errors import correctable
from tpullm.training.metrics import FILE, MetricsLog, TensorBoard, read_rows, seconds_in_steps


def events(folder) -> list:
    """The events of all of TensorBoard's files in a folder, in the order of the files."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # a record: its length, a checksum of that, the event, a checksum of it
            (length,) = struct.unpack("<Q", data[:8])
            for part, checksum in ((data[:8], data[8:]), (data[12 : 12 + length], data[12 + length :])):
                assert struct.unpack("<I", checksum[:4]) == (masked_crc32c(part),)
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def written(stage, step, *rows):
    log = MetricsLog(stage, step)
    for row in rows:
        log.write(row)
    log.close()


def test_a_resumed_log_has_each_step_once(tmp_path):
    """Lines of steps after the checkpoint are dropped, and so is one that was being written."""
    written(tmp_path, 0, *({"step": step, "loss": 1.0} for step in (5, 10, 15)))
    with open(tmp_path / FILE, "a", encoding="utf-8") as file:
        file.write('{"step": 20, "lo')
    written(tmp_path, 10, {"step": 15, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / FILE)] == [(5, 1.0), (10, 1.0), (15, 2.0)]
    purged = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert purged[-1] == 11, "TensorBoard drops what it has of this step and later"


def test_tensorboard_gets_samples_as_texts_that_stand_as_they_are(tmp_path):
    sample = {"prompt": "def ", "text": "f():\n\treturn <b>**1**"}
    written(tmp_path, 0, {"step": 5, "measured": {"little/written": 0.5}, "samples": [sample]})
    values = [value for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    assert [value.tag for value in values] == ["step", "measured/little/written", "samples/1/text_summary"]
    assert [value.metadata.plugin_data.plugin_name for value in values] == ["", "", "text"]
    (text,) = values[2].tensor.string_val
    assert text.decode() == "    def  → f():\n    \treturn <b>**1**"


def test_what_is_measured_is_known_when_training_resumes(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 5, "measured": {}})
    log.write({"step": 10, "loss": 1.0})
    assert log.is_measured(5) and not log.is_measured(10) and not log.is_measured(0)
    log.close()


def test_tensorboard_gets_every_number_by_its_step(tmp_path):
    row = {"step": 5, "loss": 1.5, "eval_loss": {"novels": 2.5, "tenki": 3.5}, "expert_loads": [0.5, 1.5]}
    written(tmp_path, 0, row)
    found = events(tmp_path / "tensorboard")
    of = {(event.step, value.tag): value.simple_value for event in found for value in event.summary.value}
    assert of == {(5, "eval_loss/novels"): 2.5, (5, "eval_loss/tenki"): 3.5, (5, "loss"): 1.5, (5, "step"): 5.0}
    assert read_rows(tmp_path / FILE) == [row]


def test_a_line_can_be_read_and_sent_before_the_log_is_closed(tmp_path, monkeypatch):
    log, sent = MetricsLog(tmp_path, 0), []
    monkeypatch.setattr(log._place, "changed", lambda: sent.extend(read_rows(tmp_path / FILE)))
    log.write({"step": 1})
    assert read_rows(tmp_path / FILE) == sent == [{"step": 1}]
    log.close()


def test_a_synced_log_is_on_disk_before_its_folder_is_sent(tmp_path, monkeypatch):
    log, done = MetricsLog(tmp_path, 0), []
    monkeypatch.setattr(log._place, "wait", lambda: done.append("sent"))
    own = log._file.fileno()
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.extend(["on disk"] * (descriptor == own)))
    monkeypatch.setattr(log._tensorboard, "flush", lambda: done.append("TensorBoard"))
    log.sync()
    assert done == ["on disk", "TensorBoard", "sent"]
    monkeypatch.setattr(log._place, "close", lambda: done.append("closed"))
    log.close()
    assert done[3:] == ["on disk", "TensorBoard", "sent", "closed"] and log._file.closed


class Full:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file, room):
        self._file, self._room, self.name = file, room, file.name

    def write(self, data):
        """As the system does it: a part, then an error without the file's name."""
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._room])
        self._room -= written
        return written

    def fileno(self):
        return self._file.fileno()


@pytest.mark.parametrize("which", ["_file", "_hours", "_tensorboard._file"])
def test_a_full_disk_is_an_error_of_the_caller_that_names_the_file(tmp_path, which):
    """No thread waits for room; what was cut off is dropped when the training resumes."""
    log = MetricsLog(tmp_path, 0)
    owner = log._tensorboard if "." in which else log
    name = which.rpartition(".")[2]
    setattr(owner, name, full := Full(getattr(owner, name), 7))
    with pytest.raises(OSError) as raised:
        for step in range(1, 100):
            log.write({"step": step, "loss": 1.0})
            log.write_hours({"process": 1.0, "resumed": 0, "step": step, "skipped": 0, "seconds": {"all": 1.0}})
    said = f"no space left on the device ({full.name}); free some and run the same command again"
    assert correctable(raised.value) == said and full._room == 0
    written(tmp_path, 0, {"step": 1, "loss": 2.0})
    assert read_rows(tmp_path / FILE) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("loaded", [False, True])
def test_torch_is_neither_imported_nor_forgotten(tmp_path, monkeypatch, loaded):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", torch := object())
    TensorBoard(tmp_path, 1).close()
    assert sys.modules.get("torch") is (torch if loaded else None) and ("torch" in sys.modules) is loaded


def test_seconds_are_of_all_steps_that_were_logged(tmp_path):
    """Of 5 steps of a second, 5 of two, and after a restart 2 of four; evaluations have none."""
    rows = [(5, 1.0), (10, 2.0), (12, 4.0)]
    lines = [json.dumps({"step": step, "step_seconds": each}) for step, each in rows]
    lines.insert(1, json.dumps({"step": 5, "eval_loss": {"novels": 2.0}}))
    (tmp_path / FILE).write_text("\n".join(lines) + "\n", "utf-8")
    assert seconds_in_steps(tmp_path / FILE) == 5 * 1 + 5 * 2 + 2 * 4
    (tmp_path / FILE).write_text(json.dumps({"step": 3, "step_seconds": 0.11}) + "\n", "utf-8")
    assert seconds_in_steps(tmp_path / FILE) == 0.3
