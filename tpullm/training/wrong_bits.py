"""Find a device that computes or keeps wrong bits, which nothing else notices: the loss only gets a little worse.

A step that is computed twice from the same state must give the same bits, and the copies of an array on several devices
must be equal. Both are compared by a checksum of each array on each device, so the device is known. A flipped bit in an
array that one device alone holds shows in neither; it is part of the state from then on. Dixit et al. 2021, "Silent
Data Corruptions at Scale", found about one such processor in a thousand.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tpullm.data.batch import Batch
from tpullm.system.errors import WrongBits

Tree = Any


def device_checksums(tree: Tree) -> jax.Array:
    """A checksum of each array's part on each device: uint32 `[devices, arrays]`, in the order of the mesh.

    The sum of all words, by which a change of one bit always shows.
    """
    leaves = jax.tree.leaves(tree)
    axes = jax.sharding.get_abstract_mesh().axis_names

    def local(*parts: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(_words(part), dtype=jnp.uint32) for part in parts])[None]

    specs = tuple(jax.typeof(leaf).sharding.spec for leaf in leaves)
    summed = jax.shard_map(local, in_specs=specs, out_specs=PartitionSpec(axes), check_vma=False)(*leaves)
    return jax.reshard(summed, PartitionSpec(None, None))


def _words(part: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(part, jnp.dtype(f"uint{8 * part.dtype.itemsize}")).astype(jnp.uint32)


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
        if places := np.argwhere(one != other).tolist():
            found = {self._devices[device]: array for device, array in reversed(places)}
            raise self._error(state, found, number, "computed one step twice with different results")
        held = state | {"frozen": frozen} if frozen else state
        if found := unequal_copies(held, np.asarray(self._kept(held)), self._devices):
            raise self._error(held, found, number, "holds other bits than the other devices")

    def _error(self, state: Tree, found: dict[jax.Device, int], number: int, what: str) -> WrongBits:
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        device, array = next(iter(found.items()))
        others = f" ({len(found) - 1} more devices too)" if len(found) > 1 else ""
        return WrongBits(
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
