"""What a log line says of speed: rates of the steps since the line before, and the share of a peak that is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from tpullm.recipe.schema import TrainConfig
from tpullm.run.hours import Hours
from tpullm.training import meter
from tpullm.training.meter import Meter, log_line

TOKENS = 100  # of a step


class Lines(list):
    """A log that keeps its rows."""

    write, sync = list.append, lambda self: None

    def __init__(self):
        self.hours, self.closed = [], False
        self.write_hours = self.hours.append

    def close(self, whole):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    made = SimpleNamespace(now=0.0, monotonic=lambda: made.now)
    monkeypatch.setattr(meter, "MetricsLog", lambda *_: Lines())
    monkeypatch.setattr(meter, "Trackers", lambda *_: None)
    monkeypatch.setattr(meter, "learning_rates", lambda config, steps: np.arange(steps))
    monkeypatch.setattr(meter, "time", made)
    return made


def metered(steps=100, step=0, every=1, peak=None, documents=lambda step: [], parts=(), **config):
    """The meter of a training whose n-th update has the rate n - 1."""
    config = TrainConfig(steps=steps, log_every=every, sequence_length=TOKENS, **config)
    job = SimpleNamespace(config=config, rows=1, answers=None, directory=None)
    programs = SimpleNamespace(peak_tokens_per_second=peak, parts=parts)
    return Meter(job, programs, step, Hours(), documents, {})


def values(step=1, **more):
    """The metrics of a step; all steps before it were updates."""
    measured = {name: np.float32(1) for name in ("loss", "grad_norm", "accuracy")}
    return measured | {"skipped": np.int32(0), "updates": np.int32(step)} | more


@pytest.fixture
def rows(clock, capsys):
    """`rows(peak, *seconds)`: the rows of a meter whose steps took so long; what was said."""

    def made(peak, *seconds):
        of = metered(len(seconds), peak=peak)
        for step, of_step in enumerate(seconds, 1):
            clock.now += of_step
            of.dispatched(step, values())
            of.read()
        return of.log, capsys.readouterr().err

    return made


def test_the_speed_of_answers_is_that_of_the_tokens_that_a_step_learns_from(clock):
    """They are known before the step; a step without new ones learns from those of the step before it."""
    meter = metered()
    for step in (1, 2, 3):
        if step != 2:
            meter.answered(step, {"answers": 4, "answer_tokens": 10.0 * step})
        meter.dispatched(step, values(step))
        if step == 1:
            meter.answered(3, {"answers": 4, "answer_tokens": 30.0})  # sampled ahead
        clock.now += 2
        meter.read()
    rows = [row for row in meter.log if "loss" in row]
    assert [row["tokens_per_second"] for row in rows] == [20, 20, 60]


@pytest.mark.parametrize(
    ("peak", "seconds", "mfu"),
    [
        (200.0, (1.0, 2.0), [0.5, 0.25]),
        (None, (1.0, 2.0), [None, None]),
        (200.0, (1.0, 0.5, 0.25, 1.0), [0.5, 1.0, None, None]),  # a peak that is reached may be one
    ],
)
def test_mfu_is_the_share_of_a_peak_that_is_believed(rows, peak, seconds, mfu):
    found, said = rows(peak, *seconds)
    assert [row.get("mfu") for row in found] == mfu
    assert said.count("MFU is not shown") == (1.0 in mfu) and ("MFU 25%" in said) == (0.25 in mfu)


def test_rates_are_of_the_steps_since_the_line_before(clock):
    """A resumed training reports every third step, waits for data, and evaluates after the second report."""
    of = metered(step=7, every=3)
    for step, seconds in ((9, 6.0), (12, 3.0)):
        of.hours.seconds["data"] += seconds / 4
        clock.now += seconds
        for one in range(step - 2 if step > 9 else 8, step + 1):
            of.dispatched(one, values(one, expert_loads=np.ones(2)))
        of.read()
    clock.now += 50.0
    of.evaluation(12, {"eval_loss": {"novels": 2.0}})
    clock.now += 3.0
    for one in (13, 14, 15):
        of.dispatched(one, values(one))
    of.close()
    *reports, evaluation, last = of.log
    assert [row["step"] for row in (*reports, last)] == [9, 12, 15]
    assert [len(row["losses"]) for row in (*reports, last)] == [2, 3, 3], "of every step"
    assert [row["step_seconds"] for row in (*reports, last)] == [3.0, 1.0, 1.0], "an evaluation is no training"
    assert [row["data_wait_share"] for row in (*reports, last)] == [0.25, 0.25, 0.0]
    assert all(row["expert_loads"] == [1.0, 1.0] for row in reports) and "expert_loads" not in last
    assert evaluation == {"step": 12, "tokens": 12 * TOKENS, "eval_loss": {"novels": 2.0}}
    for row in (*reports, last):
        assert row["tokens_per_second"] == TOKENS / row["step_seconds"] and row["tokens"] == row["step"] * TOKENS
        assert row["learning_rate"] == row["step"] - 1, "the rate of step n is that of the n-th update, counted from 0"
    assert of.log.closed


def test_a_step_is_read_once_when_as_many_as_asked_for_came_after_it(clock):
    of = metered()
    of.read()
    assert of.newest is None
    for step in (1, 2, 3):
        clock.now += 1.0
        of.dispatched(step, values(step, loss=np.float32(step)))
    assert (of.oldest(), of.oldest(2), of.oldest(3), of.newest) == (1, 1, None, 3)
    of.read(ahead=2)
    assert [row["step"] for row in of.log] == [1] and of.oldest() == 2
    for ahead in (1, 0, 0):
        clock.now += 1.0
        of.read(ahead)
    assert [row["step"] for row in of.log] == [1, 2, 3] and of.oldest() is None


def test_no_loss_is_lost_at_a_checkpoint_between_two_lines(clock):
    of = metered(steps=8, every=4)
    for step in range(1, 9):
        clock.now += 1.0
        of.dispatched(step, values(step, loss=np.float32(step)))
        if step in (3, 4, 6):
            of.sync()
    of.close()
    assert [(row["step"], row["losses"]) for row in of.log] == [(3, [1, 2, 3]), (4, [4]), (6, [5, 6]), (8, [7, 8])]
    assert [row["step_seconds"] for row in of.log if "step_seconds" in row] == [1.0, 1.0]


def test_a_skipped_step_is_told_with_its_documents_and_its_loss_is_not_the_losses(clock, capsys):
    of = metered(steps=4, every=2, documents=lambda step: [f"document {step}"])
    bad = {"loss": np.float32("nan"), "grad_norm": np.float32("inf")}
    for step, skipped, updates, more in ((1, 0, 1, {}), (2, 1, 1, bad), (3, 2, 1, bad), (4, 0, 2, {})):
        clock.now += 1.0
        of.dispatched(step, values(skipped=np.int32(skipped), updates=np.int32(updates), **more))
        of.read()
        assert of.skipped[step] == skipped
    first, second = of.log
    assert first["skipped"] == [{"step": 2, "loss": "nan", "grad_norm": "inf", "documents": ["document 2"]}]
    assert [row["losses"] for row in of.log] == [[1.0, None], [None, 1.0]]
    assert [row["loss"] for row in of.log] == [1.0, 1.0] and [row["learning_rate"] for row in of.log] == [0, 1]
    assert second["skipped"][0]["step"] == 3 and of.log.hours[-1]["skipped"] == 2
    said = capsys.readouterr().err
    assert said.count("is skipped") == 2 and "tpullm data --step 1" in said, "step 2 is number 1 from 0"


def test_a_mean_of_nothing_is_left_out(clock):
    of, clock.now = metered(), 1.0
    of.dispatched(1, values(told={"kl": np.float32(0.5), "reward_undesirable": np.float32("nan")}))
    of.read()
    assert of.log[0]["kl"] == 0.5 and "reward_undesirable" not in of.log[0]


def test_a_line_at_most_every_ten_seconds_and_one_at_the_end(clock, capsys):
    of, clock.now = metered(steps=6), 100.0
    for step, seconds in enumerate((1.0, 10.0, 1.0, 9.5, 1.0, 1.0), 1):
        clock.now += seconds
        of.dispatched(step, values())
        of.read()
    said = [text.split()[1] for text in capsys.readouterr().err.splitlines()]
    assert said == ["1/6", "3/6", "5/6", "6/6"] and len(of.log) == 6, "10 s after the first are not yet more than 10"


def test_a_line_tells_the_time_that_is_left():
    row = {name: 0.5 for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "data_wait_share")}
    assert log_line(row | {"step": 40, "step_seconds": 1.5}, 100).endswith("  1:30 left")
    assert log_line(row | {"step": 100, "step_seconds": 1.5}, 100).endswith("  0:00 left")


def test_every_so_many_steps_a_row_has_the_norms(clock):
    """In a row of its own, whichever steps are logged otherwise; what is not finite is text, as JSON has to have it."""
    of, clock.now = metered(steps=7, every=4, norms_every=3, parts=["embedding", "layer_0.mlp"]), 1.0
    for step in range(1, 8):
        norms = np.array([[step, 2.0], [np.nan, 4.0], [5.0, 6.0]], np.float32)
        of.dispatched(step, values(step, norms=norms))
        clock.now += 1.0
        of.read()
    of.close()
    rows = [row for row in of.log if "gradient_norms" in row]
    assert [row["step"] for row in rows] == [3, 6] and [row["step"] for row in of.log if "loss" in row] == [4, 7]
    kinds = {"parameter_norms": (6.0, 2.0), "gradient_norms": ("nan", 4.0), "update_norms": (5.0, 6.0)}
    wanted = {kind: dict(zip(("embedding", "layer_0.mlp"), norms, strict=True)) for kind, norms in kinds.items()}
    assert rows[1] == {"step": 6, "tokens": 600, **wanted}
