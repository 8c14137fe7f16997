"""Which model an exported adapter is beside: some numbers of its matrices, kept in the adapter's folder.

Another model of the same shapes would compute nonsense with the adapter, and nothing else would say so. Numbers are
kept and no hash, because the same model may be stored in another type.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm import storage
from tpullm.errors import UserError
from tpullm.tokenizer.json_files import read_json

FILE = "base.json"  # beside `adapter_config.json`; PEFT does not read it
COUNT = 16  # numbers of a matrix
# bfloat16 rounds by up to 2^-8 of a number, float16 by 2^-11; both may have happened.
TOLERANCE = 0.005


def sampled(matrix: jax.Array | np.ndarray) -> list[float]:
    """Numbers of a matrix `[L, ...]`, at places that are spread over all of its layers."""
    places = np.unravel_index(np.linspace(0, matrix.size - 1, COUNT).astype(np.int64), matrix.shape)
    if isinstance(matrix, jax.Array):
        with jax.set_mesh(matrix.sharding.mesh):
            matrix = jax.jit(lambda of: of.at[places].get(out_sharding=jax.sharding.PartitionSpec(None)))(matrix)
        return np.asarray(matrix, np.float32).tolist()
    return matrix[places].astype(np.float32).tolist()


def matrices(flat: Mapping[str, object]) -> list[str]:
    """The names of the matrices of layers among flat names of parameters; no family stores them in another form."""
    return [name for name in sorted(flat) if name.startswith("layers.") and name.endswith(".weight")]


def write(folder: Path, numbers: Mapping[str, list[float]]) -> None:
    """Note the numbers of each matrix of the base."""
    storage.write_json(folder / FILE, {"numbers": dict(numbers)})


def check(folder: Path, flat: Mapping[str, Any], sample: Callable[[Any], tuple[list[float], float]]) -> None:
    """Refuse a base whose parameters are others than those that are noted; without a note any is taken.

    Args:
        flat: parameters by flat name.
        sample: of a matrix, what `sampled` gives, and by how much these may differ from those of the base.

    Raises:
        UserError: a number is another one, or the note is none.
    """
    if not (folder / FILE).is_file():
        return
    noted = read_json(folder / FILE).get("numbers")
    for name in matrices(flat):
        wanted = noted.get(name) if isinstance(noted, dict) else None
        numeric = isinstance(wanted, list) and all(type(one) in (int, float) and abs(one) < 1e30 for one in wanted)
        if not numeric or len(wanted) != COUNT:
            raise UserError(f"{folder / FILE}: has no numbers of {name}; export the adapter again")
        found, most = sample(flat[name])
        if not np.allclose(found, wanted, rtol=TOLERANCE, atol=1e-7 + most):
            raise UserError(
                f"{folder}: is an adapter of another model of the same shape ({name} has other numbers); give its base"
            )
