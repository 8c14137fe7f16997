"""The laws of the training loop, on a training that counts; and what a command does of it with a real model."""

import contextlib
import math
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import pytest

from tests.training.counter import Counting, Numbers
from tpullm.cli.main import main
from tpullm.system.cluster.requests import Requests
from tpullm.system.errors import Interrupted, UserError
from tpullm.training import diagnosis, pace, programs, saves, step
from tpullm.training.feed import Feed
from tpullm.training.job import RollBack
from tpullm.training.metrics import read_rows
from tpullm.training.pace import Pace, stop_signal


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """`counting(steps, **config)`: a training that counts."""
    return lambda *steps, **config: Counting(tmp_path / "stage", monkeypatch, *steps, **config)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise UserError("broken")


CLOSED = ["checkpoints closed", "log closed"]


def test_the_batch_of_the_next_step_is_there_before_this_one_is_waited_for(counting):
    of = counting(3)
    assert of.train()["eval_loss"] == {"text": pytest.approx(0.25)}
    order = ["batch 0", "step 1", "batch 1", "step 2", "batch 2", "step 3", "save 3", "evaluate 3", "best 3 0.25"]
    assert of.events == order + CLOSED
    assert of.kept[3]["read"] == (0, 1, 2) and of.rows("losses") == [1, 2, 3]


