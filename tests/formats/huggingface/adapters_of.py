"""An adapter of each small model, whose numbers are a function of their names; `python -m` records PEFT's logits.

python -m tests.formats.huggingface.adapters_of      needs the extra `hf`
"""

import functools
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np

from tests.formats.huggingface.record import PLACES
from tests.formats.huggingface.small import MODELS, OF_FAMILIES, as_ours, published, rows, weight
from tests.training.small import mesh
from tpullm.formats.huggingface import adapters, tensors
from tpullm.model.adapter import with_magnitudes
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import AdapterConfig

FILE = Path(__file__).parent / "recorded_adapters.npz"


@functools.cache
def made(name: str, magnitude: bool = True, root_scale: bool = False):
    """Our architecture with an adapter, its family, all parameters, and the adapter's alone by flat name.

    Experts have none: PEFT has another form for those.
    """
    model_type, keys = MODELS[name]
    plain, family, found = published({"model_type": model_type, **keys})
    params, shapes = as_ours(plain, family, found), tensors.flat(plain.shapes)
    parts = {
        part.rpartition(".")[2] for module in adapters.modules_with_adapters(family, shapes, 1) for part in module.ours
    }
    config = AdapterConfig(2, 3.0, root_scale, magnitude, targets=tuple(sorted(parts)))
    architecture = Architecture(plain.config, config)
    wanted = tensors.flat(architecture.trained(architecture.shapes))
    arrays = {key: weight(key, leaf.shape, 0.0) for key, leaf in wanted.items()}
    with jax.set_mesh(mesh()):
        noisy = jax.device_get(jax.jit(with_magnitudes)(params, jax.tree.map(jnp.asarray, tensors.nested(arrays))))
    flat = {key: array * 1.1 if key.endswith("magnitude") else array for key, array in tensors.flat(noisy).items()}
    assert not (plain.config.experts and any(".mlp." in key for key in flat))
    return architecture, family, architecture.whole(tensors.nested(flat), params), flat


def written(folder: Path, name: str) -> None:
    """Write the adapter of a model in the format of PEFT."""
    architecture, family, _, flat = made(name)
    adapters.write(folder, family, flat, architecture.adapter, tensors.flat(architecture.shapes), "base")


def main() -> None:
    """Needs the extra `hf`."""
    import peft
    import torch

    from tests.formats.huggingface.test_parity import theirs

    found = {}
    for name in OF_FAMILIES:
        with TemporaryDirectory() as folder, torch.no_grad():
            written(Path(folder), name)
            model = peft.PeftModel.from_pretrained(theirs(name), folder).eval()
            logits = model(input_ids=torch.from_numpy(rows(1)[:, :-1]).long()).logits
            found[name] = logits[0, list(PLACES)].numpy()
    np.savez_compressed(FILE, **found)
    print(f"{FILE}: {len(found)} models, peft {peft.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
