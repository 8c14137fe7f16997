"""The program on a machine of a launch: run the verb, restart it where that may help, and report how it ended.

`startup.sh` starts it. It starts the verb when all hosts are ready. What the verb's exit code means:

    0    finished                                            reported
    2    user error                                          reported
    75   another host or the storage is gone                 restarted
    130  stopped and saved: this machine is taken back       reported
         stopped and saved, for another host                 restarted
    else a fault of the verb                                 restarted; reported after three without progress

A host that has reported does not come back, so the other hosts report as well (75).
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
from tpullm.cluster import metadata, place, secret
from tpullm.cluster.place import PORTS, Place
from tpullm.errors import TRY_AGAIN, TryAgain, UserError
from tpullm.launchers.child_process import Child
from tpullm.launchers.job import JOINING
from tpullm.launchers.record import HostExit, Record
from tpullm.launchers.upload import Log

MOST_FAULTS = 3
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_FOR_PEERS = 1800.0  # machines of a slice start within minutes of each other; pip takes some more
NOTICES = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}


class Supervisor:
    """Runs the verb on one host of one attempt.

    Args:
        spec: the job's specification (`Job.spec`).
        attempt: number of the attempt.
        place: which host this is.
        log: receives the lines of the verb.
    """

    def __init__(self, spec: dict[str, Any], attempt: int, place: Place, log: Log):
        self._spec, self._attempt, self._place, self._log = spec, attempt, place, log
        self._record = Record(spec["folder"])
        self._stopping = threading.Event()
        self._child: Child | None = None
        self._shared: dict[str, str] = {}  # the variable that only the hosts of one start know

    def stop(self) -> None:
        """This machine is taken back: let the verb save, and do not restart it."""
        self._stopping.set()
        if self._child:
            self._child.send(signal.SIGTERM)

    def run(self) -> HostExit:
        """Run the verb until there is something to report."""
        faults, start, progress = 0, self._record.last_start(self._attempt, self._place.index), self._progress()
        while True:
            start += 1
            if reason := self._wait_for_peers(start):
                return self._exit(130 if self._stopping.is_set() else TRY_AGAIN, reason)
            code, line = self._run_verb()
            self._log.line(f"host: {self._spec['verb']} ended with {code}")
            now = self._progress()
            faults, progress = (0 if now != progress else faults), now
            faults += code not in (0, 2, TRY_AGAIN, 130)
            if code in (0, 2) or faults == MOST_FAULTS or self._stopping.is_set():
                return self._exit(code, line)

    def _exit(self, code: int, line: str) -> HostExit:
        return HostExit(self._place.index, code, line)

    def _wait_for_peers(self, start: int) -> str:
        """Wait until all hosts are ready for this start. The reason if they never will be, else an empty text."""
        joins = self._spec["verb"] in JOINING
        if joins and self._place.is_first:
            self._record.share_secret(self._attempt, start, secret.make())
        self._record.ready(self._attempt, start, self._place.index)
        if not joins:  # the tasks of such a verb wait for each other's results by themselves
            return ""
        until = time.monotonic() + SECONDS_FOR_PEERS
        while not self._stopping.is_set():
            if (ready := self._record.ready_hosts(self._attempt, start)) >= self._place.count:
                self._shared = {secret.VARIABLE: self._record.secret(self._attempt, start)}
                return ""
            if others := [each for each in self._record.exits(self._attempt) if each.host != self._place.index]:
                return f"host {others[0].host} ended: {others[0].line}"
            if time.monotonic() > until:
                return f"{ready} of {self._place.count} hosts are ready after {SECONDS_FOR_PEERS / 60:.0f} minutes"
            self._stopping.wait(SECONDS_BETWEEN_LOOKS)
        return "this machine is taken back"

    def _run_verb(self) -> tuple[int, str]:
        """Run the verb once; its exit code and last line."""
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(self._spec["recipe"], encoding="utf-8")
            command = [sys.executable, "-m", "tpullm", self._spec["verb"], "--config", str(recipe), *self._flags()]
            self._child = Child(command, os.environ | self._spec["environment"] | self._shared, self._log.line)
            if self._stopping.is_set():  # the notice came before there was a child
                self._child.send(signal.SIGTERM)
            while (code := self._child.poll()) is None:
                time.sleep(0.2)
            self._child.kill()  # processes that the verb may have left
            return code, re.sub(r"^(\[\w+ \d+\] )?tpullm: ", "", self._child.last_line)

    def _flags(self) -> list[str]:
        """The flags `--hosts.*` of a verb whose hosts join; a verb that shares its work finds its share by itself."""
        place = self._place
        if self._spec["verb"] not in JOINING:
            return []
        flags = [f"--hosts.index={place.index}", f"--hosts.count={place.count}"]
        return flags + ([f"--hosts.coordinator={place.coordinator}"] if place.count > 1 else [])

    def _progress(self) -> set[str]:
        """The checkpoints and finished stages. A verb that adds to them makes progress between its faults."""
        run, found = storage.path(self._spec["run"]), set()
        for stage in ("documents", "tokenizer", "tokens", "pretrain", "finetune", "evaluate"):
            for folder in (run / stage, run / stage / "checkpoints"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found |= {str(path) for path in folder.iterdir() if path.name.isdigit() or path.suffix == ".json"}
        return found


def find_host(told: str, verb: str) -> Place:
    """Which host of a launch this machine is.

    A machine of a Compute Engine group finds it in its name. Other machines find it as the verb itself would: a share
    by the index of its task, a host that joins others by the TPU's metadata or the Batch job's hosts file.

    Args:
        told: what the machine was told when it started, as JSON: `hosts`, and `first`, the name of host 0; or nothing.
        verb: that the machine runs.

    Raises:
        UserError: the place is not found, or there are not as many hosts as were launched.
    """
    known = json.loads(told or "{}")
    if known.get("first"):
        return _by_name(known["first"], int(known["hosts"]))
    if verb not in JOINING:
        return place.find("share", {}, os.environ)
    found = place.find("hosts", {}, os.environ)
    if known and found.count != int(known["hosts"]):
        raise UserError(f"hosts: {found.count} by {found.source}, and {known['hosts']} were launched")
    return found


def _by_name(first: str, count: int) -> Place:
    """The names of the machines differ only in the index at the end; all machines are in one domain."""
    name, address = metadata.get("instance/name"), metadata.get("instance/hostname")
    index = int(name.rpartition("-")[2])
    coordinator = f"{address.replace(name, first, 1)}:{PORTS[0]}"
    return Place(index, count, "the machine's name", coordinator if count > 1 else "")


def watch_notices(supervisor: Supervisor) -> None:
    """In a thread: stop the supervisor when Google announces that it takes this machine back."""
    while True:
        with contextlib.suppress(OSError):  # the next turn asks again
            if any(metadata.get(f"instance/{key}") in values for key, values in NOTICES.items()):
                return supervisor.stop()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def main() -> int:
    """Run this machine's part of an attempt and report how it ended; the exit code is the verb's."""
    parser = argparse.ArgumentParser(prog="python -m tpullm.launchers.supervisor")
    parser.add_argument("--job", required=True, help="the job's specification, on gs://")
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--place", default="", help="what the machine was told about its place, as JSON")
    given = parser.parse_args()
    spec = storage.read_json(storage.path(given.job))
    place = find_host(given.place, spec["verb"])
    record = Record(spec["folder"])
    if reported := [each for each in record.exits(given.attempt) if each.host == place.index]:
        return reported[0].code  # the machine was rebooted after its report
    log = Log(record.attempt_folder(given.attempt) / "logs", place.index)
    log.line(f"host: {place}")
    supervisor = Supervisor(spec, given.attempt, place, log)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    threading.Thread(target=watch_notices, args=(supervisor,), daemon=True).start()
    host_exit = supervisor.run()
    log.close()
    _report(record, given.attempt, host_exit)
    return host_exit.code


def _report(record: Record, attempt: int, host_exit: HostExit) -> None:
    """Report how the verb ended, however long the storage takes: nothing else says so.

    A task that Google Batch restarts after this exit code has not ended.
    """
    if "BATCH_TASK_INDEX" in os.environ and host_exit.code in (TRY_AGAIN, 130):
        return
    while True:
        try:
            return record.add_exit(attempt, host_exit)
        except TryAgain:
            time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main())
