"""Run in its own process with 8 CPU devices: the model with the GPU's kernel, against plain attention on one device.

Prints one JSON object: for each policy of `model.remat` the largest difference of the loss and of the parameters'
gradients, relative to their norms.
"""

import dataclasses
import json
import os

from tests.conftest import QUICK_TO_COMPILE

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"

import jax  # noqa: E402 (the devices must be asked for before)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from tests.training.small import CONFIG, batch, params  # noqa: E402
from tpullm.model import transformer  # noqa: E402
from tpullm.model.architecture import Architecture  # noqa: E402
from tpullm.model.mesh import make_mesh  # noqa: E402
from tpullm.model.rows import put  # noqa: E402
from tpullm.training.step import batch_loss  # noqa: E402


def computed(kernel: str, remat: str, shape: dict[str, int]) -> list[np.ndarray]:
    """The loss and the gradients of the parameters."""
    transformer.attention_kernel = lambda *_: kernel
    architecture = Architecture(dataclasses.replace(CONFIG, remat=remat, sinks=True, attention_softcap=3.0))
    mesh = make_mesh(shape, jax.devices()[: 8 if shape else 1])
    tree = jax.tree.map(np.asarray, params(architecture=architecture))
    with jax.set_mesh(mesh):
        tree = jax.device_put(tree, architecture.shardings(mesh))
        loss = lambda tree, rows: batch_loss(architecture, tree, rows, dtype=jnp.float32)[0]  # noqa: E731
        found = jax.jit(jax.value_and_grad(loss))(tree, put(mesh, batch()))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


if __name__ == "__main__":
    expected, differences = computed("plain", "none", {}), {}
    for remat in ("none", "save_attention"):
        found = computed("triton", remat, {"data": 1, "fsdp": 4, "tensor": 2})
        differences[remat] = max(
            float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, expected, strict=True)
        )
    print(json.dumps(differences))
