"""Shards that a host gets from other hosts: which from whom, and how they move.

They move over the network of the devices, by JAX's collective permute, and not over connections of our own. The hosts
are connected there already, so no further port is open and nothing new has to be trusted, and no network of theirs is
faster. A collective is called by all hosts in the same order, so nothing here runs in the background. A device moves
one shard at a time, and has room for that: a step holds the gradients of all parameters.

Only what has to move does: when a save is restored, the shards that a host does not find on its own disk; when one is
made, and copies are wanted, the shards that no second host has.

The shards of arrays: their names, and which hosts hold them.

A shard's name says which part of which array it is, so two hosts that have a shard of one name, of the same step, have
the same bits. A host is a process of JAX, by JAX's index.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def holders_of(path: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> dict[str, Devices]:
    """The shards of an array, by name: on which devices of which hosts each is."""
    found: dict[str, Devices] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        found.setdefault(named(path, index, leaf.shape), {}).setdefault(device.process_index, []).append(device)
    return found


def needed(target: Tree) -> dict[int, list[str]]:
    """The names of the shards that each host's devices hold."""
    found: dict[int, list[str]] = {}
    for path, leaf in arrays(target):
        for name, devices in holders_of(path, leaf).items():
            for host in devices:
                found.setdefault(host, []).append(name)
    return found


def devices_by_host(mesh: Mesh) -> Devices:
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


Sources = dict[tuple[int, str], tuple[int, str]]  # by host and shard that it needs: the host that has it, in which save
Round = dict[tuple[jax.Device, jax.Device], str]  # shards by the device that sends it and the one that receives it


def choose(
    needed: Mapping[int, Iterable[str]], saves: Mapping[int, Mapping[str, Collection[str]]]
) -> tuple[Sources, set[int]]:
    """Where each host gets its shards from: its own disk, else another host's, not the same one for all.

    Args:
        needed: the shards of each host.
        saves: of each host, the saves on its disk and the shards in them. The first that has a shard is used.

    Returns:
        The sources, and the hosts that need a shard which nobody has.
    """
    has: dict[str, dict[int, str]] = {}
    for host in sorted(saves):
        for save, names in saves[host].items():
            for name in names:
                has.setdefault(name, {}).setdefault(host, save)
    sources: Sources = {}
    lacking = set()
    for host, names in needed.items():
        for name in names:
            by_host = has.get(name, {})
            if not by_host:
                lacking.add(host)
                continue
            source = host if host in by_host else list(by_host)[host % len(by_host)]
            sources[host, name] = source, by_host[source]
    return sources, lacking


def rounds(transfers: Iterable[tuple[str, int, jax.Device]], devices: Mapping[int, list[jax.Device]]) -> list[Round]:
    """Which shards move at once: each device sends one at most, and receives one at most.

    Args:
        transfers: shards, the host that has each, and the device that needs it.
        devices: of each host.
    """
    made: list[Round] = []
    busy: list[set[tuple[str, jax.Device]]] = []  # of each round
    for name, host, target in transfers:
        for number in itertools.count():
            if number == len(made):
                made.append({})
                busy.append(set())
            free = [device for device in devices[host] if ("sends", device) not in busy[number]]
            if free and ("receives", target) not in busy[number]:
                break
        made[number][free[0], target] = name
        busy[number] |= {("sends", free[0]), ("receives", target)}
    return made


def exchange(
    mesh: Mesh,
    pairs: list[tuple[jax.Device, jax.Device]],
    sent: Mapping[jax.Device, np.ndarray],
    like: jax.ShapeDtypeStruct,
) -> dict[jax.Device, np.ndarray]:
    """What devices of this host receive when the first device of each pair sends an array to the second.

    Args:
        sent: by device of this host; each array has the shape and the type (of integers) of `like`.
    """
    own = devices_by_host(mesh)[jax.process_index()]
    blocks = [
        jax.device_put(sent[device][None], device)
        if device in sent
        else jnp.zeros((1, *like.shape), like.dtype, device=device)
        for device in own
    ]
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    array = jax.make_array_from_single_device_arrays((mesh.size, *like.shape), sharding, blocks)
    return {device: shard[0] for device, shard in _received(array, pairs).items()}


def array(path: str, leaf: jax.ShapeDtypeStruct, sources: Sources, read: Callable[[str, str], np.ndarray]) -> jax.Array:
    """An array of which each host reads what is on its disk, and gets the other shards from the hosts that have them.

    Args:
        sources: of all shards of all hosts.
        read: the bits of a shard that is on this host's disk, by the save and the shard's name.
    """
    here, holders, mesh = jax.process_index(), holders_of(path, leaf), leaf.sharding.mesh
    parts: list[jax.Array] = []

    def place(name: str, bits: np.ndarray) -> None:
        parts.extend(jax.device_put(bits.view(leaf.dtype), device) for device in holders[name][here])

    transfers = []
    for name, by_host in holders.items():
        for host, devices in by_host.items():
            source, save = sources[host, name]
            if source != host:
                transfers.append((name, source, devices[0]))
            elif host == here:
                place(name, read(save, name))
    like = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), integers(leaf.dtype))
    for one in rounds(transfers, devices_by_host(mesh)):
        sent = {
            sender: read(sources[target.process_index, name][1], name)
            for (sender, target), name in one.items()
            if sender.process_index == here
        }
        names = {target: name for (_, target), name in one.items()}
        for target, bits in exchange(mesh, list(one), sent, like).items():
            place(names[target], bits)
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def copies(state: Tree) -> dict[str, np.ndarray]:
    """The shards that no second host has, of the host whose copies this one keeps: half of all hosts away.

    Not of the next host: where a machine has several processes, that may be the same machine.
    """
    found: dict[str, np.ndarray] = {}
    for path, leaf in arrays(state):
        devices = list(devices_by_host(leaf.sharding.mesh).values())
        if len(devices) == 1 or all(len(by_host) > 1 for by_host in holders_of(path, leaf).values()):
            continue
        partners = devices[len(devices) // 2 :] + devices[: len(devices) // 2]
        pairs = [
            pair for some, others in zip(devices, partners, strict=True) for pair in zip(some, others, strict=True)
        ]
        indices, senders = leaf.sharding.devices_indices_map(leaf.shape), {target: sender for sender, target in pairs}
        for device, shard in _received(leaf, pairs).items():
            found.setdefault(named(path, indices[senders[device]], leaf.shape), shard)
    return found


def _received(array: jax.Array, pairs: list[tuple[jax.Device, jax.Device]]) -> dict[jax.Device, np.ndarray]:
    """The bits of the shards that this host's devices receive."""
    places = {device: place for place, device in enumerate(array.sharding.mesh.devices.flat)}
    moved = _permuted(array, array.sharding, tuple((places[sender], places[target]) for sender, target in pairs))
    targets = {target for _, target in pairs}
    received = [shard for shard in moved.addressable_shards if shard.device in targets]
    return {shard.device: np.asarray(shard.data) for shard in received}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _permuted(array: jax.Array, sharding: NamedSharding, pairs: tuple[tuple[int, int], ...]) -> jax.Array:
    """The bits of the shards, moved from the first to the second device of each pair; zeros on other devices."""

    def move(shard: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(shard, integers(shard.dtype))
        return jax.lax.ppermute(bits, sharding.mesh.axis_names, pairs)

    mesh, spec = sharding.mesh, sharding.spec
    return jax.shard_map(move, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(array)
