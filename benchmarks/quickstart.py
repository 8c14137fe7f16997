"""A short form of the quickstart's training by the real command line: its model and batches, on a part of its text."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from turns import WorkerError

RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
DOCUMENTS = {"tenki": 4000, "python-docs": 100, "python-code": 200}  # enough for a vocabulary of the same size
STAGES = ("recipe.yaml", "documents", "tokenizer", "tokens")
LONGEST_SECONDS = 300.0  # timeout of a step


class Quickstart:
    """Runs of the quickstart's recipe in `folder`. The user's cache is there too, so it is empty at first."""

    def __init__(self, folder: Path):
        """Write the recipe, collect and tokenize."""
        self.folder, self.recipe, self._prepared = folder, folder / "recipe.yaml", folder / "prepared"
        recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        for source in recipe["corpus"]["sources"]:
            source["documents"] = DOCUMENTS[source["name"]]
        recipe["pretrain"] |= {"steps": 1000, "evaluate_every": 0}  # the timed part ends long before the last step
        self.recipe.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        for verb in ("collect", "tokenize"):
            with self._command(verb, self._prepared, "prepared") as process:
                if process.wait():
                    raise WorkerError(f"{verb}: {self._last_line('prepared')}")

    def new_run(self, name: str) -> Path:
        """A run directory whose stages up to the tokens are finished."""
        run = self.folder / name
        run.mkdir()
        for stage in STAGES:
            made = self._prepared / stage
            (shutil.copytree if made.is_dir() else shutil.copy)(made, run / stage)
        return run

    def pretrain(self, run: Path, count: int, log_every: int, cache: str) -> tuple[float, list[dict]]:
        """`tpullm pretrain`, new or resumed, until it has written `count` lines of its log; it then saves and ends.

        Args:
            log_every: steps between lines.
            cache: the name of the cache folder; one that wasn't used before is empty.

        Returns:
            Seconds from the start of the process to the last of these lines, and the lines.
        """
        before = len(read_lines(run))
        began = time.perf_counter()
        with self._command("pretrain", run, cache, f"--pretrain.log_every={log_every}") as process:
            try:
                while len(lines := read_lines(run)) < before + count:
                    if process.poll() is not None or time.perf_counter() - began > LONGEST_SECONDS:
                        raise WorkerError(f"pretrain: {self._last_line(cache)}")
                    time.sleep(0.005)
                seconds = time.perf_counter() - began
            finally:
                process.send_signal(signal.SIGTERM)
        return seconds, lines[before : before + count]

    def _command(self, verb: str, run: Path, cache: str, *options: str) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        environment["XDG_CACHE_HOME"] = str(self.folder / f"cache-{cache}")
        command = [sys.executable, "-m", "tpullm", verb, "--config", self.recipe, "--run", run, *options]
        with open(self.folder / f"{cache}.log", "w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _last_line(self, cache: str) -> str:
        lines = (self.folder / f"{cache}.log").read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "ended without a word")


def read_lines(run: Path) -> list[dict]:
    """The complete log lines of training steps in `run`."""
    path = run / "pretrain" / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if "step_seconds" in line]


def wait_share(lines: list[dict]) -> float:
    """The share of the steps' time that was spent waiting for data, as `training/meter.Meter` counts it."""
    waited = sum(line["data_wait_share"] * line["step_seconds"] for line in lines)
    return waited / sum(line["step_seconds"] for line in lines)


@contextlib.contextmanager
def prepared() -> Iterator[Quickstart]:
    """A quickstart in a temporary folder, which is removed after the block."""
    with tempfile.TemporaryDirectory(prefix="tpullm-benchmark-") as folder:
        yield Quickstart(Path(folder))