@pytest.mark.parametrize("at", [1, 2, 5, 6, 9, 10])
@pytest.mark.parametrize("every", [0, 3])
def test_stopped_anywhere_and_resumed_it_reads_each_batch_once(counting, at, every):
    """A stop ends the training after its step and one save, before an evaluation that is due: that is made up for."""
    of = counting(10, evaluate_every=2, checkpoint={"every_steps": every})
    of.at[at] = stop
    with pytest.raises(Interrupted, match=rf"stage: stopped and saved at step {at}; the same command resumes"):
        of.train()
    assert of.did("step", "save")[-2:] == [f"step {at}", f"save {at}"] and of.did(f"evaluate {at}") == []
    assert of.events[-2:] == CLOSED
    results = of.train(step=at)
    assert of.kept[10]["read"] == tuple(range(10)) and of.rows("loss") == list(range(1, 11))
    assert of.rows("eval_loss") == [2, 4, 6, 8, 10] and results["eval_loss"]["text"] == pytest.approx(1 / 11)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [10]),
        ({"checkpoint": {"every_steps": 4}}, [4, 8, 10]),
        ({"checkpoint": {"every_minutes": 1}}, [4, 8, 10]),  # by a clock that goes on by 16 s with every step
        ({"checkpoint": {"every_steps": 3, "every_minutes": 1}}, [3, 6, 9, 10]),  # a save by steps resets it
        ({"optimizer": {"schedule": "wsd", "decay_fraction": 0.3, "warmup_steps": 1}}, [7, 10]),
    ],
)
def test_when_checkpoints_are_saved(counting, monkeypatch, config, expected):
    """The counter asserts that the log of their steps is written before, also between two of its lines."""
    of, clock = counting(10, log_every=7, **config), [0.0]
    monkeypatch.setattr(saves, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    of.at = dict.fromkeys(range(1, 11), lambda: clock.__setitem__(0, clock[0] + 16))
    of.train()
    assert list(of.kept) == expected


def test_local_saves_stand_between_checkpoints_and_restore_what_is_newer(counting, monkeypatch):
    of = counting(10, checkpoint={"every_steps": 4})
    local = SimpleNamespace(
        newest=lambda target, after: None,
        restore=lambda found, target: of.kept[8] | {"step": 9, "read": tuple(range(9))},
        forget=lambda after: of.events.append(f"forget after {after}"),
        asks=lambda: [],
        due=lambda step, asked: step % 2 == 0,
        save=lambda step, state: of.events.append(f"local {step}"),
        close=lambda finished: of.events.append(f"local closed, {finished}"),
    )
    monkeypatch.setattr(saves, "LocalSaves", lambda *arguments: local)
    of.at[9] = fail
    with pytest.raises(UserError):
        of.train()
    assert of.did("save", "local", "forget") == ["forget after 0", "local 2", "save 4", "local 6", "save 8"]
    local.newest = lambda target, after: after == 8
    of.train(step=8)
    assert of.did("step")[-1] == "step 10" and of.did("forget")[-1] == "forget after 9"
    assert of.kept[10]["read"] == tuple(range(10)) and of.did("local closed") == ["local closed, True"]


@pytest.mark.parametrize(("every", "rolls"), [(0, 7), (6, 6), (7, 7)])
def test_too_many_skipped_steps_roll_back_and_save_nothing_of_them(counting, every, rolls):
    """The step before decides, unless all are waited for; a step that is not bad begins to count anew."""
    of = counting(12, patience=3, checkpoint={"every_steps": every})
    of.bad = {0, 1, 3, 4, 5}
    with pytest.raises(RollBack) as raised:
        of.train()
    assert raised.value.step == 6 and of.did("step")[-1] == f"step {rolls}"
    assert of.kept == {} and of.events[-2:] == CLOSED
    of.train(left_out=[[0, 6]])
    assert of.kept[12]["read"] == tuple(range(6, 18)) and of.rows("rolled_back") == [0]


@pytest.mark.parametrize(
    ("loss", "usual", "new_text", "judged"),
    [(9.0, True, True, ["judged by batch 2"]), (9.0, False, False, ["judged by batch 2"]), (math.nan, True, False, [])],
)
@pytest.mark.parametrize("every", [0, 6])
def test_finite_steps_in_a_row_are_new_text_if_the_model_is_as_good_as_before(
    counting, loss, usual, new_text, judged, every
):
    """The model is judged by the batch of the last step that was not skipped."""
    of = counting(12, patience=3, checkpoint={"every_steps": every})
    of.bad, of.loss, of.usual = {0, 3, 4, 5}, loss, usual
    with pytest.raises(RollBack) as raised:
        of.train()
    assert (raised.value.step, raised.value.new_text) == (6, new_text) and of.did("judged") == judged


def test_text_that_a_branch_begins_with_is_new(counting):
    """The recipe may be that of its origin, and the files of its text others."""
    of = counting(12, patience=3)
    of.bad, of.loss, of.usual = {3, 4, 5}, 9.0, False
    with pytest.raises(RollBack) as raised:
        of.train(branch=SimpleNamespace(step=3))
    assert raised.value.new_text and of.did("judged") == []


def test_a_training_that_learned_nothing_yet_has_no_new_text(counting):
    of = counting(12, patience=3)
    of.bad, of.loss = {0, 1, 2}, 9.0
    with pytest.raises(RollBack) as raised:
        of.train()
    assert not raised.value.new_text and of.did("judged") == []


@pytest.mark.parametrize("begins", [0, 4, 5])
def test_the_window_is_emptied_before_new_text_also_if_it_resumes_there(counting, monkeypatch, begins):
    of = counting(8, checkpoint={"every_steps": 1})
    monkeypatch.setattr(Numbers, "new_text", (5,))  # from 0: step 6 reads it
    of.train(opened=[2])
    assert of.did("open") == ["open after 2", "open after 5"]
    of.events.clear()
    of.train(step=begins, opened=[2])
    assert of.did("open") == ["open after 2", "open after 5"][begins > 2 :]


@pytest.mark.parametrize("at", [1, 4, 10])
def test_a_stop_in_a_measurement_saves_where_it_measures_again(counting, at):
    """One at the beginning too: then no step is done."""
    of, stops = counting(10, checkpoint={"every_steps": 5}), [at]

    def measure(step, params, between):
        if step in stops:
            stop()
        between()
        assert params["step"] == step
        return {"measured": {}}

    measures = SimpleNamespace(due=lambda step: step in (1, 4, 10), measure=measure)
    with pytest.raises(Interrupted):
        of.train(measures=measures)
    assert max(of.kept) == at and of.did("step")[-1] == f"step {at}" and at not in of.rows("measured")
    stops.clear()
    of.train(step=at)
    assert of.rows("measured") == [1, 4, 10] and of.kept[10]["read"] == tuple(range(10))


def test_what_answers_prompts_is_evaluated_before_the_training_too(counting):
    """Once: a training that resumes finds it in the log. No step is dispatched ahead of another's answers."""
    of, watched = counting(4, evaluate_every=2), []
    answers = SimpleNamespace(
        batch=lambda step, params, chosen: ((step, chosen, params["step"]), {"answers": 2, "answer_tokens": 5.0}),
        evaluate=lambda params: {"eval_reward": {"sum": params["step"] / 10}, "eval_perfect": 0.0},
        watch=watched.append,
    )
    of.at[1] = stop
    with pytest.raises(Interrupted):
        of.train(answers=answers)
    assert of.did("step", "evaluate", "best") == ["evaluate 0", "best 0 -0.00", "step 1"]
    of.train(step=1)
    assert of.kept[4]["read"] == tuple((step, step, step) for step in range(4))
    assert of.did("evaluate") == ["evaluate 0", "evaluate 2", "evaluate 4"] and of.did("best")[-1] == "best 4 -0.40"
    assert [row["step"] for row in watched if "answers" in row] == [1, 2, 2, 3, 4]


def test_an_evaluation_that_is_in_the_log_is_not_made_again(counting):
    of = counting(4, evaluate_every=2, checkpoint={"every_steps": 2})
    of.at[3] = fail
    with pytest.raises(UserError):
        of.train()
    of.at.clear()
    of.train(step=2)
    assert of.did("evaluate") == ["evaluate 2", "evaluate 4"] and of.rows("eval_loss") == [2, 4]


@pytest.mark.parametrize("where", [2, ("finite", 4)])
def test_an_error_closes_each_part_once_and_waits_for_nobody(counting, where):
    of = counting(6, checkpoint={"every_steps": 4})
    of.at[where] = fail
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="broken"):
        of.train()
    assert of.kept == {} and of.did(*CLOSED) == ["log closed after an error"]
    assert signal.getsignal(signal.SIGTERM) == before and jax.sharding.get_abstract_mesh().empty


