"""Run in its own process with 8 CPU devices: float8 matmuls on each mesh beside those of one device, as JSON.

For each matmul and mesh: whether codes and scales have the same bits; the largest errors of the output and of the
gradients, relative to the largest number; and how many collectives there are, beside those without float8.
"""

import json
import os
import re
from functools import partial

from tests.conftest import QUICK_TO_COMPILE

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"

import jax  # noqa: E402 (the devices must be asked for before)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402

from tpullm.model import fp8  # noqa: E402
from tpullm.model.linear import matmul  # noqa: E402
from tpullm.model.mesh import RULES, make_mesh  # noqa: E402
from tpullm.model.quantized import gathered  # noqa: E402

MATMULS = {  # subscripts -> shapes, logical axes of the weight, of the input and of the output
    "btd,df->btf": ((16, 64, 32), (32, 64), ("embed", "mlp"), ("width",), ("mlp",)),
    "btd,dnh->btnh": ((16, 64, 32), (32, 4, 8), ("embed", "heads", "head"), ("width",), ("heads", "head")),
    "btnh,nhd->btd": ((16, 64, 4, 8), (4, 8, 32), ("heads", "head", "embed"), ("heads", "head"), ("width",)),
}
MESHES = {
    "fsdp 8": {"fsdp": 8},
    "fsdp 4, tensor 2": {"fsdp": 4, "tensor": 2},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence 4, fsdp 2": {"sequence": 4, "fsdp": 2},
    "expert 2, sequence 2, tensor 2": {"expert": 2, "sequence": 2, "tensor": 2},
}


def of(subscripts: str, mesh) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Codes and scales of the three operands; the output and both gradients; the collectives of each type of matmul."""
    x_shape, shape, axes, inputs, outputs = MATMULS[subscripts]
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(of, np.float32) for of in (x_shape, shape))
    cotangent = np.einsum(subscripts, x, weight) * 2.0 ** random.uniform(-8, 8, (*x_shape[:2], *[1] * len(outputs)))
    in_spec, out_spec = RULES.spec("batch", "time", *inputs), RULES.spec("batch", "time", *outputs)

    def codes(x, weight, cotangent):
        whole = gathered(weight, *axes, dtype=x.dtype)
        return fp8.of_tokens(x, fp8.E4M3), fp8.of_matrix(whole), fp8.of_tokens(cotangent, fp8.E5M2)

    def products(matmuls, x, weight, cotangent):
        out, back = jax.vjp(lambda x, w: matmul(subscripts, axes, matmuls, "float32", out_spec, x, w), x, weight)
        return out, *back(cotangent)

    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(jnp.asarray(array, jnp.float32), NamedSharding(mesh, spec))
            for array, spec in ((x, in_spec), (weight, RULES.spec(*axes)), (cotangent, out_spec))
        ]
        programs = [jax.jit(partial(products, matmuls)).lower(*placed).compile() for matmuls in ("compute", "fp8")]
        collectives = [len(re.findall(r" (?:all-reduce|all-gather|reduce-scatter)\(", of.as_text())) for of in programs]
        return *jax.tree.map(np.asarray, (jax.jit(codes)(*placed), programs[1](*placed))), collectives


def main() -> None:
    results = {}
    for subscripts in MATMULS:
        codes, numbers, _ = of(subscripts, make_mesh({}, jax.devices()[:1]))
        for name, shape in MESHES.items():
            codes_there, numbers_there, collectives = of(subscripts, make_mesh(shape))
            both = zip(jax.tree.leaves(codes), jax.tree.leaves(codes_there), strict=True)
            far = [
                np.abs(one - other).max() / np.abs(one).max() for one, other in zip(numbers, numbers_there, strict=True)
            ]
            same = all(one.tobytes() == other.tobytes() for one, other in both)
            found = {"codes": same, "far": [float(error) for error in far], "collectives": collectives}
            results[f"{subscripts}, {name}"] = found
    print(json.dumps(results))


if __name__ == "__main__":
    main()
