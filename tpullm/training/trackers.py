"""Weights & Biases and MLflow: optional places for the rows of `metrics.jsonl`, each by its own library.

A tracker that is down, fails or hangs neither stops nor slows a training. Its library runs in a thread, which takes the
rows from a bounded queue. What goes wrong is one line. At the end the training waits a few seconds for it.

A thread, as in torchtitan and Levanter, and not a process: it can't be killed if the library hangs, what the library
prints or sets (signal handlers, hooks) is that of the training's process, and of a training that is killed the rows in
the queue are lost. `metrics.jsonl` has every row.

A resumed training goes on in the same run, by the id in `STAGE/trackers.json`. Steps that are repeated after a kill
are sent again. What a row has is there by its own field `step`.
"""

import contextlib
import importlib.util
import os
import queue
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import sections
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import warn

FILE = "trackers.json"
PROJECT = "tpullm"  # unless the library's variables name another one
MOST_ROWS = 10_000  # that wait; further ones are left out
SECONDS_TO_END = 10.0  # for all trackers together, when the log is closed
# A variable that the user has set stands. By default nothing is said to the makers of a library, nor about the machine.
VARIABLES = {
    "wandb": {
        **dict.fromkeys(("WANDB_SILENT", "WANDB_DISABLE_GIT", "WANDB_DISABLE_CODE"), "true"),
        **dict.fromkeys(("WANDB__DISABLE_STATS", "WANDB__DISABLE_META", "WANDB__DISABLE_MACHINE_INFO"), "true"),
        "WANDB_CONSOLE": "off",
        "WANDB__SAVE_REQUIREMENTS": "false",
        "WANDB_ERROR_REPORTING": "false",
    },
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"},
}


