"""Run on each of several hosts: saves on a disk of its own, which then loses some of them. Prints JSON by scenario.

Arguments: a folder for the disks, and `--hosts.*`. Each scenario is (the mesh, whether there are copies, what is lost).
Lost are saves on disks, by patterns below the folder of the disks; `~` in front changes a bit in their shards instead,
and `!` makes them of another start of the training.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import jax
import numpy as np

from tpullm.formats import checkpoints, peers
from tpullm.formats.local_saves import LocalSaves
from tpullm.model.mesh import make_mesh, named_sharding
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.cluster.join import join, leave
from tpullm.system.cluster.place import find, take_flags

SCENARIOS = {
    2: {
        "all there": ({"data": 2, "fsdp": 2}, False, []),
        "data over hosts": ({"data": 2, "fsdp": 2}, False, ["1/*/*"]),
        "data over hosts, no disk": ({"data": 2, "fsdp": 2}, False, ["*/*/*"]),
        "data over hosts, a wrong bit": ({"data": 2, "fsdp": 2}, False, ["~1/host-1/5"]),
        "fsdp over hosts": ({"fsdp": 4}, False, ["1/*/*"]),
        "fsdp over hosts, copies": ({"fsdp": 4}, True, ["1/*/*"]),
        "fsdp over hosts, copies, a wrong bit": ({"fsdp": 4}, True, ["~0/host-0/5"]),
        "fsdp over hosts, wrong bits": ({"fsdp": 4}, True, ["~0/host-0/5", "~1/*-copies/5"]),
        "fsdp over hosts, an old copy": ({"fsdp": 4}, True, ["1/*/*", "0/*-copies/5"]),
        "fsdp over hosts, another start": ({"fsdp": 4}, False, ["!1/*/5"]),
        "another number now": ({"fsdp": 4}, True, ["swap"]),
    },
    4: {
        "data over hosts": ({"data": 4, "fsdp": 2}, False, ["1/*/*", "2/*/*", "3/*/*"]),
        "both over hosts": ({"data": 2, "fsdp": 4}, False, ["0/*/*", "3/*/*"]),
        "both over hosts, both copies": ({"data": 2, "fsdp": 4}, True, ["0/*/*", "2/*/*"]),
        "fsdp over hosts, copies": ({"fsdp": 8}, True, ["1/*/*", "2/*/*"]),
        "fsdp over hosts, both copies": ({"fsdp": 8}, True, ["1/*/*", "3/*/*"]),
    },
}


def state_of(mesh: jax.sharding.Mesh, seed: int) -> dict:
    """Arrays of several types, all bits by chance, so with NaNs; on every host the same."""
    random, state = np.random.default_rng(seed), {}
    for name, dtype, shape, axes in (
        ("moments", "bfloat16", (3, 8, 16), ("layers", "mlp", "embed")),
        ("params", "float32", (16, 6), ("embed", "vocabulary")),
        ("scale", "float32", (5,), ("head",)),
        ("step", "int32", (), ()),
    ):
        itemsize = jax.numpy.dtype(dtype).itemsize
        whole = random.integers(0, 1 << 8 * itemsize, shape, f"u{itemsize}").view(dtype)
        state[name] = jax.make_array_from_callback(shape, named_sharding(mesh, *axes), whole.__getitem__)
    return state


def lose(disks: Path, pattern: str) -> None:
    """Remove saves, or change each as the pattern says."""
    if pattern == "swap":  # the machines are other hosts now
        for one, other in (("0", "between"), ("1", "0"), ("between", "1")):
            (disks / one).rename(disks / other)
        return
    disk, _, rest = pattern.lstrip("~!").partition("/")
    for save in disks.glob(f"{disk}/*/{rest}"):
        if pattern.startswith("~"):
            content = bytearray((save / "shards.safetensors").read_bytes())
            content[-5] ^= 4
            (save / "shards.safetensors").write_bytes(content)
        elif pattern.startswith("!"):
            about = storage.read_json(save / "description.json")
            storage.write_json(save / "description.json", about | {"start": "another"})
            checkpoints.write(save)
        else:
            shutil.rmtree(save)


def restored(disks: Path, shape: dict[str, int], copies: bool, lost: list[str]) -> tuple[int, int, bool] | None:
    """The step of the save that is restored, how many shards came from elsewhere, and whether all bits are the same."""
    mesh = make_mesh(shape)
    config = CheckpointConfig(local=str(disks / str(hosts.index())), local_copies=copies)
    with jax.set_mesh(mesh):
        states = {step: state_of(mesh, step) for step in (3, 4, 5)}
        saves = LocalSaves(disks / "pretrain", config, {})
        for step, state in states.items():
            saves.save(step, state)
        saves.wait()
        hosts.barrier("saved")
        hosts.on_first("lost", lambda: [lose(disks, pattern) for pattern in lost])
        saves = LocalSaves(disks / "pretrain", config, {})
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states[3])
        found = saves.newest(target, after=2)
        if found is None:
            return None
        mine, whole = peers.own(saves.restore(found, target)), peers.own(states[found.step])
        same = {name: peers.bits(shard).tobytes() for name, shard in mine.items()} == {
            name: peers.bits(shard).tobytes() for name, shard in whole.items()
        }
        return found.step, sum(host != source for (host, _), (source, _) in found.sources.items()), same


def main() -> None:
    """See above."""
    flags, (folder,) = take_flags("hosts", sys.argv[1:])
    join(find("hosts", flags, {}))
    results = {}
    for name, scenario in SCENARIOS[hosts.count()].items():
        print(f"-- {name}", file=sys.stderr)
        disks = Path(folder) / name
        hosts.on_first("folders", disks.mkdir)
        results[name] = restored(disks, *scenario)
    print(json.dumps(results))
    leave()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the exit handlers would wait for the other hosts
