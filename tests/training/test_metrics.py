"""What a log line says of speed: the share of the peak only where the peak is known."""

import numpy as np
import pytest

from tpullm.training import metrics
from tpullm.training.metrics import Meter


class Lines(list):
    """A log that keeps its rows."""

    def write(self, values):
        """Keep a row."""
        self.append(values)


@pytest.fixture
def rows(monkeypatch, capsys):
    """`rows(peak, *seconds)`: the rows of a meter whose steps, of 100 tokens each, took so long; what was said."""

    def made(peak, *seconds):
        now = [0.0]
        monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
        meter = Meter(Lines(), len(seconds), 0, 100, peak, lambda step: 1e-3, _since=0.0)
        for step, of_step in enumerate(seconds, 1):
            now[0] += of_step
            meter.keep(step, {name: np.float32(1) for name in ("loss", "grad_norm", "accuracy")})
            meter.report()
        return meter.log, capsys.readouterr().err

    return made


def test_mfu_is_the_share_of_the_peak(rows):
    found, said = rows(200.0, 1.0, 2.0)
    assert [row["mfu"] for row in found] == [0.5, 0.25] and "MFU 25%" in said


def test_without_a_peak_there_is_no_mfu(rows):
    found, said = rows(None, 1.0, 2.0)
    assert all("mfu" not in row for row in found) and "50 tokens/s  waiting" in said and "MFU" not in said


def test_a_peak_that_training_exceeds_is_no_longer_believed(rows):
    found, said = rows(200.0, 1.0, 0.25, 1.0)
    assert [row.get("mfu") for row in found] == [0.5, None, None]
    assert said.count("MFU is not shown") == 1
