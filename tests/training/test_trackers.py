"""A tracker gets the rows of the log, in the same run after a kill; one that fails or hangs costs a training nothing.

The libraries are stand-ins, but for the last tests, which need the extras `wandb` and `mlflow`.
"""

import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from tpullm.cli.main import main
from tpullm.system.errors import UserError
from tpullm.training import trackers
from tpullm.training.metrics import MetricsLog, numbers_of_row, read_rows
from tpullm.training.trackers import MlflowRun, Trackers, check_trackers, describe_tracker_error, tracked_settings

RECIPE = {"name": "tiny", "trackers": ["wandb"], "seed": 3, "text": "my/texts", "mesh": {"fsdp": -1}}


def test_mlflow_goes_on_in_the_run_of_the_same_id(tmp_path, noted, monkeypatch):
    """Its server chooses the id of a run, so ours is a tag. What a run has of its parameters is not sent again."""
    run = SimpleNamespace(info=SimpleNamespace(run_id="0"), data=SimpleNamespace(params={"seed": "3"}))
    entities, tracking = ModuleType("mlflow.entities"), ModuleType("mlflow.tracking")
    entities.Param = entities.Metric = lambda *values: values
    for module in (ModuleType("mlflow"), entities, tracking):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for found in ([], [run]):
        client = Mock(get_experiment_by_name=lambda name: None, create_experiment=lambda name: "7")
        client.search_runs.return_value, client.create_run.return_value = found, run
        tracking.MlflowClient = Mock(return_value=client)
        of = MlflowRun(tmp_path, "abc", "tiny/pretrain", {"seed": 3, "log_every": 2})
        of.write({"step": 4, "eval_loss/青空 (a+b)": 0.5})
        of.close(whole=bool(found))
        tracking.MlflowClient.assert_called_once_with(f"sqlite:///{tmp_path}/mlflow.db")
        client.search_runs.assert_called_once_with(["7"], "tags.tpullm_id = 'abc'", max_results=1)
        assert client.create_run.call_count == (not found)
        params, metrics = (call.kwargs for call in client.log_batch.call_args_list)
        assert params == {"params": [("log_every", "2")]}
        ((key, value, at, step),) = metrics["metrics"][1:]
        assert (key, value, step) == ("eval_loss/青空 _a_b_", 0.5, 4) and abs(at / 1000 - time.time()) < 600
        client.set_terminated.assert_called_once_with("0", "FINISHED" if found else "KILLED")


@pytest.fixture
def noted(monkeypatch):
    """A stand-in for wandb; `noted(kind)` is what it was asked for."""
    notes, gate = [], threading.Event()
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(name)
    for name in {name for variables in trackers.VARIABLES.values() for name in variables}:
        monkeypatch.delenv(name, raising=False)  # and restored: a tracker sets it

    def note(kind, value):
        notes.append(("tried", kind))
        if os.environ.get("DOES") == f"hangs in {kind}":
            gate.wait()
        if os.environ.get("DOES") == f"fails in {kind}":
            raise ConnectionError("https://me:secret@host is down\nfor long")
        notes.append((kind, value))

    def init(**options):
        note("init", options)
        run.config = SimpleNamespace(update=lambda config, allow_val_change: note("config", config))
        return run

    run = SimpleNamespace(
        define_metric=lambda name, step_metric=None: note("metric", [name, step_metric]),
        log=lambda row: note("log", row),
        finish=lambda exit_code: note("finish", exit_code),
    )
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, module := ModuleType(name))
        module.init, module.__spec__ = init, importlib.util.spec_from_loader(name, None)
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 60.0)  # a busy machine is slow
    yield lambda kind: [value for name, value in notes if name == kind]
    gate.set()


@pytest.mark.ci
def test_a_training_gives_its_rows_to_a_tracker_and_resumes_the_run(tiny_tokens, noted):
    """Four steps; then, as after a kill, the last two again."""
    stage, words = tiny_tokens / "pretrain", ["pretrain", "--run", str(tiny_tokens), "--trackers=[wandb]"]
    words += ["--pretrain.norms_every=2", "--pretrain.steps=4", "--pretrain.checkpoint.every_steps=2"]
    assert main([*words, "--pretrain.log_every=2"]) == 0
    (stage / "manifest.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "4")
    assert main([*words, "--pretrain.log_every=1"]) == 0
    first, second = noted("init")
    assert first == second and first["id"] == json.loads((stage / "trackers.json").read_text("utf-8"))["id"]
    assert first["resume"] == "allow" and first["name"] == "tiny/pretrain" and first["dir"] == str(stage)
    assert first["mode"] == "offline" and os.environ["WANDB_SILENT"] == "true"
    assert noted("metric")[:2] == [["step", None], ["*", "step"]], "a repeated step is no error for wandb"
    rows, kept = noted("log"), [numbers_of_row(row) for row in read_rows(stage / "metrics.jsonl")]
    assert [row for row in kept if row not in rows] == []
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 3, 4]
    assert [row["step"] for row in rows if "gradient_norms/layer_1.mlp" in row] == [2, 4, 4]
    assert any("eval_loss/tenki" in row for row in rows)
    assert all(isinstance(value, int | float) for row in rows for value in row.values())
    assert noted("finish") == [0, 0]
    assert [config["pretrain.log_every"] for config in noted("config")] == [2, 1]


def test_a_library_that_is_missing_is_told_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    find, new = importlib.util.find_spec, tmp_path / "new"
    missing = lambda name, *rest: None if name == "mlflow" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert main(["run", "quickstart", "--run", str(new), "--trackers=[mlflow]"]) == 2
    assert "trackers: mlflow is not installed; run: pip install 'tpullm[mlflow]'" in capsys.readouterr().err
    assert not new.exists()


