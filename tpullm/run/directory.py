"""A run directory: whose recipe it belongs to, and one verb working in it at a time.

One process at a time works in a run directory: `flock` on local disks, a lease on `gs://`.

A lease is the object `RUN/.lock`. It is written with a precondition on its generation, so only one of several processes
succeeds. Its owner renews it every 15 s; after a minute without renewal any process may take it. Ages are by the
server's clock.
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
from typing import Any

from tpullm.recipe.parsing import dump, load, recipe_of
from tpullm.recipe.schema import Recipe
from tpullm.system import log, storage
from tpullm.system.errors import TRY_AGAIN, TryAgain, UserError

FILE = ".lock"
SECONDS_BETWEEN_RENEWALS = 15.0
SECONDS_OF_A_LEASE = 60.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_OF_ROUNDING = 5.0  # the server rounds to whole seconds


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Be the only process that works in `run`.

    Raises:
        UserError: another process works in it.
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
            raise _run_in_use(run) from None
        yield


def _run_in_use(run: Path) -> UserError:
    return UserError(f"{run}: another tpullm works in it; wait for it, or choose another --run")


class Lease:
    """The object that names the process that works in a run directory.

    Args:
        path: of the object.
    """

    def __init__(self, path: Path):
        self._path = path
        self._owner = {"host": socket.gethostname(), "process": _boot_and_namespace()}
        self._owner |= {"pid": os.getpid(), "id": uuid.uuid4().hex}
        self._generation, self._ended = None, threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="lease")

    def take(self) -> None:
        """Take the lease; wait while another owner may be gone, and `UserError` if that owner renews its lease."""
        storage.remote().check_bucket(self._path)
        began, told = time.monotonic(), False
        while True:
            generation, owner, age = storage.remote().read_with_age(self._path)
            here = all(owner.get(key) == self._owner[key] for key in ("host", "process"))
            ended = here and not Path(f"/proc/{owner['pid']}").exists()  # of other machines nobody knows
            if not generation or age > SECONDS_OF_A_LEASE or ended:
                self._generation = self._write(generation)
                if self._generation:
                    return self._renewing.start()
            elif time.monotonic() - began > SECONDS_OF_A_LEASE + SECONDS_OF_ROUNDING:
                raise _run_in_use(self._path.parent)
            if not told:
                told, who = True, f"{owner.get('host', '?')}, process {owner.get('pid', '?')}"
                log.warn(f"{self._path.parent}: in use by {who}; waiting {SECONDS_OF_A_LEASE:.0f} s for it to end")
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _write(self, before: int) -> int | None:
        """Write the lease if it still has generation `before`; the new generation, None if another process has it."""
        generation = storage.remote().write_if(self._path, self._owner | {"time": time.time()}, before)
        if generation is None:  # perhaps by an earlier request of this process whose answer was lost
            now, owner, _ = storage.remote().read_with_age(self._path)
            return now if owner.get("id") == self._owner["id"] else None
        return generation

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_RENEWALS):
            try:
                self._generation = self._write(self._generation)
            except UserError:  # an outage; the next try finds out whether another process took the lease
                continue
            if self._generation is None:
                # This process must not overwrite what the new owner writes.
                log.last_words(f"{self._path.parent}: another tpullm works in it now; this one did not renew its lease")
                os._exit(TRY_AGAIN)

    def give_back(self) -> None:
        """Remove the lease, so that the next process need not wait."""
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(UserError):  # in an outage the lease stays and expires
            storage.remote().remove_if(self._path, self._generation)


def _boot_and_namespace() -> str:
    """The boot of this machine and its PID namespace: within both, a PID names one process."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex


RECIPE = "recipe.yaml"


def open_run(parser, argv: list[str]) -> tuple[Recipe, Path, Any]:
    """The recipe, the run directory, and the parsed command line; raises like `recipe_of` and `check_owner`."""
    recipe, arguments = recipe_of(parser, argv)
    run = storage.path(recipe.run)
    check_owner(run, recipe)
    return recipe, run, arguments


def check_owner(run: Path, recipe: Recipe) -> None:
    """`UserError` if the run directory belongs to another recipe."""
    kept = run / RECIPE
    owner = load(kept).name if kept.exists() else recipe.name
    if owner != recipe.name:
        raise UserError(f"{run}: was made by the recipe '{owner}', not '{recipe.name}'; choose another --run")


@contextlib.contextmanager
def owned(run: Path, recipe: Recipe) -> Iterator[None]:
    """Keep the recipe in the run directory while a verb works there, alone; a refused verb leaves both as they were.

    A verb that made a stage before it was refused keeps the recipe of that stage, if there was none before.

    Raises:
        UserError: another process works in the run directory.
    """
    existed, kept = run.exists(), run / RECIPE
    run.mkdir(parents=True, exist_ok=True)
    with alone(run):
        before, there = kept.read_text(encoding="utf-8") if kept.exists() else None, _visible_in_run(run)
        if before != dump(recipe):
            storage.write_text(kept, dump(recipe))
        try:
            yield
        except TryAgain:
            raise
        except UserError:
            if before is not None:
                storage.write_text(kept, before)
            elif _visible_in_run(run) <= there:
                kept.unlink(missing_ok=True)
            if not existed and [path.name for path in run.iterdir()] == [FILE]:
                storage.remove_tree(run)
            raise


def _visible_in_run(run: Path) -> set[str]:
    """What is in a run directory, but for its recipe and unfinished parts (hidden); on `gs://` it may not be there."""
    try:
        return {path.name for path in run.iterdir() if not path.name.startswith(".")} - {RECIPE}
    except FileNotFoundError:
        return set()
