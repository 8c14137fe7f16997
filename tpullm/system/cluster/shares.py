"""Several processes, on one machine or many, share the work of a verb: share I of N does every N-th part.

They use one run directory and exchange files that appear whole and never change:

    RUN/.VERB/KEY/                   the finished parts; KEY is the hash of all that the work depends on
    RUN/.VERB/notes/I.START.begun    share I began (START is random), and with which inputs
    RUN/.VERB/notes/I.START.failed   share I ended with a user error, with its line

Share 0 owns the run directory: it alone writes results (downloads, documents, tokenizer, stores, manifests), and the
others wait for them. The finished parts of a killed share stay, and the others wait until it is started again.

A note counts if it is of this attempt, which no clock decides. In a job (Google Batch, Slurm) it names the same job.
Without a job, a note that appears after this share began is of its attempt. An older note of a failure may be of an
earlier attempt: its share removes it when it starts again, so it counts if it is still there after
`SECONDS_TO_RESTART`.
"""

import contextlib
import math
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpullm.system import errors, log, storage
from tpullm.system.cluster.place import Place
from tpullm.system.errors import UserError

SECONDS_BETWEEN_LOOKS = 5.0  # at the notes of others; a share that waits begins with a hundredth of it
SECONDS_TO_RESTART = 60.0


class ShareFailed(UserError):
    """Another share ended with a user error."""


class SharedWork:
    """The finished parts and the notes of a verb's shares. A context manager.

    After success, nothing is left of them. A user error is noted for the other shares; one process alone leaves
    nothing. After any other exception, such as a full disk, the finished parts stay.
    """

    def __init__(self, run: Path, verb: str, share: Place):
        self.share = share
        self.folder = run / f".{verb}"
        self._notes = self.folder / "notes"
        self._name = f"{share.index}.{uuid.uuid4().hex[:8]}"
        self._facts: dict[str, Any] = {}
        self._began = time.monotonic()
        self._before: set[str] = set()
        self._judged: set[str] = set()

    def __enter__(self) -> "SharedWork":
        if self.share.count > 1:
            self._remove_notes()
            self._before = names(self._notes)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = errors.correctable(error) if error else None
        if not error and self.share.is_first:
            storage.remove_tree(self.folder)
        elif not error:  # another share may have been restarted meanwhile: it removes its own notes
            self._remove_notes()
            storage.remove_empty(self._notes)
            storage.remove_empty(self.folder)
        elif told and self.share.count == 1:
            if isinstance(error, UserError):
                return storage.remove_tree(self.folder)
            for name in names(self.folder):
                storage.remove_partials(self.folder / name)
        elif told and not isinstance(error, ShareFailed):
            with contextlib.suppress(OSError):  # a full disk, for example; this share prints its line anyway
                self._write_note("failed", line=told)

    def begin(self, inputs: dict[str, Any]) -> Path:
        """The folder for parts made from these inputs; one process alone removes parts made from other inputs."""
        flat: dict[str, Any] = {"share.count": self.share.count}
        for name, value in inputs.items():
            flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        # What must be equal for all shares, by dotted key; values that are not short as hashes.
        short = (str, int, float, bool, type(None))
        self._facts = {key: one if isinstance(one, short) else storage.hash_json(one)[:16] for key, one in flat.items()}
        if self.share.count > 1:
            self._write_note("begun", facts=self._facts)
        folder = self.folder / storage.hash_json(inputs)[:16]
        if self.share.count == 1:  # else a share of another recipe may write there, and must find the notes
            for name in names(self.folder) - {folder.name, self._notes.name}:
                storage.remove_tree(self.folder / name)
        return folder

    def wait(self, is_over: Callable[[], bool], what: str = "") -> None:
        """Wait until something is over, asking less and less often; raises like `look`.

        Args:
            what: of share 0 is waited for; a line says so every minute.
        """
        pause, told = SECONDS_BETWEEN_LOOKS / 100, -math.inf
        while not is_over():
            if what and time.monotonic() - told > log.SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                log.say(f"waits for {what}, from share 0")
            self.look()
            time.sleep(pause)
            pause = min(1.5 * pause, SECONDS_BETWEEN_LOOKS)

    def look(self) -> None:
        """Raise `ShareFailed` if another share failed in this attempt, `UserError` if its inputs differ."""
        if self.share.count > 1:
            for name in sorted(names(self._notes) - self._judged):
                self._judge(name)

    def _judge(self, name: str) -> None:
        """Act on a note, or skip it: for good, or until it can be judged."""
        index, start, kind = name.split(".")
        if f"{index}.{start}" == self._name:
            return self._judged.add(name)
        try:
            note = storage.read_json(self._notes / name)
        except UserError:  # its share has started again and removed it
            return None
        doubtful = name in self._before and not self.share.job
        if note["job"] != self.share.job or (doubtful and kind == "begun"):
            return self._judged.add(name)
        if kind == "failed" and not (doubtful and time.monotonic() - self._began < SECONDS_TO_RESTART):
            raise ShareFailed(f"share {index} ({note['host']}) failed: {note['line']}")
        if kind == "begun" and self._facts:
            for key in self._facts | note["facts"]:
                theirs, ours = note["facts"].get(key), self._facts.get(key)
                if theirs != ours:
                    raise UserError(
                        f"share {index} ({note['host']}) has {key} {theirs!r}, share {self.share.index} "
                        f"({socket.gethostname()}) has {ours!r}; start all shares with the same"
                    )
            self._judged.add(name)

    def _write_note(self, kind: str, **content: Any) -> None:
        note = {"job": self.share.job, "host": socket.gethostname(), **content}
        try:
            storage.write_json(self._notes / f"{self._name}.{kind}", note)
        except FileNotFoundError:  # share 0 finished the stage and removed the folder meanwhile
            storage.write_json(self._notes / f"{self._name}.{kind}", note)

    def _remove_notes(self) -> None:
        """Remove the notes of this share, of this attempt and of earlier ones."""
        for name in names(self._notes):
            if name.split(".")[0] == str(self.share.index):
                (self._notes / name).unlink(missing_ok=True)


def names(folder: Path) -> set[str]:
    """Names in a folder, without files that are being written; empty if there is no folder."""
    with contextlib.suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}
    return set()
