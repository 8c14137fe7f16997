"""Run by `tests/eight_devices.py`: which device is named when one has a wrong bit. Prints JSON."""

import json

import jax
import numpy as np

from tests.training.small import ARCHITECTURE, batch, begun
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import OptimizerConfig, TrainConfig
from tpullm.system.errors import WrongBits
from tpullm.training import diagnosis
from tpullm.training.optimizer.chain import make_optimizer


def flipped(array: jax.Array, device: int, bit: int) -> jax.Array:
    """The array, of which a device has one bit otherwise."""
    shards = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device.id == device:
            data.reshape(-1).view(np.uint32)[-1] ^= np.uint32(1 << bit)
        shards.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def checked(check, state, rows) -> str:
    """The line of the check, or nothing."""
    try:
        check(state, rows, 7)
        return ""
    except WrongBits as error:
        return str(error)


def main() -> None:
    mesh, config = make_mesh({"data": 4, "fsdp": 2}), TrainConfig(batch_size=8, optimizer=OptimizerConfig())
    found = {}
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, 10, ARCHITECTURE.axes)
        step, state, _ = begun(ARCHITECTURE, mesh, optimizer, config)
        check, rows = diagnosis.Check(step, mesh), put_rows(mesh, batch(rows=8))
        found["sound"] = checked(check, state, rows)
        for device, bit in ((0, 0), (3, 31), (6, 12)):
            params = state["params"] | {"embedding": flipped(state["params"]["embedding"], device, bit)}
            # The copies are compared after the computation, which a wrong copy does not make differ from itself.
            found[f"copy on {device}"] = checked(check, state | {"params": params}, rows)
        after, calls = check._after, []

        def wrong_once(state, batch, frozen):
            calls.append(None)
            sums = np.array(after(state, batch, frozen))
            sums[5, 2] += len(calls) == 2
            return sums

        check._after = wrong_once
        found["computed on 5"] = checked(check, state, rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
