"""Several processes, on one machine or many, share the work of a verb: each does every N-th part of it.

They see one run directory and talk through files that appear whole and never change:

    RUN/.VERB/KEY/                   what was done of each part; KEY is the hash of all that the work depends on
    RUN/.VERB/notes/I.START.begun    share I began (START is random), and with which inputs
    RUN/.VERB/notes/I.START.failed   it ended by a mistake that the user can correct, told in one line

Share 0 owns the run directory: it alone makes what is one (downloads, documents, tokenizer, stores, manifests); the
others wait for that. A share that vanishes leaves its finished parts, and the others wait until it is started again.

A note is believed if it is of this attempt. No clock decides that: it carries the same job's name, where there is a job
(Google Batch, Slurm). Without one, what appears after this share began is of its attempt. A failure that was there
before may be of an attempt that is over: its share removes it when it starts again, so it counts if it still stands
after `SECONDS_TO_RESTART`.
"""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tpullm import errors, log, storage
from tpullm.errors import UserError

SECONDS_BETWEEN_LOOKS = 5.0  # at the others' notes; a waiting share begins with a hundredth of it
SECONDS_BETWEEN_LINES = 60.0
SECONDS_TO_RESTART = 60.0
BEGUN, FAILED = "begun", "failed"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Which part of the work this process does.

    Args:
        index: of this share, from 0.
        count: of all shares.
        source: how that was found, for people.
        job: the name of what started all of them at once; empty if nothing did.
    """

    index: int = 0
    count: int = 1
    source: str = ""
    job: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this share makes what is one."""
        return self.index == 0

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Its items: each is in exactly one share, and neighbours are in different ones."""
        return items[self.index :: self.count]


ALL = Share()


class ShareFailed(UserError):
    """Another share ended by a mistake of the user's."""


