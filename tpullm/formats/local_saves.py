"""Saves on the local disk of each host, between the checkpoints in the run directory.

Each host writes the shards of its own devices, so nothing goes over a network. A training resumes from the newest save
that is newer than the last checkpoint, if every host finds its own shards whole on its own disk. If one host does not
(its machine was replaced, a bit has flipped, the mesh is another one), an older save is used, else the checkpoint.

    LOCAL/STAGE-ID/host-N/STEP/{shards.safetensors, description.json, checksums.json}

All shards of a save are of one start of the training: another start may have rounded differently, on another mesh.

Orbax's emergency checkpoint manager was tried instead (0.12.8, two processes of two devices each). With `data` over
the hosts, the first replica writes nothing on its own disks. With `fsdp` over all hosts (one replica), nobody does. It
restored a save with one flipped bit on all hosts and reported nothing. And it needs absl's flags parsed, and two tables
of device ids that functions of `orbax._src` alone set.
"""

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tpullm.formats import checkpoints
from tpullm.formats.checkpoints import CorruptSave, Tree
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError, correctable
from tpullm.system.log import say, warn

REQUEST = "local"  # of all hosts, to save after the same step
KEPT = 2  # whole ones, while another is written: see `_write`
ID = "local_saves.json"  # in the stage: names its local saves, so that no other training takes them
SHARDS, DESCRIPTION = "shards.safetensors", "description.json"


