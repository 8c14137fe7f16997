"""Saves on the local disk of each host, between those in the run directory: one a minute costs what its writing costs.

Each host writes the shards of its own devices, so nothing goes over a network. All hosts resume from the same save: the
newest of which every shard is whole on some host's disk, if it is newer than the last checkpoint in the run directory.
A host reads what its own disk has. What it lacks (the machine was replaced, the file is corrupt) it gets from a host
that has the same shard: `data` over the hosts, or over slices, holds every shard at least twice.

With `fsdp` over all hosts each shard is on one of them alone. With `checkpoint.local_copies` each host also writes such
shards of the host half of all hosts away. Copies are not the default. The training waits while they move (384 MiB a
host in 2.6 s, over loopback on two busy cores), twice the memory and the disk are used, and where all machines are
replaced together (a TPU slice) the copies are gone too.

Orbax's emergency checkpoints need several slices that hold the same parameters (`data` over slices), or a service on
every machine. A training on one host, or with `fsdp` over all, has neither.

    LOCAL/STAGE-ID/{host-N, host-N-copies}/STEP/{shards.safetensors, description.json, checksums.json}

A disk offers all that is on it: the machine may have been another host before. Shards of one step are used together if
one start of the training made them: another one may have rounded otherwise, on another mesh, say.
"""

import contextlib
import functools
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tpullm.formats import checkpoints, peers
from tpullm.formats.checkpoints import CorruptSave
from tpullm.formats.peers import Tree
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError, correctable
from tpullm.system.log import say, warn

REQUEST = "local"  # of all hosts, to save after the same step
KEPT = 2  # whole ones, while another is written: see `_prune`
ID = "local_saves.json"  # in the stage: names its local saves, so that no other training takes them
SHARDS, DESCRIPTION = "shards.safetensors", "description.json"


@dataclass(frozen=True)
class Restorable:
    """A save of which every host can get its shards.

    Args:
        step: that it was made after.
        sources: where each host finds each of its shards: on which host's disk, in which folder of `LOCAL/STAGE-ID`.
    """

    step: int
    sources: peers.Sources


