"""Saves on the local disk of each host, between those in the run directory: one a minute costs what its writing costs.

Each host writes the shards of its own devices, so nothing goes over a network, and a host can restore its own shards
alone. All hosts resume from the same save: the newest that all of them have, whole. If there is none that is newer than
the last checkpoint in the run directory (a host lost its disk, or the mesh is another one), that one is taken.

Orbax's emergency checkpoints need several slices that hold the same parameters (`data` over slices), or a service on
every machine. A training on one host, or with `fsdp` over all, has neither.

    LOCAL/STAGE-ID/HOST/STEP/{shards.safetensors, description.json, checksums.json}
"""

import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tpullm import storage
from tpullm.checkpoint import checksums
from tpullm.checkpoint.checksums import CorruptSave
from tpullm.cluster import hosts
from tpullm.errors import correctable
from tpullm.log import say, warn
from tpullm.recipe.schema import CheckpointConfig

Tree = Any

REQUEST = "local"  # of all hosts, to save after the same step
KEPT = 2  # a host may be killed while it writes one that the others have
ID = "local_saves.json"  # in the stage: names its local saves, so that no other training takes them
SHARDS, DESCRIPTION = "shards.safetensors", "description.json"


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
            name = hosts.broadcast("the local saves", lambda: _name(stage))
            self._folder = storage.path(config.local) / name / f"host-{hosts.index()}"
            storage.check_writable(self._folder)
            storage.remove_partials(self._folder)
            for other in self._folder.parent.parent.glob(f"{name.rpartition('-')[0]}-*"):
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
        shards = dict(_shards(state))
        for shard in shards.values():
            shard.copy_to_host_async()
        # Nothing is copied on a CPU: JAX donates no buffer that numpy still sees, so the next step takes another one.
        shards = {name: _bits(np.asarray(shard)) for name, shard in shards.items()}
        self._thread = threading.Thread(target=self._write, args=(step, shards), name="local_save")
        self._thread.start()

    def forget(self, after: int) -> None:
        """Remove the saves of steps that will be repeated otherwise."""
        self.wait()
        for step in self._steps() if self._folder else ():
            if step > after:
                shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def wait(self) -> None:
        """Until the last save is written."""
        if self._thread:
            self._thread.join()

    def _write(self, step: int, shards: dict[str, np.ndarray]) -> None:
        try:
            with storage.atomic_directory(self._folder / str(step)) as temporary:
                save_file(shards, temporary / SHARDS)
                storage.write_json(temporary / DESCRIPTION, self._about)
                checksums.write(temporary)
            for old in self._steps()[:-KEPT]:
                shutil.rmtree(self._folder / str(old), ignore_errors=True)
        except Exception as error:
            warn(f"{self._folder}: not saved at step {step:,} ({correctable(error) or error}); the training goes on")

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def newest(self, target: Tree, after: int) -> int:
        """The newest step later than `after` that all hosts can restore; 0 if there is none."""
        if not self._folder:
            return 0
        own = [step for step in self._steps() if step > after and self._fits(step, target)]
        common = set.intersection(*map(set, hosts.gather("steps of local saves", own)))
        for step in sorted(common, reverse=True):
            if not (corrupt := next(filter(None, hosts.gather(f"save {step} is whole", self._corrupt(step))), "")):
                return step
            if hosts.is_first():
                warn(f"{corrupt}: an older one is used")
        return 0

    def _corrupt(self, step: int) -> str:
        try:
            checksums.verify(self._folder / str(step))
        except CorruptSave as error:
            return str(error)
        return ""

    def _fits(self, step: int, target: Tree) -> bool:
        """Whether a save is of this training, and has all shards of this host's devices."""
        try:
            if storage.read_json(self._folder / str(step) / DESCRIPTION) != self._about:
                return False
            with safe_open(self._folder / str(step) / SHARDS, "np") as file:
                return set(file.keys()) >= {name for name, *_ in _places(target)}
        except Exception:  # it is broken: of JSON, UTF-8, the header of safetensors
            return False

    def restore(self, step: int, target: Tree) -> Tree:
        """The state at `step`, with the shapes, types and shardings of `target`."""
        say(f"resumes from the save of step {step:,} in {self._folder.parent}")
        parts: dict[str, list[jax.Array]] = {}
        with safe_open(self._folder / str(step) / SHARDS, "np") as file:
            for name, path, leaf, devices in _places(target):
                shard = file.get_tensor(name).view(leaf.dtype)
                parts.setdefault(path, []).extend(jax.device_put(shard, device) for device in devices)

        def whole(path, leaf):
            arrays = parts[jax.tree_util.keystr(path)]
            return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)

        return jax.tree_util.tree_map_with_path(whole, target)

    def close(self, finished: bool) -> None:
        """Wait for the last save; remove all if the training is finished."""
        self.wait()
        if self._folder and finished:
            shutil.rmtree(self._folder, ignore_errors=True)
            storage.remove_empty(self._folder.parent)


def _name(stage: Path) -> str:
    """The name of a stage's local saves, with an id that goes where the stage goes."""
    if not (stage / ID).exists():
        storage.write_json(stage / ID, {"id": uuid.uuid4().hex[:12]})
    return f"{stage.name}-{storage.hash_json(str(stage))[:8]}-{storage.read_json(stage / ID)['id']}"


def _bits(shard: np.ndarray) -> np.ndarray:
    """The same bits as integers: not every type of JAX has a name in a file of safetensors."""
    return shard.view(f"u{shard.dtype.itemsize}")


def _shards(state: Tree) -> Iterator[tuple[str, jax.Array]]:
    """The different shards of this host's devices, with their names."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        seen = set()
        for shard in leaf.addressable_shards:
            name = _named(jax.tree_util.keystr(path), shard.index, leaf.shape)
            if name not in seen:
                seen.add(name)
                yield name, shard.data


def _places(target: Tree) -> Iterator[tuple[str, str, jax.ShapeDtypeStruct, list[jax.Device]]]:
    """Of each shard that this host needs: its name, the path of its array, the array, and the devices that hold it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
        devices: dict[str, list[jax.Device]] = {}
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            devices.setdefault(_named(jax.tree_util.keystr(path), index, leaf.shape), []).append(device)
        for name, held_by in devices.items():
            yield name, jax.tree_util.keystr(path), leaf, held_by


def _named(path: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """A shard's name: the path of its array, and from where to where it goes in each dimension."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return f"{path} of {'x'.join(map(str, shape))}: {', '.join(f'{first}-{last}' for first, last in bounds)}"