class LocalSaves:
    """The local saves of one training; without `checkpoint.local` there are none, and nothing here does anything.

    Args:
        stage: the stage's folder.
        config: where to save, and when.
        description: of the checkpoints of this training. A save is used if its inputs, horizons and left-out batches
            are the same.
    """

    def __init__(self, stage: Path, config: CheckpointConfig, description: dict):
        self._config, self._last, self._thread, self._folder = config, time.monotonic(), None, None
        past = {key: description.get(key) for key in ("inputs", "horizons", "left_out", "opened")}
        self._about = json.loads(json.dumps(past))
        if config.local:
            name, self._start = hosts.broadcast("the local saves", lambda: [_name(stage), uuid.uuid4().hex[:12]])
            self._folder = storage.path(config.local) / name
            self._own = self._folder / f"host-{hosts.index()}"
            storage.check_writable(self._own)
            storage.remove_partials(self._own)
            for other in self._folder.parent.glob(f"{name.rpartition('-')[0]}-*"):
                if other.name != name:  # of a training that was made again
                    shutil.rmtree(other, ignore_errors=True)

    def asks(self) -> list[str]:
        """The request to save after this step, if the time has come; by the clock of host 0."""
        minutes, every = (time.monotonic() - self._last) / 60, self._config.local_every_minutes
        return [REQUEST] * bool(self._folder and every and minutes >= every and hosts.is_first())

    def due(self, step: int, granted: set[str]) -> bool:
        """Whether all hosts save after this step."""
        every = self._config.local_every_steps
        return bool(self._folder) and (REQUEST in granted or bool(every and step % every == 0))

    def save(self, step: int, state: Tree) -> None:
        """Copy this host's shards, and write them in the background. A failure is a warning: the training goes on."""
        self.wait()
        self._last = time.monotonic()
        shards = {
            _shard_name(path, shard.index, leaf.shape): shard.data
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            for shard in leaf.addressable_shards
        }
        for shard in shards.values():
            shard.copy_to_host_async()
        # Nothing is copied on a CPU: JAX donates no buffer that numpy still sees, so the next step takes another one.
        # As whole numbers, since not every type of JAX has a name in a file of safetensors.
        bits = {name: np.asarray(shard).view(f"u{shard.dtype.itemsize}") for name, shard in shards.items()}
        self._thread = threading.Thread(target=self._write, args=(step, bits), name="local_save")
        self._thread.start()

    def _write(self, step: int, bits: dict[str, np.ndarray]) -> None:
        try:
            # Remove saves that no host needs any more, also what the machine saved when it was another host. All hosts
            # have computed the step that is saved now. So all have begun the save before it, and written the one before
            # that, and may have no newer one when they are killed.
            kept = sorted(int(save.name) for save in self._own.glob("[0-9]*"))[-KEPT:]
            if len(kept) == KEPT:
                self._remove(lambda step: step < kept[0])
            with storage.atomic_directory(self._own / str(step)) as temporary:
                save_file(bits, temporary / SHARDS)
                storage.write_json(temporary / DESCRIPTION, self._about | {"start": self._start})
                checkpoints.write(temporary)
        except Exception as error:
            warn(f"{self._own}: not saved at step {step:,} ({correctable(error) or error}); the training goes on")

    def _remove(self, unwanted: Callable[[int], bool]) -> None:
        for save in self._folder.glob("*/[0-9]*") if self._folder else ():
            if unwanted(int(save.name)):
                shutil.rmtree(save, ignore_errors=True)

    def forget(self, after: int) -> None:
        """Remove the saves of steps that will be repeated differently."""
        self.wait()
        self._remove(lambda step: step > after)

    def wait(self) -> None:
        """Until the last save is written."""
        if self._thread:
            self._thread.join()

    def newest(self, target: Tree, after: int) -> int | None:
        """The newest step after `after` whose shards are whole on every host; None if there is no such step."""
        if not self._folder:
            return None
        own = {(int(save.name), self._start_of(save)) for save in self._own.glob("[0-9]*")}
        told = hosts.gather("local saves", sorted((step, start) for step, start in own if step > after and start))
        of_hosts = [{(step, start) for step, start in own} for own in told]
        for step, _ in sorted(set.intersection(*of_hosts), reverse=True):
            damages = hosts.gather(f"save {step} is whole", self._damage(step, target))
            if not any(damages):
                return step
            for damage in filter(None, damages) if hosts.is_first() else ():
                warn(f"{damage}: an older one is used")
        if found := sorted({step for own in of_hosts for step, _ in own}, reverse=True):
            tried = ", ".join(f"{step:,}" for step in found)
            say(f"{self._folder}: no save (steps {tried}) is whole on the disks of all hosts, so none is used")
        return None

    def _start_of(self, save: Path) -> str:
        """Which start of this training a save is of; empty if it is of none, or can't be read."""
        try:
            about = storage.read_json(save / DESCRIPTION)
            start = str(about.pop("start"))
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return ""
        return start if about == self._about else ""

    def _damage(self, step: int, target: Tree) -> str:
        """What is wrong with this host's save of a step; empty if it is whole and has all shards of `target`."""
        save, channel = self._own / str(step), hosts.connection()
        host = f"{channel.called(hosts.index())}: " if channel else ""
        try:
            checkpoints.verify(save)
            with safe_open(save / SHARDS, "np") as file:
                names = set(file.keys())
        except Exception as error:  # CorruptSave, OSError of a breaking disk, or safetensors' own, a plain Exception
            return host + (str(error) if isinstance(error, CorruptSave | OSError) else f"{save}: {error}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(target):
            for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
                if (name := _shard_name(path, index, leaf.shape)) not in names:
                    return f"{host}{save}: lacks the shard {name}; it is of another mesh"
        return ""

    def restore(self, step: int, target: Tree) -> Tree:
        """The state of the save that `newest` found, with the shapes, types and shardings of `target`."""
        say(f"resumes from the save of step {step:,} in {self._folder}")
        with safe_open(self._own / str(step) / SHARDS, "np") as file:

            def array(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
                read = lambda index: file.get_tensor(_shard_name(path, index, leaf.shape)).view(leaf.dtype)  # noqa: E731
                return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)

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


def _shard_name(path: tuple, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """A shard's name: the path of its array, and from where to where it goes in each dimension."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    places = ", ".join(f"{first}-{last}" for first, last in bounds)
    return f"{jax.tree_util.keystr(path)} of {'x'.join(map(str, shape))}: {places}"