class SharedWork:
    """What is done of a verb's work in a run directory, by this share and by the others. A context manager.

    At the end of a verb that succeeded nothing is left of it. One that failed by a mistake of the user's tells the
    others, or leaves nothing if it is alone; whatever else ends it, its finished parts stay.
    """

    def __init__(self, run: Path, verb: str, share: Share):
        self.share = share
        self.folder = run / f".{verb}"
        self._notes = self.folder / "notes"
        self._name = f"{share.index}.{uuid.uuid4().hex[:8]}"
        self._facts: dict[str, Any] = {}
        self._began = self._looked = time.monotonic()
        self._before: set[str] = set()
        self._judged: set[str] = set()

    def __enter__(self) -> "SharedWork":
        if self.share.count > 1:
            self._remove_notes()
            self._before = _names(self._notes)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = errors.correctable(error) if error else None
        if not error:
            self._finish()
        elif told and self.share.count == 1:
            storage.remove_tree(self.folder)
        elif told and not isinstance(error, ShareFailed):
            with contextlib.suppress(OSError):  # a full device, perhaps: the line is told here in any case
                self._write_note(FAILED, line=told)

    def begin(self, inputs: dict[str, Any]) -> Path:
        """The folder for what is done from these inputs; one process alone removes what was done from others."""
        self._facts = {"share.count": self.share.count} | _facts(inputs)
        if self.share.count > 1:
            self._write_note(BEGUN, facts=self._facts)
        folder = self.folder / storage.hash_json(inputs)[:16]
        if self.share.count == 1:  # else a share of another recipe may be writing there, and shall hear of it
            for name in _names(self.folder) - {folder.name, self._notes.name}:
                storage.remove_tree(self.folder / name)
        return folder

    def unfinished(self, files: Sequence[Path]) -> list[int]:
        """Of this share's files in one folder, which are not there yet, by their place among all.

        Ask whether the stage is finished after this, not before: when it is, share 0 removes the files, and a share
        that was started again at that moment would do its part once more.
        """
        missing = set(self._missing(files))
        return [place for place in self.share.of(range(len(files))) if place in missing]

    def _missing(self, files: Sequence[Path]) -> list[int]:
        there = _names(files[0].parent) if files else set()
        return [place for place, file in enumerate(files) if file.name not in there]

    def wait_for_parts(self, files: Sequence[Path]) -> None:
        """Wait until the others have made their parts; raises like `look`."""
        self.wait(lambda: self._missing_parts(files))

    def _missing_parts(self, files: Sequence[Path]) -> str:
        missing = self._missing(files)
        shares = sorted({place % self.share.count for place in missing})
        told = ", ".join(map(str, shares[:20])) + (", ..." if len(shares) > 20 else "")
        return f"{len(missing)} of {len(files)} parts, from share {told}" if missing else ""

    def wait_for_first(self, what: str, is_finished: Callable[[], bool]) -> None:
        """Wait until share 0 has made something; raises like `look`."""
        self.wait(lambda: "" if is_finished() else f"{what}, from share 0")

    def wait(self, missing: Callable[[], str]) -> None:
        """Wait until nothing is `missing`, and tell every minute what it is; raises like `look`."""
        pause, told = SECONDS_BETWEEN_LOOKS / 100, None
        while text := missing():
            self.look()
            if told is None or time.monotonic() - told > SECONDS_BETWEEN_LINES:
                log.say(f"waits for {text}")
                told = time.monotonic()
            time.sleep(pause)
            pause = min(1.5 * pause, SECONDS_BETWEEN_LOOKS)

    def look_sometimes(self) -> None:
        """`look`, while there is work to do."""
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self.look()

    def look(self) -> None:
        """Raise `ShareFailed` if another share failed in this attempt, `UserError` if one was started differently."""
        self._looked = time.monotonic()
        if self.share.count > 1:
            for name in sorted(_names(self._notes) - self._judged):
                self._judge(name)

    def _judge(self, name: str) -> None:
        """Believe a note, or pass over it: for good, or until it can be judged."""
        index, start, kind = name.split(".")
        if f"{index}.{start}" == self._name:
            return self._judged.add(name)
        try:
            note = storage.read_json(self._notes / name)
        except UserError:  # removed by its share, which has started again
            return None
        doubtful = name in self._before and not self.share.job
        if note["job"] != self.share.job or (doubtful and kind == BEGUN):
            return self._judged.add(name)
        if kind == FAILED and not (doubtful and time.monotonic() - self._began < SECONDS_TO_RESTART):
            raise ShareFailed(f"share {index} ({note['host']}) failed: {note['line']}")
        if kind == BEGUN and self._facts:
            self._compare(index, note)
            self._judged.add(name)

    def _compare(self, index: str, note: dict[str, Any]) -> None:
        theirs, ours = note["facts"], self._facts
        for key in ours | theirs:
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"share {index} ({note['host']}) has {key} {theirs.get(key)!r}, share {self.share.index} "
                    f"({socket.gethostname()}) has {ours.get(key)!r}; start all shares with the same"
                )

    def _write_note(self, kind: str, **content: Any) -> None:
        note = {"job": self.share.job, "host": socket.gethostname(), **content}
        try:
            storage.write_json(self._notes / f"{self._name}.{kind}", note)
        except FileNotFoundError:  # the stage was finished, and share 0 removed the folder, at this very moment
            storage.write_json(self._notes / f"{self._name}.{kind}", note)

    def _remove_notes(self) -> None:
        """What this share wrote, now or in an earlier attempt."""
        for name in _names(self._notes):
            if name.split(".")[0] == str(self.share.index):
                (self._notes / name).unlink(missing_ok=True)

    def _finish(self) -> None:
        """The stage is finished: share 0 removes all; another, started again at that very moment, what it wrote."""
        if self.share.is_first:
            storage.remove_tree(self.folder)
        else:
            self._remove_notes()
            storage.remove_empty(self._notes)
            storage.remove_empty(self.folder)


def _names(folder: Path) -> set[str]:
    """What is in a folder that may not be there, but for what is not whole."""
    try:
        return {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}
    except FileNotFoundError:
        return set()


def _facts(inputs: dict[str, Any]) -> dict[str, Any]:
    """What shares must have in common, by key, to name the one in which they differ; long values by their hash."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        nested = isinstance(value, dict)
        flat |= {f"{name}.{key}": item for key, item in value.items()} if nested else {name: value}
    short = (str, int, float, bool, type(None))
    return {key: item if isinstance(item, short) else storage.hash_json(item)[:16] for key, item in flat.items()}
