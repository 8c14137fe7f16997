"""A tracker gets the rows of the log, in the same run after a kill; one that fails or hangs costs a training nothing.

The libraries are stand-ins, but for the last tests, which need the extras `wandb` and `mlflow`.
"""

import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tpullm.cli.main import main
from tpullm.system.errors import UserError
from tpullm.training import trackers
from tpullm.training.metrics import MetricsLog, numbers, read
from tpullm.training.tracker_child import described
from tpullm.training.trackers import Trackers, check, settings

WANDB = """
import json, os, sys, time

def note(kind, value):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([kind, value]) + "\\n")

def does(what):
    if os.environ.get("DOES") == f"hangs in {what}":
        time.sleep(1e6)
    if os.environ.get("DOES") == f"fails in {what}":
        raise ConnectionError("https://me:secret@host is down\\nfor long")
    print("noise of the library")

class Run:
    @property
    def config(self):
        return self
    def update(self, config, allow_val_change):
        note("config", config)
    def define_metric(self, name, step_metric=None):
        note("metric", [name, step_metric])
    def log(self, row):
        does("log")
        note("row", row)
    def finish(self, exit_code):
        does("finish")
        note("finish", exit_code)

def init(**options):
    does("init")
    note("init", options | {"mode": os.environ.get("WANDB_MODE"), "read": sys.stdin.read()})
    return Run()
"""
MLFLOW = {
    "__init__.py": "",
    "entities.py": """
from collections import namedtuple
Metric = namedtuple("Metric", "key value timestamp step")
Param = namedtuple("Param", "key value")
""",
    "tracking.py": """
import json, os
from types import SimpleNamespace as Of

class MlflowClient:  # its store is a file
    def __init__(self):
        self.path = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
        self.held = json.load(open(self.path)) if os.path.exists(self.path) else {"runs": [], "experiment": None}
    def _keep(self):
        json.dump(self.held, open(self.path, "w"))
    def get_experiment_by_name(self, name):
        return Of(experiment_id="7") if self.held["experiment"] == name else None
    def create_experiment(self, name):
        self.held["experiment"] = name
        return "7"
    def _run(self, index):
        return Of(info=Of(run_id=str(index)), data=Of(params=self.held["runs"][index]["params"]))
    def search_runs(self, experiments, asked, max_results):
        assert experiments == ["7"]
        return [self._run(n) for n, run in enumerate(self.held["runs"]) if f"tags.tpullm_id = '{run['id']}'" == asked]
    def create_run(self, experiment, run_name, tags):
        self.held["runs"].append({"id": tags["tpullm_id"], "name": run_name, "params": {}, "metrics": [], "status": ""})
        return self._run(len(self.held["runs"]) - 1)
    def update_run(self, run_id, status):
        self.held["runs"][int(run_id)]["status"] = status
        self._keep()
    set_terminated = update_run
    def log_batch(self, run_id, metrics=(), params=()):
        run = self.held["runs"][int(run_id)]
        assert not {param.key for param in params} & run["params"].keys()
        run["params"] |= {param.key: param.value for param in params}
        run["metrics"] += [[metric.key, metric.value, metric.step] for metric in metrics]
        self._keep()
""",
}
RECIPE = {"name": "tiny", "trackers": ["wandb"], "seed": 3, "text": "my/texts", "mesh": {"fsdp": -1}}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Stand-ins for both libraries; `fakes()` is what that of wandb has noted."""
    folder = tmp_path / "libraries"
    (folder / "mlflow").mkdir(parents=True)
    (folder / "wandb.py").write_text(WANDB, "utf-8")
    for name, text in MLFLOW.items():
        (folder / "mlflow" / name).write_text(text, "utf-8")
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 60.0)  # a busy machine is slow
    return lambda: [tuple(json.loads(line)) for line in (tmp_path / "notes").read_text("utf-8").splitlines()]


def noted(notes, kind):
    return [value for name, value in notes if name == kind]


@pytest.mark.ci
def test_a_training_gives_its_rows_to_both_and_resumes_the_run(tiny_tokens, fakes, capsys):
    """Four steps; then, as after a kill, the last two again."""
    stage, words = tiny_tokens / "pretrain", ["pretrain", "--run", str(tiny_tokens), "--trackers=[wandb,mlflow]"]
    words += ["--pretrain.norms_every=2", "--pretrain.steps=4", "--pretrain.checkpoint.every_steps=2"]
    assert main([*words, "--pretrain.log_every=2"]) == 0
    (stage / "manifest.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "4")
    assert main([*words, "--pretrain.log_every=1"]) == 0
    notes = fakes()
    first, second = noted(notes, "init")
    assert first == second and first["id"] == json.loads((stage / "trackers.json").read_text("utf-8"))["id"]
    assert first["resume"] == "allow" and first["name"] == "tiny/pretrain" and first["dir"] == str(stage)
    assert first["mode"] == "offline" and first["read"] == "", "the library can't read rows from stdin"
    assert noted(notes, "metric")[:2] == [["step", None], ["*", "step"]], "a repeated step is no error for wandb"
    rows, kept = noted(notes, "row"), [numbers(row) for row in read(stage / "metrics.jsonl")]
    assert [row for row in kept if row not in rows] == []
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 3, 4]
    assert [row["step"] for row in rows if "gradient_norms/layer_1.mlp" in row] == [2, 4, 4]
    assert any("eval_loss/tenki" in row for row in rows)
    assert all(isinstance(value, int | float) for row in rows for value in row.values())
    assert noted(notes, "finish") == [0, 0]
    assert [config["pretrain.log_every"] for config in noted(notes, "config")] == [2, 1]
    (run,) = json.loads((stage / "mlflow.db").read_text("utf-8"))["runs"]
    assert run["name"] == "tiny/pretrain" and run["status"] == "FINISHED" and run["params"]["pretrain.log_every"] == "2"
    assert sorted(run["metrics"]) == sorted([key, value, row["step"]] for row in rows for key, value in row.items())
    assert "noise" not in capsys.readouterr().err


def test_a_library_that_is_missing_is_told_before_anything_is_trained(tiny_tokens, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest)
    )
    new = tiny_tokens.parent / "new"
    for words in (["pretrain", "--run", tiny_tokens], ["run", "quickstart", "--run", new]):
        assert main([*map(str, words), "--trackers=[mlflow]"]) == 2
        assert "trackers: mlflow is not installed; run: pip install 'tpullm[mlflow]'" in capsys.readouterr().err
    assert not (tiny_tokens / "pretrain").exists() and not new.exists()


def test_a_tracker_that_does_not_exist_is_told(tiny_tokens, capsys):
    assert main(["pretrain", "--run", str(tiny_tokens), "--trackers=[tensorboard]"]) == 2
    assert "trackers: tensorboard" in capsys.readouterr().err


@pytest.mark.parametrize("name, variable", [("wandb", "WANDB_API_KEY"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_a_run_on_gs_needs_a_server(fakes, monkeypatch, name, variable):
    with pytest.raises(UserError, match=f"trackers: {name} keeps its files on this machine.*; set {variable}"):
        check([name], "gs://bucket/run/pretrain")
    monkeypatch.setenv(variable, "given")
    check([name], "gs://bucket/run/pretrain")
    monkeypatch.setenv("WANDB_MODE", "offline")
    if name == "wandb":
        with pytest.raises(UserError):
            check([name], "gs://bucket/run/pretrain")


@pytest.mark.parametrize("what", ["init", "log"])
def test_a_tracker_that_fails_is_one_line(tmp_path, fakes, monkeypatch, capsys, what):
    monkeypatch.setenv("DOES", f"fails in {what}")
    of = Trackers(tmp_path, RECIPE)
    for step in (1, 2, 3):
        of.write({"step": step})
    of.close()
    (said,) = capsys.readouterr().err.splitlines()
    assert said == ("wandb: ConnectionError: https://host is down (training goes on; metrics.jsonl has every row)")


def test_a_tracker_that_can_not_be_started_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(trackers.subprocess, "Popen", fail)
    of = Trackers(tmp_path, RECIPE)
    of.write({"step": 1})
    of.close()
    said = capsys.readouterr().err
    assert said == "wandb: can't be started (Cannot allocate memory); training goes on without it\n"


def test_a_tracker_that_ends_is_one_line(tmp_path, fakes, capsys):
    of = Trackers(tmp_path, RECIPE)
    (tracker,) = of._all
    os.killpg(tracker._process.pid, signal.SIGKILL)
    tracker._listens.join(60)
    of.write({"step": 1})
    of.close()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("wandb: has ended by itself")


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_tracker_that_hangs_is_waited_for_a_few_seconds_at_the_end_alone(tmp_path, fakes, monkeypatch, capsys, what):
    """Also when the pipe and the queue are full: of 2,000 rows of 1 KB, 10 wait in the queue."""
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 0.5)
    monkeypatch.setattr(trackers, "MOST_ROWS", 10)
    monkeypatch.setenv("DOES", f"hangs in {what}")
    of = Trackers(tmp_path, RECIPE)
    (tracker,) = of._all
    spent = time.thread_time()
    for step in range(2_000):
        of.write({"step": step, **{f"{n:>020}": 0.5 for n in range(40)}})
    assert time.thread_time() - spent < 5.0, "a row is queued or left out"
    of.close()
    assert tracker._process.returncode == -signal.SIGKILL
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("wandb: does not ")


def test_what_was_sent_is_written_when_the_training_is_killed(tmp_path, fakes):
    """And the run is marked as one that failed. The next process finds it by its id."""
    program = f"""
