"""Run on each of several hosts: saves on a disk of its own, which then loses some of them. Prints JSON by scenario.

Arguments: a folder for the disks, and `--hosts.*`. Each scenario is (the mesh, what is lost).
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

from tpullm.formats import checkpoints
from tpullm.formats.local_saves import LocalSaves
from tpullm.model.mesh import make_mesh, named_sharding
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.cluster.hosts import join, leave
from tpullm.system.cluster.place import find, take_flags

DATA, FSDP = {"data": 2, "fsdp": 2}, {"fsdp": 4}
SCENARIOS = {
    "all there": (FSDP, []),
    "data over hosts": (DATA, []),
    "a disk is lost": (DATA, ["1/*/*"]),
    "a wrong bit": (FSDP, ["~1/host-1/5"]),
    "wrong bits": (FSDP, ["~0/host-0/5", "~1/host-1/4"]),
    "a host has no newest": (FSDP, ["0/*/5"]),
    "another start": (FSDP, ["!1/*/5"]),
    "another number now": (FSDP, ["swap"]),
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


def restored(disks: Path, shape: dict[str, int], lost: list[str]) -> tuple[int, bool] | None:
    """The step of the save that is restored, and whether all bits are the same."""
    mesh, config = make_mesh(shape), CheckpointConfig(local=str(disks / str(hosts.index())))
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
        mine, whole = (
            [np.asarray(part.data).tobytes() for leaf in jax.tree.leaves(state) for part in leaf.addressable_shards]
            for state in (saves.restore(found, target), states[found])
        )
        return found, mine == whole


def main() -> None:
    flags, (folder,) = take_flags("hosts", sys.argv[1:])
    join(find("hosts", flags, {}))
    results = {}
    for name, scenario in SCENARIOS.items():
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
