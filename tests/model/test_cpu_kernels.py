"""The kernels of packed matmuls are compiled once for a processor, and not in each process."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.small import mesh
from tpullm.model import cpu_code, cpu_kernels, packing


def test_a_second_process_compiles_no_kernel_and_has_the_same_bits(tmp_path, monkeypatch):
    """A second process has nothing of the first but the cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled, registered, compile_one, register = [], [], cpu_code._compiled, jax.ffi.register_ffi_target
    monkeypatch.setattr(cpu_code, "_compiled", lambda text: compiled.append(text) or compile_one(text))

    def registered_anew(name, *others, **named):
        registered.append(f"{name}_{len(registered)}")
        register(registered[-1], *others, **named)

    monkeypatch.setattr(jax.ffi, "register_ffi_target", registered_anew)
    for _ in range(2):
        for _ in range(2):
            name = cpu_kernels.target_name.__wrapped__(16, 2, False, "kept")
        cpu_code._ENGINES[len(registered)] = cpu_code._ENGINES.pop(name)  # another process has none
    assert sum("@kept_matmul" in text for text in compiled) == 1 and len(registered) == 2

    found = []
    with jax.set_mesh(mesh()):
        place = lambda array: jax.device_put(array, jax.NamedSharding(mesh(), jax.P(None, None)))  # noqa: E731
        numbers = np.random.default_rng(7).standard_normal((48, 64)).astype(np.float32)
        matrix = packing.packed_params(
            {"head": place(numbers).astype(jnp.bfloat16)}, {"head": ("vocabulary", "embed")}
        )["head"]
        x = place(np.random.default_rng(8).standard_normal((3, 64)).astype(np.float32))[:, None]
        for name in registered:
            monkeypatch.setattr(cpu_kernels, "target_name", lambda *_, name=name: name)
            found.append(np.asarray(jax.jit(lambda x, matrix: matrix.matmul(x, jax.P()))(x, matrix)))
    np.testing.assert_array_equal(*found)
    wanted = (
        np.asarray(x.astype(jnp.bfloat16), np.float32)[:, 0] @ np.asarray(numbers.astype(jnp.bfloat16), np.float32).T
    )
    np.testing.assert_allclose(found[0][:, 0], wanted, atol=2e-5)
