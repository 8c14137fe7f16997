"""Run by `tests/eight_devices.py`: the collectives of Muon's update of one parameter, by mesh, as JSON."""

import json
import re

import jax
import jax.numpy as jnp

from tpullm.model.mesh import RULES, make_mesh
from tpullm.training.optimizer.muon import scale_by_muon

MESHES = {"both": {"fsdp": 4, "tensor": 2}, "shared": {"fsdp": 2, "sequence": 4}}
AXES = ("layers", "embed", "heads", "head")
KINDS = ("all-to-all", "all-gather", "all-reduce", "collective-permute")


def collectives(sizes: dict[str, int]) -> list[str]:
    muon = scale_by_muon(0.9, {"w": AXES}, jnp.float32)
    with jax.set_mesh(mesh := make_mesh(sizes)):
        x = jax.device_put(jnp.ones((6, 16, 4, 8)), jax.NamedSharding(mesh, RULES.spec(*AXES)))
        state = muon.init({"w": x})
        text = jax.jit(muon.update).lower({"w": x}, state).compile().as_text()
    return [kind for kind in KINDS if re.search(rf" {kind}(-start)?[(]", text)]


if __name__ == "__main__":
    print(json.dumps({name: collectives(sizes) for name, sizes in MESHES.items()}))
