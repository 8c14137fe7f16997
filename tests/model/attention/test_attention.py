"""Every form of attention is plain attention: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import batch, mesh
from tpullm.model.attention import flash, kernels
from tpullm.model.attention.kernels import attention_kernel
from tpullm.model.attention.plain import attend, causal_mask
from tpullm.model.attention.splash import splash
from tpullm.model.mesh import named_sharding
from tpullm.recipe.schema import ModelConfig

WINDOW, SOFTCAP = 40, 3.0
EVERYTHING = {"window": WINDOW, "softcap": SOFTCAP, "sinks": True}
F32, BF16 = jnp.float32, jnp.bfloat16
# Softmax and sums over up to 256 keys in another order: some roundings of 6e-8, or of 4e-3 in bfloat16.
TOLERANCES = {F32: 4e-6, BF16: 3e-2}


def compared(kernel, heads, groups, dtype, length=32, width=8, window=0, softcap=0.0, sinks=False, gradients=True):
    """Values and gradients of `kernel` and of `attend`, on rows of two documents and padding."""
    b = batch(rows=2, length=length)
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(2, length, heads, width), *[(2, groups, length, width)] * 2, (2, length, heads, width)]
    arrays = [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=False)]
    sinks_N = jax.random.normal(keys[4], (heads,)) if sinks else None

    def both(attention, q, k, v, cotangent, sinks_N, segments, positions):
        mask = causal_mask(segments, positions, segments, positions, window or None)
        # The output of padding is not compared: kernels differ in what it attends to.
        real = (segments > 0)[:, :, None, None]
        if not gradients:
            return (attention(q, k, v, mask, sinks_N) * real,)
        mixed, back = jax.vjp(lambda q, k, v, s: attention(q, k, v, mask, s) * real, q, k, v, sinks_N)
        return mixed, *[gradient for gradient in back(cotangent) if gradient is not None]

    with jax.set_mesh(mesh()):
        queries = named_sharding(mesh(), "batch", "time", "heads", "head")
        everywhere = named_sharding(mesh(), "batch", "kv_heads", None, "head")
        arrays = jax.device_put(arrays, [queries, everywhere, everywhere, queries])
        rows = jax.device_put((b.segment_ids, b.positions), named_sharding(mesh(), "batch", "time"))
        given = (*arrays, sinks_N, *rows)
        whole = lambda q, k, v, mask, s: attend(q, k, v, mask, softcap, s)[0]  # noqa: E731
        ours = jax.jit(lambda *given: both(lambda *five: kernel(*five, *given[-2:]), *given))(*given)
        return ours, jax.jit(lambda *given: both(whole, *given))(*given)


def assert_equal(ours, plain, dtype, tolerance):
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype and one.dtype in (dtype, jnp.float32)
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    ("heads", "groups", "dtype", "block"),
    [
        (4, 2, BF16, 16),
        (3, 1, F32, 8),
        *(pytest.param(*of, F32, 16, marks=pytest.mark.slow) for of in ((4, 2), (4, 4))),
    ],
)
def test_blocks_equal_plain_attention(monkeypatch, block, heads, groups, dtype):
    monkeypatch.setattr(flash, "query_block", lambda length: block)

    def kernel(q, k, v, mask, sinks, segments, positions):
        return flash.attend_in_blocks(q, k, v, mask)

    assert_equal(*compared(kernel, heads, groups, dtype), dtype, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("heads", "groups", "dtype", "case"),
    [
        (4, 2, F32, EVERYTHING),
        (3, 1, F32, {"window": WINDOW}),
        *(pytest.param(4, 2, *case, marks=pytest.mark.slow) for case in ((F32, {}), (BF16, EVERYTHING))),
    ],
)
def test_flash_equals_plain_attention(monkeypatch, case, heads, groups, dtype):
    monkeypatch.setattr(flash, "MOST", 24)  # of 120 tokens: five blocks
    window = jnp.asarray(case.get("window") or 2**30, jnp.int32)

    def kernel(q, k, v, mask, sinks, segments, positions):
        return flash.flash(q, k, v, segments, positions, window, case.get("softcap", 0.0), sinks)

    assert_equal(*compared(kernel, heads, groups, dtype, length=120, **case), dtype, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("options", "block", "gradients"),
    [
        (EVERYTHING, 128, False),
        pytest.param(EVERYTHING, 128, True, marks=pytest.mark.ci),
        pytest.param({}, 0, True, marks=pytest.mark.slow),
    ],
)
def test_splash_equals_plain_attention(options, block, gradients):
    """The TPU's kernel, interpreted, in one block or two; with two kinds of layers, of which this is the second."""
    windows = sorted({0, options.get("window", 0)})
    kind = jnp.asarray(len(windows) - 1, jnp.int32)

    def kernel(q, k, v, mask, sinks, segments, positions):
        return splash(q, k, v, segments, windows, kind, options.get("softcap", 0.0), sinks, block)

    compare = compared(kernel, 4, 2, jnp.float32, length=256, width=128, gradients=gradients, **options)
    assert_equal(*compare, jnp.float32, 2e-5)  # interpreted, it multiplies in blocks of 128: more roundings


def test_blocks_of_queries_divide_the_row_and_hold_at_least_128():
    for length in (1, 100, 128, 256, 384, 1000, 1024, 4096):
        block = kernels.query_block(length)
        assert length % block == 0 and (block >= 128 or block == length)
    assert kernels.query_block(4096) == 512


def test_one_function_chooses(monkeypatch):
    def chosen(on, length=2048, sequence=1, branched=False, **config):
        monkeypatch.setattr(kernels, "target_platform", lambda: on)
        return attention_kernel(ModelConfig(**config), length, sequence, branched)

    assert chosen("cpu") == "blocks" and chosen("cpu", sinks=True) == "plain"
    assert chosen("cpu", length=4096) == "blocks" and chosen("cpu", length=4097) == "flash"
    assert chosen("cpu", attention_softcap=50.0) == "plain"
    assert chosen("cpu", length=131_072) == chosen("cpu", sequence=4) == "flash"
    assert chosen("tpu") == chosen("tpu", attention_softcap=50.0, sinks=True, sequence=4) == "splash"
    assert chosen("tpu", length=300) == chosen("tpu", length=512, sequence=4) == "flash"
    for on in ("cpu", "gpu", "tpu"):
        assert {chosen(on, length, branched=True) for length in (300, 2048, 8192)} <= {"flash", "blocks"}
    assert chosen("gpu") == chosen("gpu", attention_softcap=50.0, sinks=True, sequence=4, head_width=256) == "triton"
    assert chosen("gpu", length=48) == chosen("gpu", length=96, sequence=3) == "triton"
    assert chosen("gpu", length=40) == chosen("gpu", length=48, sequence=3) == chosen("gpu", head_width=512) == "flash"