@pytest.mark.parametrize("name, variable", [("wandb", "WANDB_API_KEY"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_a_run_on_gs_needs_a_server(noted, monkeypatch, name, variable):
    with pytest.raises(UserError, match=f"trackers: {name} keeps its files on this machine.*; set {variable}"):
        check_trackers([name], "gs://bucket/run/pretrain")
    monkeypatch.setenv(variable, "given")
    check_trackers([name], "gs://bucket/run/pretrain")
    if name == "wandb":
        monkeypatch.setenv("WANDB_MODE", "offline")
        with pytest.raises(UserError):
            check_trackers([name], "gs://bucket/run/pretrain")


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_line(tmp_path, noted, monkeypatch, capsys, what):
    monkeypatch.setenv("DOES", f"fails in {what}")
    of = Trackers(tmp_path, RECIPE)
    for step in (1, 2, 3):
        of.write({"step": step})
    while noted("tried").count("init" if what == "init" else "log") < 3:
        time.sleep(0.001)
    if what != "finish":
        monkeypatch.delenv("DOES")
    of.write({"step": 4})
    of.close()
    (said,) = capsys.readouterr().err.splitlines()
    assert said == "wandb: ConnectionError: https://host is down (training goes on; metrics.jsonl has every row)"
    assert noted("log")[-1] == {"step": 4}


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_tracker_that_hangs_is_waited_for_a_few_seconds_at_the_end_alone(tmp_path, noted, monkeypatch, capsys, what):
    """Also when the queue is full: of 2,000 rows, 10 wait in it."""
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 0.1)
    monkeypatch.setattr(trackers, "MOST_ROWS", 10)
    monkeypatch.setenv("DOES", f"hangs in {what}")
    of = Trackers(tmp_path, RECIPE)
    spent = time.thread_time()
    for step in range(20 if what == "finish" else 2_000):
        of.write({"step": step})
    assert time.thread_time() - spent < 1.0, "a row is queued or left out"
    of.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("wandb: does not ")


def test_after_an_error_the_run_is_marked_as_failed_and_the_next_one_goes_on_in_it(tmp_path, noted):
    for whole in (False, True):
        of = Trackers(tmp_path, RECIPE)
        of.write({"step": 1})
        of.close(whole)
    first, second = noted("init")
    assert first["id"] == second["id"] and noted("finish") == [1, 0] and noted("log") == [{"step": 1}] * 2


def test_what_the_user_has_set_stands(tmp_path, noted, monkeypatch):
    for name, value in (("MODE", "online"), ("PROJECT", "mine"), ("SILENT", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    Trackers(tmp_path, RECIPE).close()
    (found,) = noted("init")
    assert (found["mode"], found["project"], os.environ["WANDB_SILENT"]) == (None, "mine", "false")


def test_without_trackers_there_is_no_file_and_no_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "threading", None)
    log = MetricsLog(tmp_path, 0, Trackers(tmp_path, RECIPE | {"trackers": []}))
    log.write({"step": 1})
    log.close()
    assert not (tmp_path / "trackers.json").exists()


def test_numbers_and_choices_of_a_recipe_are_sent_and_no_path_or_text():
    recipe = RECIPE | {"pretrain": {"optimizer": {"kind": "muon", "peak_lr": 0.1}, "profile": "1:2"}, "language": "ja"}
    recipe |= {"corpus": {"sources": [{"weight": 1.0}]}, "model": {"tied_embeddings": True, "windows": (4,)}}
    sent = {"seed": 3, "mesh.fsdp": -1, "language": "ja", "model.tied_embeddings": True}
    sent |= {"pretrain.optimizer.kind": "muon", "pretrain.optimizer.peak_lr": 0.1}
    assert tracked_settings(recipe) == sent


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("401 for https://me:pass@host:5000/api", "401 for https://host:5000/api"),
        ("key abc123 is refused", "key *** is refused"),
        ("one\ntwo", "one"),
        ("", ""),
        ("x" * 500, "x" * 288),
    ],
)
def test_an_error_is_one_line_without_secrets(said, told):
    environment = {"WANDB_API_KEY": "abc123", "A_TOKEN": "", "HOME": "one"}
    assert describe_tracker_error(ValueError(said), environment) == f"ValueError: {told}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_libraries_themselves_keep_one_run_of_two_processes(tmp_path, monkeypatch, name):
    """Offline. The second process repeats a step."""
    pytest.importorskip(name, reason=f"the extra `{name}` is not installed")
    for variable in [variable for variable in os.environ if variable.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 120.0)
    for steps, seed in (((1, 2, 3), 3), ((3, 4), 4)):
        of = Trackers(tmp_path, RECIPE | {"trackers": [name], "seed": seed})
        for step in steps:
            of.write({"step": step, "loss": 1 / step, "eval_loss/青空 (a+b)": 0.5})
        of.close()
    identity = json.loads((tmp_path / "trackers.json").read_text("utf-8"))["id"]
    if name == "wandb":
        assert {path.stem for path in tmp_path.glob("wandb/offline-run-*/*.wandb")} == {f"run-{identity}"}
        return
    client = importlib.import_module("mlflow.tracking").MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.data.tags["tpullm_id"] == identity and run.data.params["seed"] == "3" and run.info.status == "FINISHED"
    assert run.data.metrics["eval_loss/青空 _a_b_"] == 0.5
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 3, 4]