class LocalSaves:
    """The local saves of one training; without `checkpoint.local` there are none, and nothing here does anything.

    Args:
        stage: the stage's folder.
        config: where to save, and when.
        description: of the checkpoints of this training. A save is taken up if its inputs, horizons and
            left-out batches are the same.
    """

    def __init__(self, stage: Path, config: CheckpointConfig, description: dict):
        self._config, self._last, self._thread = config, time.monotonic(), None
        self._about = json.loads(json.dumps({key: description.get(key) for key in ("inputs", "horizons", "left_out")}))
        self._folder = None
        if config.local:
            name, self._start = hosts.broadcast("the local saves", lambda: [_name(stage), uuid.uuid4().hex[:12]])
            self._folder = storage.path(config.local) / name
            self._own, self._copies = (self._folder / f"host-{hosts.index()}{kind}" for kind in ("", "-copies"))
            storage.check_writable(self._own)
            for folder in (self._own, self._copies):
                storage.remove_partials(folder)
            for other in self._folder.parent.glob(f"{name.rpartition('-')[0]}-*"):
                if other.name != name:  # of a training that was made again
                    shutil.rmtree(other, ignore_errors=True)

    def asks(self) -> list[str]:
        """The request to save after this step, if the time has come; by the clock of host 0."""
        minutes = (time.monotonic() - self._last) / 60
        every = self._config.local_every_minutes
        return [REQUEST] * bool(self._folder and every and minutes >= every and hosts.is_first())

    def due(self, step: int, granted: set[str]) -> bool:
        """Whether all hosts save after this step."""
        every = self._config.local_every_steps
        return bool(self._folder) and (REQUEST in granted or bool(every and step % every == 0))

    def save(self, step: int, state: Tree) -> None:
        """Copy this host's shards, and write them in the background. A failure is a warning: the training goes on."""
        self.wait()
        self._last = time.monotonic()
        own = peers.own(state)
        for shard in own.values():
            shard.copy_to_host_async()
        # Nothing is copied on a CPU: JAX donates no buffer that numpy still sees, so the next step takes another one.
        saved = {self._own: {name: peers.bits(shard) for name, shard in own.items()}}
        if self._config.local_copies and (copies := peers.copies(state)):
            saved[self._copies] = copies
        self._thread = threading.Thread(target=self._write, args=(step, saved), name="local_save")
        self._thread.start()

    def forget(self, after: int) -> None:
        """Remove the saves of steps that will be repeated otherwise."""
        self.wait()
        self._remove(lambda step: step > after)

    def wait(self) -> None:
        """Until the last save is written."""
        if self._thread:
            self._thread.join()

    def _write(self, step: int, saved: dict[Path, dict[str, np.ndarray]]) -> None:
        try:
            self._prune()
            for folder, arrays in saved.items():
                with storage.atomic_directory(folder / str(step)) as temporary:
                    save_file(arrays, temporary / SHARDS)
                    storage.write_json(temporary / DESCRIPTION, self._about | {"start": self._start})
                    checkpoints.write(temporary)
        except Exception as error:
            warn(f"{self._own}: not saved at step {step:,} ({correctable(error) or error}); the training goes on")

    def _prune(self) -> None:
        """Remove saves that no host needs any more, also what the machine saved when it was another host.

        All hosts have computed the step that is saved now. So all have begun the save before it, and written the one
        before that, and may have no newer one when they are killed.
        """
        kept = sorted(int(save.name) for save in self._saves() if save.parent == self._own)[-KEPT:]
        if len(kept) == KEPT:
            self._remove(lambda step: step < kept[0])

    def _saves(self) -> list[Path]:
        """The saves on this host's disk, its own first."""
        found = [save for save in self._folder.glob("*/*") if save.name.isdigit()]
        return sorted(found, key=lambda save: (save.parent != self._own, save.parent))

    def _remove(self, unwanted: Callable[[int], bool]) -> None:
        for save in self._saves() if self._folder else ():
            if unwanted(int(save.name)):
                shutil.rmtree(save, ignore_errors=True)

    def newest(self, target: Tree, after: int) -> Restorable | None:
        """The newest save of a step later than `after` that the hosts have whole together; None if there is none."""
        if not self._folder:
            return None
        own = {(int(save.name), self._start_of(save)) for save in self._saves()}
        told = hosts.gather("local saves", sorted((step, start) for step, start in own if step > after and start))
        found = sorted({(step, start) for own in told for step, start in own}, reverse=True)
        needed = peers.needed(target)
        for step, start in found:
            if sources := self._sources(step, start, needed):
                return Restorable(step, sources)
        if found:
            tried = ", ".join(f"{step:,}" for step, _ in found)
            alone = hosts.count() > 1 and not self._config.local_copies
            hint = "; checkpoint.local_copies has another host keep a copy" if alone else ""
            say(f"{self._folder}: of no save (steps {tried}) all shards are whole on some disk, so none is used{hint}")
        return None

    def _sources(self, step: int, start: str, needed: dict[int, list[str]]) -> peers.Sources | None:
        """Where each host finds its shards of a step, in saves that are whole; None if they are not all there."""
        here, names = jax.process_index(), list(dict.fromkeys(name for own in needed.values() for name in own))
        numbers = {name: number for number, name in enumerate(names)}  # short, for messages
        own = [save for save in self._saves() if save.name == str(step) and self._start_of(save) == start]
        has = [[save.parent.name, [numbers[name] for name in _names(save) if name in numbers]] for save in own]
        told = hosts.gather(f"shards of save {step}", [here, has])
        saves = {host: {save: [names[number] for number in has] for save, has in found} for host, found in told}
        sources, lacking = peers.choose(needed, saves)
        while not lacking:
            used = {save for host, save in sources.values() if host == here}
            told = hosts.gather(f"save {step} is whole", [here, self._damages(step, used)])
            if not any(damages for _, damages in told):
                return sources
            for host, damages in told:
                for save in damages:
                    del saves[host][save]
            sources, lacking = peers.choose(needed, saves)
            instead = "an older one is used" if lacking else "the same shards on another disk are used"
            lines = [f"{damage}: {instead}" for _, damages in told for damage in damages.values()]
            for line in lines if hosts.is_first() else ():
                warn(line)
        return None

    def _start_of(self, save: Path) -> str:
        """Which start of this training a save is of; empty if it is of none, or can't be read."""
        try:
            about = storage.read_json(save / DESCRIPTION)
            start = str(about.pop("start"))
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return ""
        return start if about == self._about else ""

    def _damages(self, step: int, used: set[str]) -> dict[str, str]:
        """What is wrong with saves on this host's disk, by folder."""
        found = {}
        for save in sorted(used):
            try:
                checkpoints.verify(self._folder / save / str(step))
            except (CorruptSave, OSError) as error:  # the disk may be breaking
                channel = hosts.connection()
                found[save] = f"{channel.called(hosts.index())}: {error}" if channel else str(error)
        return found

    def restore(self, save: Restorable, target: Tree) -> Tree:
        """The state of a save, with the shapes, types and shardings of `target`; all hosts at once."""
        moved = sum(host != source for (host, _), (source, _) in save.sources.items())
        others = f"; hosts get {moved:,} of {len(save.sources):,} shards from the disks of others" if moved else ""
        say(f"resumes from the save of step {save.step:,} in {self._folder}{others}")
        with contextlib.ExitStack() as opened:

            @functools.cache
            def file(folder: str) -> Any:
                return opened.enter_context(safe_open(self._folder / folder / str(save.step) / SHARDS, "np"))

            def array(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
                read = lambda folder, name: file(folder).get_tensor(name)  # noqa: E731
                return peers.array(jax.tree_util.keystr(path), leaf, save.sources, read)

            return jax.tree_util.tree_map_with_path(array, target)

    def close(self, finished: bool) -> None:
        """Wait for the last save; remove all if the training is finished."""
        self.wait()
        if self._folder and finished:
            hosts.barrier("local saves are written")  # several hosts may share a disk
            shutil.rmtree(self._folder, ignore_errors=True)


def _name(stage: Path) -> str:
    """The name of a stage's local saves, with an id that goes where the stage goes."""
    if not (stage / ID).exists():
        storage.write_json(stage / ID, {"id": uuid.uuid4().hex[:12]})
    return f"{stage.name}-{storage.hash_json(str(stage))[:8]}-{storage.read_json(stage / ID)['id']}"


def _names(save: Path) -> set[str]:
    """The shards in a save; none if it can't be read."""
    try:
        with safe_open(save / SHARDS, "np") as file:
            return set(file.keys())
    except Exception:  # of OSError, or of safetensors, which shares no class with others
        return set()
