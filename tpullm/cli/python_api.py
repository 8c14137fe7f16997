"""The five steps from Python: `tpullm.Run`. Each step runs a verb of the command line in a process of its own.

glibc reads the settings of its allocator before a program begins (`system/process/environment.py`), so the process of a
notebook can't have them, and without them a CPU trains at two thirds of the speed. A process of its own also frees its
memory when the step ends, and there is only one way to do a step.
"""

import contextlib
import json
import os
import queue
import signal
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tpullm.cli import tokenize
from tpullm.cli.python_results import Loss, Split
from tpullm.corpus import document_files
from tpullm.launch.child_process import Child
from tpullm.recipe import parsing as recipes
from tpullm.report import run_data
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.errors import TRY_AGAIN, Interrupted, TryAgain, UserError

SECONDS_BETWEEN_LOOKS = 0.2
# A notebook's kernel sets these. Programs then write colours and progress bars as on a terminal, and each update of a
# bar would be a line here.
AS_ON_A_TERMINAL = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


class Run:
    """A run directory and its recipe.

        run = tpullm.Run("quickstart", "runs/mine", {"pretrain.steps": 240})
        run.collect()
        run.tokenize()
        run.pretrain()
        run.finetune()
        run.evaluate()
        run.report()

    A finished step is skipped and an interrupted one resumes, as on the command line. An accelerator belongs to the
    process that uses it: all of a TPU, three quarters of a GPU's memory. On an accelerator, make the steps before this
    process loads a model.

    Args:
        recipe: a name of `tpullm recipes`, or a YAML file; default: the recipe in the run directory.
        folder: the run directory; default: the one that the recipe names.
        keys: values for keys of the recipe, such as `{"pretrain.steps": 240}`.

    Attributes:
        folder: the run directory.

    Raises:
        UserError: there is no such recipe, a key is unknown, or a value is out of range.
    """

    def __init__(self, recipe: str | Path = "", folder: str | Path = "", keys: Mapping[str, Any] | None = None):
        words = [str(recipe)] if recipe else []
        words += [f"--run={folder}"] if folder else []
        for key, value in (keys or {}).items():
            words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        self.folder = storage.path(recipes.of_command_line(words).run)
        self._words = words

    def __repr__(self) -> str:
        return f"tpullm.Run: {self.folder}"

    def collect(self) -> None:
        """Step 1: read the sources, clean them, write the documents."""
        self._verb("collect")

    def tokenize(self) -> None:
        """Step 2: train the tokenizer, and write the documents as tokens."""
        self._verb("tokenize")

    def pretrain(self) -> None:
        """Steps 3 and 4: build the Transformer, and train it to predict the next token."""
        self._verb("pretrain")

    def finetune(self) -> None:
        """Step 5: tune the pretrained model on conversations."""
        self._verb("finetune")

    def evaluate(self) -> dict[str, Any]:
        """Measure the models; returns the content of `evaluate/results.json`."""
        self._verb("evaluate")
        return storage.read_json(self.folder / "evaluate" / "results.json")

    def report(self) -> Path:
        """Write the report; returns its path."""
        self._verb("report")
        return self.folder / "report.html"

    def all(self) -> None:
        """Make every step of the recipe that is not made yet."""
        self._verb("run")

    def documents(self, source: str, count: int = 3) -> list[str]:
        """The first documents that were collected from a source."""
        documents = self.folder / "documents"
        if not (documents / manifest.FILE).exists() or not document_files.parts(documents, source):
            raise UserError(f"{self.folder}: has no documents of a source '{source}'; call collect() first")
        found = document_files.read(documents, source, document_files.TRAIN)
        return [document["text"] for document in islice(found, count)]

    def split(self, text: str) -> Split:
        """The tokens of a text. A notebook shows them in colours."""
        return Split(tuple(tokenize.find_tokenizer(self.folder).pieces(text)))

    def loss(self) -> Loss:
        """The loss of pretraining so far. A notebook shows the curve."""
        found = Loss(run_data.read(recipes.of_command_line([f"--run={self.folder}"]), self.folder))
        if not found.losses:
            raise UserError(f"{self.folder}: has no loss of pretraining; call pretrain() first")
        return found

    def model(self, stage: str = ""):
        """The trained model of a stage, such as `pretrain`; default: the last one. See `LanguageModel`."""
        from tpullm import load  # imports JAX

        return load(self.folder / stage)

    def _verb(self, verb: str) -> None:
        """Run a verb of the command line and show its lines.

        Raises:
            UserError: the verb reported a user error.
            TryAgain: the failure is temporary.
            Interrupted: the verb was interrupted; what was finished is kept.
            RuntimeError: the verb failed; its lines say why.
        """
        code, line = _run_verb([sys.executable, "-m", "tpullm", verb, *self._words])
        message = line.removeprefix("tpullm: ")
        if error := {UserError.code: UserError, TRY_AGAIN: TryAgain, 130: Interrupted}.get(code):
            raise error(message)
        if code:
            raise RuntimeError(f"tpullm {verb} failed with exit code {code}; its lines are above")


def _run_verb(command: Sequence[str]) -> tuple[int, str]:
    """Run a command and show its lines as they come; returns its exit code and its last line.

    An interrupt of this process (a notebook's stop button) is passed on to the command, which can save first.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    environment = {name: value for name, value in os.environ.items() if name not in AS_ON_A_TERMINAL}
    child = Child(command, environment, lines.put)
    try:
        while True:
            try:
                code = child.poll()
                with contextlib.suppress(queue.Empty):
                    while True:
                        line = lines.get(timeout=SECONDS_BETWEEN_LOOKS if code is None else 0)
                        if not line.startswith("tpullm: "):  # the error message is shown by the exception
                            print(line, flush=True)
                if code is not None:
                    return code, child.last_line
            except KeyboardInterrupt:
                child.send(signal.SIGINT)
    finally:
        child.kill()
