"""The shards of arrays: their names, and which hosts hold them.

A shard's name says which part of which array it is, so two hosts that have a shard of one name, of the same step, have
the same bits. A host is a process of JAX, by JAX's index.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

Tree = Any
Devices = dict[int, list[jax.Device]]  # by host


def named(path: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """A shard's name: the path of its array, and from where to where it goes in each dimension."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return f"{path} of {'x'.join(map(str, shape))}: {', '.join(f'{first}-{last}' for first, last in bounds)}"


def arrays(tree: Tree) -> Iterator[tuple[str, Any]]:
    """The arrays of a state, or what describes them, with their paths."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path), leaf


def holders(path: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> dict[str, Devices]:
    """The shards of an array, by name: on which devices of which hosts each is."""
    found: dict[str, Devices] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        found.setdefault(named(path, index, leaf.shape), {}).setdefault(device.process_index, []).append(device)
    return found


def needed(target: Tree) -> dict[int, list[str]]:
    """The names of the shards that each host's devices hold."""
    found: dict[int, list[str]] = {}
    for path, leaf in arrays(target):
        for name, devices in holders(path, leaf).items():
            for host in devices:
                found.setdefault(host, []).append(name)
    return found


def by_host(mesh: Mesh) -> Devices:
    """The devices of each host, the hosts in ascending order."""
    found: Devices = {}
    for device in mesh.devices.flat:
        found.setdefault(device.process_index, []).append(device)
    return dict(sorted(found.items()))


def own(state: Tree) -> dict[str, jax.Array]:
    """The different shards of this host's devices, by name."""
    found: dict[str, jax.Array] = {}
    for path, leaf in arrays(state):
        for shard in leaf.addressable_shards:
            found.setdefault(named(path, shard.index, leaf.shape), shard.data)
    return found


def integers(dtype: np.dtype) -> np.dtype:
    """The type of integers of the same size: not every type of JAX has a name in a file of safetensors."""
    return np.dtype(f"u{np.dtype(dtype).itemsize}")


def bits(shard: jax.Array) -> np.ndarray:
    """A shard's bits as integers, in the memory of this host."""
    return np.asarray(shard).view(integers(shard.dtype))
