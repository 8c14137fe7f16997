"""On a machine of a launch: run the verb, again where that may help, and report. `startup.sh` hands over to it.

The verb is started when all hosts are ready. What its exit code means:

    0    finished                                            reported
    2    a mistake of the user's                             reported
    75   another host is gone, or the storage was            again
    130  stopped and saved: this machine is taken back       reported
         stopped and saved, for another host                 again
    else a fault of its own                                  again; reported after three without progress between

A host that has reported is not coming back, so the others report as well (75).
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.cluster import metadata
from tpullm.cluster.place import Place
from tpullm.errors import TRY_AGAIN, TryAgain
from tpullm.launchers import places
from tpullm.launchers.child import Child
from tpullm.launchers.job import JOINING
from tpullm.launchers.record import Ended, State
from tpullm.launchers.upload import Log

MOST_FAULTS = 3
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_FOR_PEERS = 1800.0  # machines of a slice start within minutes of each other; pip takes some more
NOTICES = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}


class Host:
    """One host of one attempt.

    Args:
        sheet: the job's, as `Job.sheet` made it.
        attempt: its number.
        place: which host this is.
        log: where its lines go.
    """

    def __init__(self, sheet: dict[str, Any], attempt: int, place: Place, log: Log):
        self._sheet, self._attempt, self._place, self._log = sheet, attempt, place, log
        self._state = State(sheet["folder"])
        self._stopping = threading.Event()
        self._child: Child | None = None

    def stop(self) -> None:
        """This machine is taken back: have the verb save, and start nothing more."""
        self._stopping.set()
        if self._child:
            self._child.send(signal.SIGTERM)

    def run(self) -> Ended:
        """Run the verb until there is something to report."""
        faults, start, progress = 0, self._state.starts_of(self._attempt, self._place.index), self._progress()
        while True:
            start += 1
            if why := self._wait_for_peers(start):
                return self._ended(130 if self._stopping.is_set() else TRY_AGAIN, why)
            code, line = self._verb()
            self._log.line(f"host: {self._sheet['verb']} ended with {code}")
            now = self._progress()
            faults, progress = (0 if now != progress else faults), now
            again = code == TRY_AGAIN or code == 130
            faults += not again and code not in (0, 2)
            if code in (0, 2) or faults == MOST_FAULTS or self._stopping.is_set():
                return self._ended(code, line)

    def _ended(self, code: int, line: str) -> Ended:
        return Ended(self._place.index, code, line)

    def _wait_for_peers(self, start: int) -> str:
        """Until all hosts are ready for this start; why that will not be, or nothing."""
        self._state.ready(self._attempt, start, self._place.index)
        if self._sheet["verb"] not in JOINING:  # such tasks wait for each other's results, by themselves
            return ""
        until = time.monotonic() + SECONDS_FOR_PEERS
        while not self._stopping.is_set():
            if (there := self._state.ready_hosts(self._attempt, start)) >= self._place.count:
                return ""
            if others := [ended for ended in self._state.ended(self._attempt) if ended.host != self._place.index]:
                return f"host {others[0].host} ended: {others[0].line}"
            if time.monotonic() > until:
                return f"{there} of {self._place.count} hosts are ready after {SECONDS_FOR_PEERS / 60:.0f} minutes"
            self._stopping.wait(SECONDS_BETWEEN_LOOKS)
        return "this machine is taken back"

    def _verb(self) -> tuple[int, str]:
        """Run the verb once; its exit code and last line."""
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(self._sheet["recipe"], encoding="utf-8")
            command = [sys.executable, "-m", "tpullm", self._sheet["verb"], "--config", str(recipe), *self._flags()]
            self._child = Child(command, os.environ | self._sheet["environment"], self._log.line)
            if self._stopping.is_set():
                self._child.send(signal.SIGTERM)
            while (code := self._child.poll()) is None:
                time.sleep(0.2)
            self._child.kill()  # what it may have left
            return code, re.sub(r"^(\[\w+ \d+\] )?tpullm: ", "", self._child.last_line)

    def _flags(self) -> list[str]:
        """The place of a verb that joins others, said outright; one that shares the work finds its share by itself."""
        place = self._place
        if self._sheet["verb"] not in JOINING:
            return []
        flags = [f"--hosts.index={place.index}", f"--hosts.count={place.count}"]
        return flags + ([f"--hosts.coordinator={place.coordinator}"] if place.count > 1 else [])

    def _progress(self) -> set[str]:
        """What there is of saves and finished stages: a verb that adds to it is not failing in one place."""
        run, found = storage.path(self._sheet["run"]), set()
        for stage in ("documents", "tokenizer", "tokens", "pretrain", "finetune", "evaluate"):
            for folder in (run / stage, run / stage / "checkpoints"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found |= {str(path) for path in folder.iterdir() if path.name.isdigit() or path.suffix == ".json"}
        return found


def watch_notices(host: Host) -> None:
    """In a thread: stop the host when this machine's end is announced."""
    while True:
        with contextlib.suppress(OSError):  # asked again
            if any(metadata.get(f"instance/{key}") in values for key, values in NOTICES.items()):
                return host.stop()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def main() -> int:
    """Run an attempt's part on this machine, report it, and end with the code of the verb."""
    parser = argparse.ArgumentParser(prog="python -m tpullm.launchers.supervisor")
    parser.add_argument("--job", required=True, help="the job's sheet, on gs://")
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--place", default="", help="what the machine was told about its place, as JSON")
    given = parser.parse_args()
    sheet = json.loads(storage.path(given.job).read_bytes())
    place = places.find(given.place, sheet["verb"], os.environ)
    state = State(sheet["folder"])
    if before := [ended for ended in state.ended(given.attempt) if ended.host == place.index]:
        return before[0].code  # the machine was started again
    log = Log(state.of(given.attempt) / "logs", place.index)
    log.line(f"host: {place}")
    host = Host(sheet, given.attempt, place, log)
    signal.signal(signal.SIGTERM, lambda *_: host.stop())
    threading.Thread(target=watch_notices, args=(host,), daemon=True).start()
    ended = host.run()
    log.close()
    _report(state, given.attempt, ended)
    return ended.code


def _report(state: State, attempt: int, ended: Ended) -> None:
    """Say how it ended, however long the storage takes: without that nobody would know.

    A task of Google Batch that ends so that it is started again has not ended.
    """
    if "BATCH_TASK_INDEX" in os.environ and ended.code in (TRY_AGAIN, 130):
        return
    while True:
        try:
            return state.end(attempt, ended)
        except TryAgain:
            time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main())
