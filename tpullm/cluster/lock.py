"""One process at a time works in a run directory: a lock of the system here, a lease on `gs://`.

A lease is the object `RUN/.lock`, made and renewed with a precondition on its generation, so that of several processes
one alone succeeds. It is renewed while its owner lives; one that was not renewed for a minute belongs to whoever takes
it. Ages are told by the server's clock alone.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tpullm import log, storage
from tpullm.errors import TRY_AGAIN, UserError

FILE = ".lock"
SECONDS_BETWEEN_RENEWALS = 15.0
SECONDS_OF_A_LEASE = 60.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_OF_ROUNDING = 5.0  # the server tells whole seconds


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Be the only process that works in `run`.

    Raises:
        UserError: another one does.
    """
    if storage.is_remote(run):
        lease = Lease(run / FILE)
        lease.take()
        try:
            yield
        finally:
            lease.give_back()
        return
    with open(run / FILE, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(run) from None
        yield


def _refusal(run: Path) -> UserError:
    return UserError(f"{run}: another tpullm works in it; wait for it, or choose another --run")


class Lease:
    """The object that says who works in a run directory.

    Args:
        path: of the object.
    """

    def __init__(self, path: Path):
        self._path = path
        self._said = {"host": socket.gethostname(), "pid": os.getpid(), "process": _process(), "id": uuid.uuid4().hex}
        self._generation: int | None = None
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="lease")

    def take(self) -> None:
        """Wait for an owner that is gone, or is about to go; `UserError` if it is neither."""
        storage.remote().check_bucket(self._path)
        began, told = time.monotonic(), False
        while True:
            generation, said, age = storage.remote().read_with_age(self._path)
            if not generation or age > SECONDS_OF_A_LEASE or _is_dead(said):
                self._generation = self._write(generation)
                if self._generation:
                    return self._renewing.start()
            elif time.monotonic() - began > SECONDS_OF_A_LEASE + SECONDS_OF_ROUNDING:
                raise _refusal(self._path.parent)
            if not told:
                owner = f"{said.get('host', '?')}, process {said.get('pid', '?')}"
                log.warn(f"{self._path.parent}: belongs to {owner}; waiting {SECONDS_OF_A_LEASE:.0f} s for it to end")
                told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _write(self, before: int) -> int | None:
        """Write the lease in place of that generation; the new one, None if it is another's now."""
        made = storage.remote().write_if(self._path, self._said | {"time": time.time()}, before)
        if made is None:
            now, said, _ = storage.remote().read_with_age(self._path)
            return now if said.get("id") == self._said["id"] else None  # an earlier try came through unheard
        return made

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_RENEWALS):
            try:
                self._generation = self._write(self._generation)
            except UserError:  # an outage; if someone else took it meanwhile, the next try says so
                continue
            if self._generation is None:
                # What goes on here would be written over what the new owner writes.
                log.last_words(f"{self._path.parent}: another tpullm works in it now, for this one was away too long")
                os._exit(TRY_AGAIN)

    def give_back(self) -> None:
        """Let the next one in at once."""
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(UserError):  # in an outage it stays, and ages
            storage.remote().remove_if(self._path, self._generation)


def _process() -> str:
    """What a process of this machine is told from others by: since when the machine is up, which processes it sees."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex


def _is_dead(said: dict) -> bool:
    """Whether the owner was a process of this very machine and is no more; of others nothing is known."""
    return (said.get("host"), said.get("process")) == (socket.gethostname(), _process()) and not Path(
        f"/proc/{said['pid']}"
    ).exists()