import os, signal, time
from pathlib import Path
from tpullm.training.trackers import Trackers

of = Trackers(Path({str(tmp_path)!r}), {RECIPE!r})
(tracker,) = of._all
for step in (1, 2, 3):
    of.write({{"step": step}})
while not tracker._rows.empty():
    time.sleep(0.01)
time.sleep(0.2)  # for the last one to be in the pipe
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    while not noted(notes := fakes() if (tmp_path / "notes").exists() else [], "finish"):
        time.sleep(0.02)
    assert noted(notes, "row") == [{"step": step} for step in (1, 2, 3)] and noted(notes, "finish") == [1]
    of = Trackers(tmp_path, RECIPE)
    of.close()
    first, second = noted(fakes(), "init")
    assert first["id"] == second["id"]


def test_what_the_user_has_set_stands(tmp_path, fakes, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Trackers(tmp_path, RECIPE).close()
    (found,) = noted(fakes(), "init")
    assert (found["mode"], found["project"]) == ("online", "mine")


def test_without_trackers_there_is_no_file_and_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.subprocess, "Popen", None)
    log = MetricsLog(tmp_path, 0, Trackers(tmp_path, RECIPE | {"trackers": []}))
    log.write({"step": 1})
    log.close()
    assert not (tmp_path / "trackers.json").exists()


