"""Weights & Biases and MLflow: optional places for the rows of `metrics.jsonl`, each by its own library.

A tracker that is down, fails or hangs neither stops nor slows a training. Its library runs in a process of its own
(`tracker_child.py`), which is killed if it does not end. Rows wait in a bounded queue, and a thread sends them. What
goes wrong is one line. The process also outlives a training that is killed, until it has written what was sent.

A resumed training goes on in the same run, by the id in `STAGE/trackers.json`. Steps that are repeated after a kill
are sent again. What a row has is there by its own field `step`.
"""

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import sections
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, warn
from tpullm.training import tracker_child

FILE = "trackers.json"
NAMES = tuple(tracker_child.RUNS)
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


def check(names: Sequence[str], stage: Path) -> None:
    """Raise `UserError` if a tracker can't work: before anything is trained."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed; run: pip install 'tpullm[{name}]'")
        if storage.is_remote(stage) and _is_local(name):
            wanted = {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_URI"}[name]
            raise UserError(f"trackers: {name} keeps its files on this machine, and the run is on gs://; set {wanted}")


def _is_local(name: str) -> bool:
    if name == "mlflow":
        return "MLFLOW_TRACKING_URI" not in os.environ
    return os.environ.get("WANDB_MODE", "online" if "WANDB_API_KEY" in os.environ else "offline") == "offline"


def settings(recipe: dict) -> dict[str, float | bool | str]:
    """The numbers of a recipe, and its choices among fixed words, by dotted key. Paths and texts are not sent."""
    choices = {section.dotted(key) for section in sections(Recipe) for key in section.keys if key.choices}
    found: dict[str, float | bool | str] = {}

    def take(value: object, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                take(inner, f"{key}.{name}" if key else name)
        elif isinstance(value, int | float) or key in choices:
            found[key] = value

    take(recipe, "")
    return found


class Tracker:
    """One tracker of one training.

    Args:
        name: of `NAMES`.
        folder: for its files, on this machine.
        order: see `tracker_child.py`.
    """

    def __init__(self, name: str, folder: Path, order: dict):
        self._name, self._told, self._ends = name, False, False
        self._rows: queue.Queue[dict | None] = queue.Queue(MOST_ROWS)
        self._rows.put(order | {"tracker": name, "folder": str(folder), "parent": os.getpid()})
        local = {"wandb": {"WANDB_MODE": "offline"}, "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}}
        self._process = subprocess.Popen(
            [sys.executable, "-P", tracker_child.__file__],
            env=VARIABLES[name] | (local[name] if _is_local(name) else {}) | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C at the terminal reaches the training alone
        )
        self._listens = threading.Thread(target=self._listen, daemon=True, name=name)
        self._listens.start()
        threading.Thread(target=self._send, daemon=True, name=name).start()

    def write(self, row: dict[str, float]) -> None:
        """Queue a row."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._tell("does not keep up; rows are left out")

    def end(self) -> None:
        """Ask it to end when it has taken all rows."""
        self._ends = True
        with contextlib.suppress(queue.Full):  # it hangs
            self._rows.put_nowait(None)

    def wait(self, until: float) -> None:
        """Wait for its end, and kill it at the time `until` (of `time.monotonic`)."""
        try:
            self._process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self._tell("does not end; its last rows are left out")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listens.join(1.0)  # for its last line

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            row: dict | None = {}
            while row is not None:
                row = self._rows.get()
                data = f"{json.dumps(row)}\n".encode()
                while data:  # without a buffer, which would be written once more when it is collected
                    data = data[os.write(self._process.stdin.fileno(), data) :]
            self._process.stdin.close()

    def _listen(self) -> None:
        for line in self._process.stderr:
            self._tell(line)
        if not self._ends:
            self._tell("has ended by itself")

    def _tell(self, what: str) -> None:
        """The first thing that goes wrong, as one line."""
        if not self._told:
            self._told = True
            warn(f"{self._name}: {one_line(what, 300)} (training goes on; metrics.jsonl has every row)")


class Trackers:
    """All trackers of one training.

    Args:
        stage: its folder.
        recipe: as a dictionary.
    """

    def __init__(self, stage: Path, recipe: dict):
        self._temporary, self._all = None, []
        if not recipe["trackers"]:
            return
        folder = stage
        if storage.is_remote(stage):
            self._temporary = tempfile.TemporaryDirectory(prefix="tpullm-", ignore_cleanup_errors=True)
            folder = Path(self._temporary.name)
        order = {"id": _identity(stage), "name": f"{recipe['name']}/{stage.name}", "config": settings(recipe)}
        for name in dict.fromkeys(recipe["trackers"]):
            try:
                self._all.append(Tracker(name, folder, order))
            except OSError as error:  # no memory or no room for another process
                warn(f"{name}: can't be started ({error}); training goes on without it")

    def write(self, row: dict[str, float]) -> None:
        """Give all of them a row of numbers, of which one is `step`."""
        for tracker in self._all:
            tracker.write(row)

    def close(self) -> None:
        """End all of them, in a few seconds."""
        for tracker in self._all:
            tracker.end()
        until = time.monotonic() + SECONDS_TO_END
        for tracker in self._all:
            tracker.wait(until)
        if self._temporary:
            self._temporary.cleanup()


def _identity(stage: Path) -> str:
    """The id of the run of a stage, which goes where the stage goes."""
    if not (stage / FILE).exists():
        storage.write_json(stage / FILE, {"id": uuid.uuid4().hex[:12]})
    return storage.read_json(stage / FILE)["id"]