def test_what_is_left_out_is_left_out_of_both_streams_and_the_documents_of_both_are_named():

    def stream(name):
        named = lambda left_out: [SimpleNamespace(id=f"{name} without {left_out}")] * 40  # noqa: E731
        return SimpleNamespace(without=lambda left_out: SimpleNamespace(documents_at=lambda step: named(left_out)))

    feed = Feed(SimpleNamespace(stream=stream("pairs"), text=stream("text")), [[6, 3]], None, None)
    assert feed.documents(4) == ["pairs without [[6, 3]]", "text without [[6, 3]]"]


@pytest.mark.parametrize("ends", ["at its last step", "with all steps", "by a stop", "by an error", "by a roll-back"])
def test_a_profile_is_written_whatever_ends_the_training(counting, monkeypatch, ends, capsys):
    """Once; the training that follows a roll-back in the same process records anew."""
    asked = []
    start, end = (lambda *_, **__: asked.append("start")), (lambda: asked.append("stop"))
    monkeypatch.setattr(diagnosis.jax, "profiler", SimpleNamespace(start_trace=start, stop_trace=end))
    of = counting(8, profile="3:20" if ends == "with all steps" else "3:6")
    of.at = {"by a stop": {4: stop}, "by an error": {4: fail}}.get(ends, {})
    of.bad = {2, 3, 4} if ends == "by a roll-back" else set()
    with contextlib.suppress(Interrupted, UserError, RollBack):
        of.train()
    assert asked == ["start", "stop"] and "are recorded in" in capsys.readouterr().err
    of.at.clear()
    if ends == "by a roll-back":
        of.train(left_out=[[0, 5]])
        assert asked == ["start", "stop"] * 2


def test_devices_are_checked_before_a_step_with_its_batch(counting):
    of = counting(7, check_every=3)
    of.train()
    assert of.did("check ", "step 3", "step 6") == ["check 3 with 2", "step 3", "check 6 with 5", "step 6"]