def test_numbers_and_choices_of_a_recipe_are_sent_and_no_path_or_text():
    recipe = RECIPE | {"pretrain": {"optimizer": {"kind": "muon", "peak_lr": 0.1}, "profile": "1:2"}, "language": "ja"}
    recipe |= {"corpus": {"sources": [{"weight": 1.0}]}, "model": {"tied_embeddings": True, "windows": (4,)}}
    assert settings(recipe) == {
        "seed": 3,
        "mesh.fsdp": -1,
        "pretrain.optimizer.kind": "muon",
        "pretrain.optimizer.peak_lr": 0.1,
        "language": "ja",
        "model.tied_embeddings": True,
    }


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
    assert (
        described(ValueError(said), {"WANDB_API_KEY": "abc123", "A_TOKEN": "", "HOME": "one"}) == f"ValueError: {told}"
    )


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
    assert {"wandb": wandb_rows, "mlflow": mlflow_rows}[name](tmp_path, identity) == [1, 2, 3, 3, 4]


def mlflow_rows(stage: Path, identity: str) -> list[int]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{stage}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.data.tags["tpullm_id"] == identity and run.data.params["seed"] == "3" and run.info.status == "FINISHED"
    assert run.data.metrics["eval_loss/青空 _a_b_"] == 0.5
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]


def wandb_rows(stage: Path, identity: str) -> list[int]:
    """From the files, which are records in blocks of 32 KiB as of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(stage.glob("wandb/offline-run-*/*.wandb")):
        data, place, ids = path.read_bytes(), 7, []  # after the head of the file
        while place < len(data):
            _, size, kind = struct.unpack("<IHB", data[place : place + 7])
            assert kind == 1, "a whole record"
            record = Record.FromString(data[place + 7 : place + 7 + size])
            place += 7 + size
            ids += [record.run.run_id] if record.HasField("run") else []
            for item in record.history.item:
                found += [json.loads(item.value_json)] if "step" in (item.key, *item.nested_key) else []
        assert ids == [identity]
    return found
