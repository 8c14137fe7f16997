"""The program on a machine of a launch: run the verb, restart it where that may help, and report how it ended.

`startup.sh` starts it. It starts the verb when all hosts are ready. What the verb's exit code means:

    0    finished                                                reported
    2    user error                                              reported
    75   another host or the storage is gone, or a host hangs    restarted
    130  stopped and saved: this machine is taken back           reported
         stopped and saved, for another host                     restarted
    else a fault of the verb                                     restarted; reported after three without progress

Five starts in a row without progress are a fault too, whatever ended them: a host that always hangs would be restarted
until its hours are over. Progress is a newer checkpoint, a finished stage or a finished part of one.

A verb of text runs on host 0 alone, and all hosts are nodes of a Ray cluster (`ray_node.py`): they wait for nobody, and
end when host 0 has reported.

A host that has reported does not come back, so the other hosts report as well (75). When the hours of the machine are
over (`max_hours`), the verb is stopped as by a notice, and 75 is reported: another attempt may resume.

Whatever raises an error here is reported as well. After this program, `startup.sh` switches the machine off.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tpullm.launch import ray_node
from tpullm.launch.child_process import Child
from tpullm.launch.job import TEXT, verb_flags
from tpullm.launch.record import OVERTIME, HostExit, Log, Record
from tpullm.system import storage
from tpullm.system.cluster import handshake, place
from tpullm.system.cluster.place import Place
from tpullm.system.errors import TRY_AGAIN, TryAgain, UserError

QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
# CUDA 13 needs this driver (docs.nvidia.com/cuda/cuda-toolkit-release-notes), and the extra `cuda` is `jax[cuda13]`.
LEAST_DRIVER = 580
SECONDS_FOR_GPUS = 120.0  # the first call after a boot may start the driver
MOST_FAULTS = 3
MOST_STARTS = 5  # without progress; more than faults, so that the host that has those reports before the others give up
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_FOR_PEERS = 1800.0  # machines of a slice start within minutes of each other; pip takes some more
SECONDS_AT_THE_END = 15.0  # between two looks at the other hosts' reports
SECONDS_TO_SAVE = 600.0  # before the end of the machine's hours
NOTICES = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}


class Supervisor:
    """Runs the verb on one host of one attempt.

    Args:
        spec: the job's specification (`Job.spec`).
        attempt: number of the attempt.
        place: which host this is.
        log: receives the lines of the verb.

    Attributes:
        stopping: set when this machine is taken back: the verb saves, and is not started again.
        overtime: whether the hours of this machine are over.
    """

    def __init__(self, spec: dict[str, Any], attempt: int, place: Place, log: Log):
        self._spec, self._attempt, self._place, self._log = spec, attempt, place, log
        self._record = Record(spec["folder"])
        self.stopping = threading.Event()
        self._shared: dict[str, str] = {}  # the variable that only the hosts of one start know
        self.overtime = False

    def limit(self, seconds: float) -> None:
        """Stop in time to save before this machine ends.

        Args:
            seconds: until the machine ends.
        """
        timer = threading.Timer(max(seconds - min(SECONDS_TO_SAVE, seconds / 10), 0.0), self.end_of_hours)
        timer.daemon = True
        timer.start()

    def end_of_hours(self) -> None:
        """This machine will end: let the verb save, and do not restart it."""
        self.overtime = True
        self.stopping.set()

    def run(self) -> HostExit:
        """Run the verb until there is something to report."""
        if not self._uses_ray:
            return self._run_until_report()
        ending, secret = threading.Event(), self._ray_secret()
        self._shared = ray_node.variables(secret)
        node = (self._place, os.environ | self._spec["environment"] | self._shared, self._log.line, ending)
        self._shared = self._shared | {"RAY_ADDRESS": self._place.coordinator}
        keeping = threading.Thread(target=ray_node.keep, args=node, daemon=True)
        keeping.start()
        try:
            return self._run_until_report() if self._place.is_first else self._wait_for_driver()
        finally:
            ending.set()
            keeping.join(ray_node.SECONDS_TO_END + 1)

    @property
    def _uses_ray(self) -> bool:
        return self._spec["verb"] in TEXT and self._place.count > 1

    def _ray_secret(self) -> str:
        """The secret of the cluster of this attempt. Host 0 makes it once: a machine that replaces it reads it."""
        while not self.stopping.is_set():
            with contextlib.suppress(FileNotFoundError):
                return self._record.secret(self._attempt, 0)
            if self._place.is_first:
                self._record.share_secret(self._attempt, 0, handshake.make())
            else:
                self.stopping.wait(SECONDS_BETWEEN_LOOKS)
        return ""

    def _wait_for_driver(self) -> HostExit:
        """Wait until host 0 has reported, for which the node of this host works."""
        self._record.ready(self._attempt, 1, self._place.index)
        while not self.stopping.wait(SECONDS_BETWEEN_LOOKS):
            if ended := [each for each in self._record.exits(self._attempt) if each.host == 0]:
                return HostExit(self._place.index, 0, f"host 0 ended: {ended[0].line}")
        return self._exit(130, "this machine is taken back")

    def _run_until_report(self) -> HostExit:
        start, progress = self._record.last_start(self._attempt, self._place.index), self._progress()
        faults = vain = 0
        while True:
            start += 1
            if reason := self._wait_for_peers(start):
                return self._exit(130 if self.stopping.is_set() else TRY_AGAIN, reason)
            code, line = self._run_verb()
            self._log.line(f"host: {self._spec['verb']} ended with {code}")
            now = self._progress()
            faults, vain, progress = (0, 0, now) if now != progress else (faults, vain + 1, now)
            faults += code not in (0, 2, TRY_AGAIN, 130)
            if code in (0, 2) or faults == MOST_FAULTS or self.stopping.is_set():
                return self._exit(code, line)
            if vain == MOST_STARTS:
                return self._exit(1, f"no progress in {vain} starts; the last one: {line}")

    def _exit(self, code: int, line: str) -> HostExit:
        if self.overtime and code not in (0, 2):
            code, line = TRY_AGAIN, f"the hours of this machine are over (max_hours); {line}"
        return HostExit(self._place.index, code, line)

    def _wait_for_peers(self, start: int) -> str:
        """Wait until all hosts are ready for this start. The reason if they never will be, else an empty text."""
        joins = self._spec["verb"] not in TEXT
        if joins and self._place.is_first:
            self._record.share_secret(self._attempt, start, handshake.make())
        self._record.ready(self._attempt, start, self._place.index)
        if not joins:
            return ""
        until = time.monotonic() + SECONDS_FOR_PEERS
        while not self.stopping.is_set():
            if (ready := self._record.ready_hosts(self._attempt, start)) >= self._place.count:
                self._shared = {handshake.VARIABLE: self._record.secret(self._attempt, start)}
                return ""
            if others := [each for each in self._record.exits(self._attempt) if each.host != self._place.index]:
                return f"host {others[0].host} ended: {others[0].line}"
            if time.monotonic() > until:
                return f"{ready} of {self._place.count} hosts are ready after {SECONDS_FOR_PEERS / 60:.0f} minutes"
            self.stopping.wait(SECONDS_BETWEEN_LOOKS)
        return "this machine is taken back"

    def _run_verb(self) -> tuple[int, str]:
        """Run the verb once; its exit code and last line."""
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(self._spec["recipe"], encoding="utf-8")
            verb = self._spec["verb"]
            command = [sys.executable, "-m", "tpullm", verb, "--config", str(recipe), *verb_flags(verb, self._place)]
            child = Child(command, os.environ | self._spec["environment"] | self._shared, self._log.line)
            try:
                while (code := child.poll()) is None and not self.stopping.wait(0.2):
                    pass
                child.send(signal.SIGTERM)  # if it still runs
                while code is None:
                    time.sleep(0.2)
                    code = child.poll()
            finally:
                child.kill()  # the verb after an error here, and processes that it may have left
            return code, re.sub(r"^(\[\w+ \d+\] )?tpullm: ", "", child.last_line)

    def _progress(self) -> set[str]:
        """The checkpoints, finished stages and finished parts of stages. A verb that adds to them makes progress."""
        run, found, stages = storage.path(self._spec["run"]), set(), []
        with contextlib.suppress(FileNotFoundError):
            stages = [path for path in run.iterdir() if not path.name.startswith(".") and path.name != "replaced"]
        for stage in stages:
            for folder in (stage, stage / "checkpoints"):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    found |= {str(path) for path in folder.iterdir() if path.name.isdigit() or path.suffix == ".json"}
        for folder in (".collect", ".tokenize", "documents/parts"):
            with contextlib.suppress(FileNotFoundError):  # a part was renamed meanwhile
                found |= {name for name in storage.sizes(run / folder) if ".partial" not in name}
        return found


def find_host() -> Place:
    """Which host of a launch this machine is, by the TPU's metadata or the Batch job's hosts file."""
    return place.find({}, os.environ)


def watch_notices(supervisor: Supervisor) -> None:
    """In a thread: stop the supervisor when Google announces that it takes this machine back."""
    while True:
        with contextlib.suppress(OSError):  # the next turn asks again
            if any(place.metadata(f"instance/{key}") in values for key, values in NOTICES.items()):
                return supervisor.stopping.set()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def main() -> int:
    """Run this machine's part of an attempt and report how it ended; the exit code is the verb's.

    The exit code is 124 when the machine's hours are over: Batch, which starts a task again after 75, leaves it then.
    """
    parser = argparse.ArgumentParser(prog="python -m tpullm.launch.supervisor")
    parser.add_argument("--job", required=True, help="the job's specification, on gs://")
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--seconds", required=True, type=float, help="until the machine ends")
    parser.add_argument("--reported", default="", help="a file to make when there is nothing left to report")
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    record = Record(given.job.rpartition("/jobs/")[0])
    place, overtime = None, False
    try:
        spec = storage.read_json(storage.path(given.job))
        if storage.hash_json(spec)[:12] != Path(given.job).stem:  # its name is the hash of its content
            why = "is not what was launched (its hash differs); remove it and launch again"
            raise UserError(f"{given.job}: {why}")
        if spec.get("gpus"):
            check_gpus(**spec["gpus"])
        place = find_host()
        host_exit, overtime = _supervise_verb(spec, given.attempt, place, record, until)
    except Exception as error:
        traceback.print_exc()
        code, words = error.code if isinstance(error, UserError) else 1, str(error)
        words = words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"
        line = f"supervisor on {socket.gethostname()}: {' '.join(words.split())}"
        host_exit = HostExit(place.index if place else _machine_number(), code, line)
    _report_exit(record, given.attempt, host_exit, "" if place else f"setup-{socket.gethostname()}", overtime)
    if given.reported:
        Path(given.reported).touch()
    # While other hosts still work, stay: a machine that is switched off before them looks as if it was taken back.
    # Batch sees to its tasks itself. After a failure the other hosts end too, whatever this one does.
    stays = place and "BATCH_TASK_INDEX" not in os.environ and host_exit.code in (0, 130)
    while stays and time.monotonic() < until:
        with contextlib.suppress(TryAgain):  # the next look may have an answer
            exits = record.exits(given.attempt)
            if len(exits) >= place.count or any(each.code not in (0, 130) for each in exits):
                break
        time.sleep(SECONDS_AT_THE_END)
    return OVERTIME if overtime else host_exit.code


def check_gpus(machine: str, name: str, count: int) -> None:
    """Compare the GPUs of this machine with those of its type, by NVIDIA's own tool.

    Args:
        machine: type of the machine.
        name: nvidia-smi's name of each GPU, such as `NVIDIA H200`.
        count: number of GPUs.

    Raises:
        UserError: there is no driver, an old one, or other GPUs; one line says what is there.
    """
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=SECONDS_FOR_GPUS)
    except FileNotFoundError:
        raise UserError("image: it has no nvidia-smi, so no NVIDIA driver; use an image with one") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"machine: nvidia-smi has not answered for {SECONDS_FOR_GPUS:.0f} s; launch again") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"machine: nvidia-smi finds no GPU ({said[:200]}); launch again, or use another image")
    found = [line.split(", ") for line in done.stdout.splitlines()]
    names = Counter(gpu for gpu, _ in found)
    if names != {name: count}:
        there = ", ".join(f"{times} x {each}" for each, times in names.items()) or "none"
        raise UserError(f"machine: {machine} has {count} x {name}, and nvidia-smi finds {there}; launch again")
    for _, driver in found:
        if int(driver.split(".")[0]) < LEAST_DRIVER:
            why = f"is older than {LEAST_DRIVER}, which CUDA 13 needs"
            raise UserError(f"image: its NVIDIA driver {driver} {why}; use a newer image")


def _machine_number() -> int:
    """The number of this machine in its slice or job, as far as it is known before its place is found."""
    with contextlib.suppress(OSError, ValueError):
        return int(os.environ.get("BATCH_TASK_INDEX") or place.attribute("agent-worker-number") or 0)
    return 0


def _supervise_verb(
    spec: dict[str, Any], attempt: int, place: Place, record: Record, until: float
) -> tuple[HostExit, bool]:
    """Run the verb; how it ended, and whether that was because the machine's hours are over."""
    if reported := [each for each in record.exits(attempt) if each.host == place.index]:
        return reported[0], False  # the machine was rebooted after its report
    log = Log(record.attempt_folder(attempt) / "logs", place.index)
    log.line(f"host: {place}")
    supervisor = Supervisor(spec, attempt, place, log)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stopping.set())
    threading.Thread(target=watch_notices, args=(supervisor,), daemon=True).start()
    supervisor.limit(until - time.monotonic())
    try:
        ended = supervisor.run()
        return ended, supervisor.overtime and ended.code == TRY_AGAIN
    finally:
        log.close()


def _report_exit(record: Record, attempt: int, host_exit: HostExit, machine: str = "", overtime: bool = False) -> None:
    """Report how the verb ended, however long the storage takes: nothing else says so.

    A task that Google Batch restarts after this exit code has not ended.
    """
    if "BATCH_TASK_INDEX" in os.environ and host_exit.code in (TRY_AGAIN, 130) and not overtime:
        return
    while True:
        try:
            return record.add_exit(attempt, host_exit, machine)
        except TryAgain:
            time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main())