@pytest.mark.parametrize(("seconds", "ahead", "in_flight"), [(0.1, True, 1), (0.1, False, 0), (3.0, True, 0)])
def test_how_many_steps_are_in_flight(monkeypatch, seconds, ahead, in_flight):
    """One, so that the device never waits; none after long steps, since a stop waits for it, and for answers."""
    clock, pending = [0.0], []

    class Array:
        def __init__(self):
            self.at = max([clock[0], *(other.at for other in pending)]) + seconds

        def is_ready(self):
            return clock[0] >= self.at

    def sleep(pause):
        clock[0] += pause

    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(Requests, "ask", lambda self, what: asked.append((what, clock[0])))
    oldest = lambda ahead=0: pending[0] if len(pending) > ahead else None  # noqa: E731
    meter = SimpleNamespace(oldest=oldest, read=lambda ahead: pending.__delitem__(slice(len(pending) - ahead)))
    asked, stops = [], []
    of = Pace(meter, 0, lambda: bool(stops), ahead)
    for _ in range(4):
        pending.append(Array())
        of.wait()
    assert len(pending) == in_flight
    pending.append(Array())
    stops.append(True)
    of.catch_up()
    assert pending == [] and {what for what, _ in asked} == {"stop"}, "all hosts are told before the step ends"
    assert of.ended(5, ["save"]) == {"save", "stop"}


def test_ctrl_c_stops_a_training_but_not_one_in_the_background():
    """A shell makes background processes ignore Ctrl-C; SIGTERM stops both. A second signal ends at once."""
    for in_background in (False, True):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
        try:
            with stop_signal() as stopped:
                os.kill(os.getpid(), signal.SIGINT)
                assert stopped() is not in_background
            with stop_signal() as stopped:
                assert not stopped()
                stop()
                assert stopped()
                with pytest.raises(KeyboardInterrupt):
                    stop()
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.mark.ci
def test_a_command_traces_each_program_once(tiny_tokens, monkeypatch):
    """The step and the evaluation: batches, sources, checkpoints and repeated evaluations share one program.

    A resumed training is like a new one: one trace and one compiled program.
    """
    traced, steps, batch_loss, made = [], [], step.batch_loss, step.make_step

    def counted(*arguments, **options):
        traced.append(arguments)
        return batch_loss(*arguments, **options)

    def kept(*arguments, **options):
        steps.append(made(*arguments, **options))
        return steps[-1]

    step.make_evaluation.cache_clear()
    monkeypatch.setattr(programs, "make_step", kept)
    monkeypatch.setattr(step, "batch_loss", counted)
    assert main(["pretrain", "--run", str(tiny_tokens)]) == 0
    assert len(traced) == 2, "the step and the evaluation"
    stage = tiny_tokens / "pretrain"
    (stage / "manifest.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "30")
    step.make_evaluation.cache_clear()  # as in a new process
    assert main(["pretrain", "--run", str(tiny_tokens)]) == 0
    assert [row["step"] for row in read_rows(stage / "metrics.jsonl") if "loss" in row] == [5, 10, 15, 20, 25, 30]
    assert len(traced) == 4
    assert main(["finetune", "--run", str(tiny_tokens)]) == 0
    assert len(traced) == 5, "another optimizer is another step; held-out text is read as before"
    assert [function._cache_size() for function in steps] == [1, 1, 1]


@pytest.mark.ci
def test_steps_are_recorded_for_xprof_and_perfetto(tiny_tokens, capsys):
    """Those that are there. The programs are those of the tiny run."""
    assert main(["pretrain", "--run", str(tiny_tokens), "--pretrain.profile=29:40"]) == 0
    (folder,) = (tiny_tokens / "pretrain" / "profile" / "plugins" / "profile").iterdir()
    (recorded,) = folder.glob("*.xplane.pb")
    planes = {plane.name for plane in jax.profiler.ProfileData.from_file(str(recorded)).planes}
    assert any("CPU" in name for name in planes) and (folder / "perfetto_trace.json.gz").is_file()
    assert "steps 29 to 40 are recorded" in capsys.readouterr().err
