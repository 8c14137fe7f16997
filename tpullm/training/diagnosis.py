"""What a user turns on to look into a training: a check of the devices' bits, and a profile of some steps.

A device that computes or keeps wrong bits is noticed by nothing else: the loss only gets a little worse. A step that is
computed twice from the same state must give the same bits, and the copies of an array on several devices must be equal.
Both are compared by a checksum of each array on each device, so the device is known. A flipped bit in an array that one
device alone holds shows in neither; it is part of the state from then on. Dixit et al. 2021, "Silent Data Corruptions
at Scale", found about one such processor in a thousand.

A profile is what host and devices do in some steps, for xprof (TensorBoard's profile page) and ui.perfetto.dev.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tpullm.data.batch import Batch
from tpullm.model.architecture import Tree
from tpullm.system import storage
from tpullm.system.errors import WrongBits
from tpullm.system.log import say


def device_checksums(tree: Tree) -> jax.Array:
    """A checksum of each array's part on each device: uint32 `[devices, arrays]`, in the order of the mesh.

    The sum of all words, by which a change of one bit always shows.
    """
    leaves = jax.tree.leaves(tree)
    axes = jax.sharding.get_abstract_mesh().axis_names

    def local(*parts: jax.Array) -> jax.Array:
        bits = (jax.lax.bitcast_convert_type(part, jnp.dtype(f"uint{8 * part.dtype.itemsize}")) for part in parts)
        return jnp.stack([jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32) for words in bits])[None]

    specs = tuple(jax.typeof(leaf).sharding.spec for leaf in leaves)
    summed = jax.shard_map(local, in_specs=specs, out_specs=PartitionSpec(axes), check_vma=False)(*leaves)
    return jax.reshard(summed, PartitionSpec(None, None))


class Check:
    """The check of a training.

    Args:
        step: the compiled step function.
        mesh: its devices.
    """

    def __init__(self, step: Callable, mesh: Mesh):
        self._devices = mesh.devices.ravel()
        self._kept = jax.jit(device_checksums)
        # A program of its own, which keeps the state. So it is run twice: other programs may round otherwise.
        self._after = jax.jit(lambda *arguments: device_checksums(step.__wrapped__(*arguments)[0]))

    def __call__(self, state: Tree, batch: Batch, number: int, frozen: Tree = ()) -> None:
        """Check the state before step `number`, and the computation of this step.

        Args:
            frozen: the parameters that are not trained.

        Raises:
            WrongBits: a device has other bits than another one, or than it had before.
        """
        one, other = (np.asarray(self._after(state, batch, frozen)) for _ in range(2))
        what = "computed one step twice with different results"
        found = {self._devices[device]: array for device, array in reversed(np.argwhere(one != other).tolist())}
        if not found:
            what, state = "holds other bits than the other devices", state | ({"frozen": frozen} if frozen else {})
            found = unequal_copies(state, np.asarray(self._kept(state)), self._devices)
        if not found:
            return
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        device, array = next(iter(found.items()))
        others = f" ({len(found) - 1} more devices too)" if len(found) > 1 else ""
        raise WrongBits(
            f"before step {number:,} device {device.id} of host {device.process_index} ({device.device_kind}) {what}, "
            f"first in {paths[array]}{others}; this machine may be broken: start elsewhere, from a checkpoint that is "
            "older than this"
        )


def unequal_copies(state: Tree, sums: np.ndarray, devices: np.ndarray) -> dict[jax.Device, int]:
    """The devices whose copy of an array differs from that of most, with the number of the first such array.

    Args:
        sums: of `device_checksums`.
        devices: in the order of its rows.
    """
    found: dict[jax.Device, int] = {}
    rows = {device: row for row, device in enumerate(devices)}
    for array, leaf in enumerate(jax.tree.leaves(state)):
        copies: dict[str, list[jax.Device]] = {}
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            copies.setdefault(str(index), []).append(device)
        for holders in copies.values():
            counts = Counter(int(sums[rows[device], array]) for device in holders)
            usual, often = counts.most_common(1)[0]
            # Of two copies that differ, nobody knows which is right.
            agreed = {usual} if 2 * often > len(holders) else set()
            for device in holders if len(counts) > 1 else ():
                if int(sums[rows[device], array]) not in agreed:
                    found.setdefault(device, array)
    return found


class Profile:
    """Records the steps that `pretrain.profile` names as `FIRST:LAST`.

    Args:
        steps: the recipe's words; empty records nothing.
        folder: for `plugins/profile/TIME/{*.xplane.pb, perfetto_trace.json.gz}`.
        catch_up: waits until all steps are computed.
    """

    def __init__(self, steps: str, folder: Path, catch_up: Callable[[], None]):
        self._first, self._last = map(int, steps.split(":")) if steps else (0, 0)
        self._folder, self._catch_up, self._local = folder, catch_up, None

    def before(self, step: int) -> None:
        """Start to record, in a folder of this machine, if `step` is the first one."""
        if step == self._first:
            self._catch_up()
            self._local = tempfile.TemporaryDirectory(prefix="tpullm-")
            jax.profiler.start_trace(self._local.name, create_perfetto_trace=True)

    def after(self, step: int) -> None:
        """Write what was recorded if `step` is the last one."""
        if step == self._last:
            self._catch_up()
            self.close()

    def close(self) -> None:
        """Write what was recorded, if anything was."""
        if self._local is None:
            return
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        with storage.atomic_directory(self._folder) as temporary, local as made:
            for file in sorted(path for path in Path(made).rglob("*") if path.is_file()):
                target = temporary / file.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                storage.copy(file, target)
        say(f"steps {self._first:,} to {self._last:,} are recorded in {self._folder}; open it with xprof or Perfetto")
