"""The log of metrics: what a resumed training keeps of it, and what TensorBoard gets."""

import json
import os
import struct
import sys

import pytest

from tpullm.training import metrics
from tpullm.training.metrics import FILE, MetricsLog, read, seconds


def events(folder) -> list:
    """The events of all of TensorBoard's files in a folder, in the order of the files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # a record: its length, a checksum of that, the event, a checksum of it
            (length,) = struct.unpack("<Q", data[:8])
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
    assert read(tmp_path / FILE) == [{"step": step, "loss": loss} for step, loss in ((5, 1.0), (10, 1.0), (15, 2.0))]
    purged = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert purged[-1] == 11, "TensorBoard drops what it has of this step and later"


def test_tensorboard_gets_every_number_by_its_step(tmp_path):
    row = {"step": 5, "loss": 1.5, "eval_loss": {"novels": 2.5, "tenki": 3.5}, "expert_loads": [0.5, 1.5]}
    written(tmp_path, 0, row)
    of = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert sorted(of) == [
        (5, "eval_loss/novels", 2.5),
        (5, "eval_loss/tenki", 3.5),
        (5, "loss", 1.5),
        (5, "step", 5.0),
    ]
    assert read(tmp_path / FILE) == [row]


def test_a_line_can_be_read_and_sent_before_the_log_is_closed(tmp_path, monkeypatch):
    log, sent = MetricsLog(tmp_path, 0), []
    monkeypatch.setattr(log._place, "changed", lambda: sent.extend(read(tmp_path / FILE)))
    log.write({"step": 1})
    assert read(tmp_path / FILE) == sent == [{"step": 1}]
    log.close()


def test_a_synced_log_is_on_disk_before_its_folder_is_sent(tmp_path, monkeypatch):
    """TensorBoard writes in a thread of its own, which can be asked to flush and not be waited for."""
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


@pytest.mark.parametrize("loaded", [False, True])
def test_torch_is_neither_imported_nor_forgotten(tmp_path, monkeypatch, loaded):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", torch := object())
    metrics._tensorboard(tmp_path, 1).close()
    assert sys.modules.get("torch") is (torch if loaded else None) and ("torch" in sys.modules) is loaded


def test_seconds_are_of_all_steps_that_were_logged(tmp_path):
    """Of 5 steps of a second, 5 of two, and after a restart 2 of four; evaluations have none."""
    rows = [(5, 1.0), (10, 2.0), (12, 4.0)]
    lines = [json.dumps({"step": step, "step_seconds": each}) for step, each in rows]
    lines.insert(1, json.dumps({"step": 5, "eval_loss": {"novels": 2.0}}))
    (tmp_path / FILE).write_text("\n".join(lines) + "\n", "utf-8")
    assert seconds(tmp_path / FILE) == 5 * 1 + 5 * 2 + 2 * 4
    (tmp_path / FILE).write_text(json.dumps({"step": 3, "step_seconds": 0.11}) + "\n", "utf-8")
    assert seconds(tmp_path / FILE) == 0.3