def check_trackers(names: Sequence[str], stage: Path) -> None:
    """Raise `UserError` if a tracker can't work: before anything is trained."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; run: pip install 'tpullm[{name}]'")
        if storage.is_remote(stage) and _is_local_tracker(name):
            wanted = {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_URI"}[name]
            raise UserError(f"trackers: {name} keeps its files on this machine, and the run is on gs://; set {wanted}")


def _is_local_tracker(name: str) -> bool:
    if name == "mlflow":
        return "MLFLOW_TRACKING_URI" not in os.environ
    return os.environ.get("WANDB_MODE", "online" if "WANDB_API_KEY" in os.environ else "offline") == "offline"


def tracked_settings(recipe: dict) -> dict[str, float | bool | str]:
    """The numbers of a recipe, and its choices among fixed words, by dotted key. Paths and texts are not sent."""
    choices = {section.dotted(key) for section in sections(Recipe) for key in section.keys if key.choices}
    pairs = list(recipe.items())
    for key, value in pairs:  # which grows by the keys of each section
        if isinstance(value, dict):
            pairs += [(f"{key}.{name}", inner) for name, inner in value.items()]
    return {key: value for key, value in pairs if isinstance(value, int | float) or key in choices}


class WandbRun:
    """A run of Weights & Biases. It refuses steps that are smaller than the last, so the step is a field of its own."""

    def __init__(self, folder: Path, identity: str, name: str, config: dict):
        import wandb

        project, mode = os.environ.get("WANDB_PROJECT", PROJECT), "offline" if _is_local_tracker("wandb") else None
        options = {"dir": str(folder), "mode": mode, "resume": "allow", "reinit": "finish_previous"}
        self._run = wandb.init(project=project, id=identity, name=name, **options)
        self._run.config.update(config, allow_val_change=True)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, row: dict) -> None:
        """Log a row."""
        self._run.log(row)

    def close(self, whole: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if whole else 1)


class MlflowRun:
    """A run of MLflow. Its server chooses the id of a run, so ours is a tag. Of a repeated step both values stay."""

    def __init__(self, folder: Path, identity: str, name: str, config: dict):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        # Not by its variable: the next stage of this process has another folder.
        self._client = MlflowClient(f"sqlite:///{folder}/mlflow.db" if _is_local_tracker("mlflow") else None)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(experiment)
        found = self._client.search_runs([experiment], f"tags.tpullm_id = '{identity}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, run_name=name, tags={"tpullm_id": identity})
        self._id = run.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        # A parameter of a run can't be changed: of a resumed one, the new ones are added.
        new = [Param(key, str(value)) for key, value in config.items() if key not in run.data.params]
        self._client.log_batch(self._id, params=new)

    def write(self, row: dict) -> None:
        """Log a row."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # Names of sources may have characters that MLflow refuses.
        metrics = [Metric(re.sub(r"[^/\w.\- :]", "_", key), value, now, row["step"]) for key, value in row.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, whole: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FINISHED" if whole else "KILLED")


RUNS = {"wandb": WandbRun, "mlflow": MlflowRun}


def describe_tracker_error(error: Exception, environment: dict) -> str:
    """One line about an error, without passwords and keys."""
    text = re.sub(r"//[^/\s]*@", "//", f"{type(error).__name__}: {error}".splitlines()[0])
    for name, value in environment.items():
        if value and re.search("KEY|TOKEN|PASSWORD|SECRET", name):
            text = text.replace(value, "***")
    return text[:300]


class Trackers:
    """All trackers of one training. Each has a queue of rows, and a thread that sends them.

    Args:
        stage: its folder.
        recipe: as a dictionary.
    """

    def __init__(self, stage: Path, recipe: dict):
        self._temporary, folder, self._told, self._whole = None, stage, set(), False
        self._all: dict[str, tuple[queue.Queue[dict | None], threading.Thread]] = {}
        if not recipe["trackers"]:
            return
        if storage.is_remote(stage):
            self._temporary = tempfile.TemporaryDirectory(prefix="tpullm-", ignore_cleanup_errors=True)
            folder = Path(self._temporary.name)
        if not (stage / FILE).exists():  # the id of the stage's run, which goes where the stage goes
            storage.write_json(stage / FILE, {"id": uuid.uuid4().hex[:12]})
        identity = storage.read_json(stage / FILE)["id"]
        order = folder, identity, f"{recipe['name']}/{stage.name}", tracked_settings(recipe)
        for name in dict.fromkeys(recipe["trackers"]):
            for variable, value in VARIABLES[name].items():
                os.environ.setdefault(variable, value)
            rows = queue.Queue(MOST_ROWS)
            thread = threading.Thread(target=self._send, args=(name, rows, *order), daemon=True, name=name)
            self._all[name] = rows, thread
            thread.start()

    def write(self, row: dict[str, float]) -> None:
        """Queue a row of numbers for all trackers; `step` is one of them."""
        for name, (rows, _) in self._all.items():
            try:
                rows.put_nowait(row)
            except queue.Full:
                self._tell(name, "does not keep up; rows are left out")

    def close(self, whole: bool = True) -> None:
        """End all of them when they have sent all rows, in a few seconds.

        Args:
            whole: False marks the runs as failed.
        """
        self._whole, until = whole, time.monotonic() + SECONDS_TO_END
        for rows, _ in self._all.values():
            with contextlib.suppress(queue.Full):  # it hangs
                rows.put_nowait(None)
        for name, (_, thread) in self._all.items():
            thread.join(max(until - time.monotonic(), 0.0))
            if thread.is_alive():
                self._tell(name, "does not end; its last rows are left out")
        if self._temporary:
            self._temporary.cleanup()

    def _send(self, name: str, rows: queue.Queue[dict | None], *order: Any) -> None:
        """What fails is tried again with the next row: a server may come back."""
        run, row = None, {}
        while row is not None:
            try:
                run = run or RUNS[name](*order)
                if row:
                    run.write(row)
            except Exception as error:
                self._tell(name, describe_tracker_error(error, os.environ))
            row = rows.get()
        try:
            if run:
                run.close(self._whole)
        except Exception as error:
            self._tell(name, describe_tracker_error(error, os.environ))

    def _tell(self, name: str, what: str) -> None:
        """The first thing that goes wrong with a tracker, as one line."""
        if name not in self._told:
            self._told.add(name)
            warn(f"{name}: {what} (training goes on; metrics.jsonl has every row)")
