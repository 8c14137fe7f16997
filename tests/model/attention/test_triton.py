"""The GPU's kernel, interpreted, is plain attention; and it skips what no query attends to."""

import dataclasses
import functools
from collections import Counter, namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.small import CONFIG, batch, mesh, params
from tpullm.model import transformer
from tpullm.model.architecture import Architecture
from tpullm.model.attention.plain import attend, causal_mask
from tpullm.model.attention.triton import triton_attention
from tpullm.model.mesh import named_sharding
from tpullm.training.step import batch_loss

FAR = 2**30  # a window that holds every row


# Shapes and what the kernel is compiled for. The blocks of float32 are 16 queries by 16 or 32 keys.
Case = namedtuple("Case", "rows length heads groups width softcap sinks")
# Each pair of: one row and two; lengths of whole blocks and not; groups of 1, 2 and 3 heads; widths of a power of two
# and not; with and without a soft cap; with and without sinks.
CASES = [
    Case(2, 80, 4, 2, 24, 3.0, True),
    Case(1, 96, 2, 2, 16, 0.0, True),
    Case(2, 96, 3, 1, 16, 3.0, False),
    Case(1, 80, 3, 1, 40, 0.0, False),
    Case(1, 48, 4, 2, 32, 3.0, True),
    Case(2, 48, 2, 2, 24, 0.0, False),
    Case(2, 16, 3, 1, 8, 0.0, True),
    Case(1, 112, 2, 2, 40, 3.0, False),
]


MARKS = [[], pytest.mark.ci, pytest.mark.ci, pytest.mark.slow]


def named(case: tuple) -> str:
    """For the report of the tests."""
    return "-".join(map(str, case))


def rows_of(lengths: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions `[B, T]` of documents of these lengths, cut at the end of the row, and padding."""
    segments, positions = (np.zeros((len(lengths), length), np.int32) for _ in range(2))
    for row, sizes in enumerate(lengths):
        begins = np.cumsum([0, *sizes])
        for number, (begin, size) in enumerate(zip(begins, sizes, strict=False), start=1):
            end = min(begin + size, length)
            segments[row, begin:end], positions[row, begin:end] = number, np.arange(max(end - begin, 0))
    return segments, positions


def values_and_gradients(attention):
    """A function of queries, keys, values, the cotangent, sinks, segments, positions and the window."""

    def both(q, k, v, cotangent, sinks, segments, positions, window):
        # The output of padding is not compared: kernels differ in what it attends to.
        real = (segments > 0)[:, :, None, None]
        mixed = lambda q, k, v, sinks: jnp.where(real, attention(q, k, v, sinks, segments, positions, window), 0)  # noqa: E731
        out, back = jax.vjp(mixed, q, k, v, sinks)
        return out, *[gradient for gradient in back(cotangent) if gradient is not None]

    return jax.jit(both)


@functools.cache
def compiled(softcap: float):
    """Our kernel and plain attention, of one soft cap."""

    def ours(q, k, v, sinks, segments, positions, window):
        return triton_attention(q, k, v, positions, window, softcap, sinks)

    def plain(q, k, v, sinks, segments, positions, window):
        mask = causal_mask(segments, positions, segments, positions, window)
        return attend(q, k, v, mask, softcap, sinks)[0]

    return values_and_gradients(ours), values_and_gradients(plain)


def arrays_of(case: Case, seed: int):
    """Queries, keys, values, the cotangent and sinks."""
    random = np.random.default_rng(seed)
    queries = case.rows, case.length, case.heads, case.width
    keys = case.rows, case.groups, case.length, case.width
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in (queries, keys, keys, queries)]
    return *arrays, random.standard_normal(case.heads).astype(np.float32) if case.sinks else None


def placed(arrays, rows, window):
    queries = named_sharding(mesh(), "batch", "time", "heads", "head")
    keys = named_sharding(mesh(), "batch", "kv_heads", None, "head")
    q, k, v, cotangent, sinks = arrays
    tokens = jax.device_put(rows, named_sharding(mesh(), "batch", "time"))
    moved = jax.device_put((q, k, v, cotangent), (queries, keys, keys, queries))
    sinks = sinks if sinks is None else jax.device_put(sinks, named_sharding(mesh(), "heads"))
    return *moved, sinks, *tokens, jnp.asarray(window, jnp.int32)


def assert_close(found, expected, tolerance):
    """Relative to the scale of each array: its greatest number, and at least 1, the scale of what it is made of.

    A query that attends to one key has the gradient 0, the difference of two equal numbers of about that scale.
    """
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        assert np.abs(one - other).max() <= tolerance * max(np.abs(other).max(), 1)


@pytest.fixture(scope="module", autouse=True)
def first_case():
    """The programs of the first case, for the tests that share them."""
    with jax.set_mesh(mesh()):
        for function in compiled(CASES[0].softcap):
            function(*placed(arrays_of(CASES[0], 0), rows_of([[30], [50]], CASES[0].length), FAR))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=MARKS[min(n, 3)]) for n, case in enumerate(CASES)], ids=named
)
def test_the_kernel_is_plain_attention(case):
    """Values and all gradients, of 15 rows of each case: any documents, padding and window.

    Float32: softmax and sums over up to 112 keys in another order, some roundings of 6e-8; the powers of two add the
    rounding of exponents up to 20. Together 5e-6 at most.
    """

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(
        lengths=st.lists(st.lists(st.integers(1, 60), max_size=6), min_size=case.rows, max_size=case.rows),
        window=st.one_of(st.integers(1, 64), st.just(FAR)),
        seed=st.integers(0, 2**31),
    )
    def holds(lengths, window, seed):
        given = placed(arrays_of(case, seed), rows_of(lengths, case.length), window)
        ours, plain = (function(*given) for function in compiled(case.softcap))
        assert_close(ours, plain, 5e-6)

    with jax.set_mesh(mesh()):
        holds()


@pytest.mark.ci
def test_bfloat16_is_float32_up_to_its_rounding():
    """Against plain attention in float32 of the same rounded arrays: weights, their gradients and the results are
    rounded by up to 2^-9 (0.002) each, and the inner product of the softmax's gradient uses the rounded values."""
    as_type = lambda dtype, arrays: [x if x is None else jnp.asarray(x, dtype) for x in arrays]  # noqa: E731
    *arrays, sinks = arrays_of(CASES[0], 0)
    arrays, rows = as_type(jnp.bfloat16, arrays), rows_of([[30, 41], [50, 3, 20]], CASES[0].length)
    ours, plain = compiled(CASES[0].softcap)
    with jax.set_mesh(mesh()):
        found = ours(*placed((*arrays, sinks), rows, 40))
        expected = plain(*placed((*as_type(jnp.float32, arrays), sinks), rows, 40))
    assert {x.dtype.name for x in found[:4]} == {"bfloat16"}
    assert_close(found, expected, 1e-2)


def test_blocks_that_no_query_attends_to_are_not_read():
    """NaN in a block would reach all that multiplies it, even with a weight of 0.

    Documents of 32, 64 and 32 tokens, whole blocks each: with NaN in the first and the last, the second is the same.
    """
    case = Case(1, 128, 2, 1, 16, 0.0, False)
    q, k, v, cotangent, _ = arrays_of(case, 0)
    rows, of = rows_of([[32, 64, 32]], 128), slice(32, 96)
    poisoned = [x.copy() for x in (q, k, v, cotangent)]
    for x, axis in zip(poisoned, (1, 2, 2, 1), strict=True):
        np.moveaxis(x, axis, 0)[[*range(32), *range(96, 128)]] = np.nan
    ours, _ = compiled(0.0)
    with jax.set_mesh(mesh()):
        clean, found = (ours(*placed((*arrays, None), rows, FAR)) for arrays in ((q, k, v, cotangent), poisoned))
    for one, other, axis in zip(found, clean, (1, 1, 2, 2), strict=True):
        one, other = (np.moveaxis(np.asarray(x), axis, 0) for x in (one, other))
        np.testing.assert_array_equal(one[of], other[of])
        assert not np.isfinite(one[:32]).any() and not np.isfinite(one[96:]).any()


def loss_of(monkeypatch, kernel: str, remat: str):
    monkeypatch.setattr(transformer, "attention_kernel", lambda *_: kernel)
    config = dataclasses.replace(CONFIG, remat=remat, sinks=True, attention_softcap=3.0)
    architecture = Architecture(config)
    return architecture, lambda tree: batch_loss(architecture, tree, batch(), dtype=jnp.float32)[0]


@pytest.mark.ci
def test_the_model_has_the_loss_and_the_gradients_of_plain_attention(monkeypatch):
    """Float32: 1e-5 of each gradient's norm is some hundred roundings."""
    with jax.set_mesh(mesh()):
        found = {}
        for kernel in ("triton", "plain"):
            architecture, loss = loss_of(monkeypatch, kernel, "save_attention")
            found[kernel] = jax.jit(jax.value_and_grad(loss))(params(architecture=architecture))
    np.testing.assert_allclose(found["triton"][0], found["plain"][0], rtol=1e-6)
    for one, other in zip(*(jax.tree.leaves(found[kernel][1]) for kernel in ("triton", "plain")), strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)


def test_save_attention_keeps_the_output_and_the_sum_of_each_query(monkeypatch):
    """So the backward pass does not run the forward kernel again."""
    kept, kernels = {}, {}
    for policy in ("full", "save_attention"):
        architecture, loss = loss_of(monkeypatch, "triton", policy)
        tree = architecture.placed(mesh())
        with jax.set_mesh(mesh()):
            kept[policy] = Counter()
            for value in jax.make_jaxpr(lambda tree: jax.vjp(loss, tree)[1])(tree).out_avals:  # noqa: B023
                kept[policy][value.dtype.name] += value.size
            kernels[policy] = str(jax.make_jaxpr(jax.grad(loss))(tree)).count("pallas_call[")
    rows = CONFIG.layers * batch().inputs.size
    each = CONFIG.heads * CONFIG.head_width + CONFIG.heads
    assert kept["save_attention"] == kept["full"] + Counter(float32=rows * each)
    # The forward kernel twice or once, and the two of gradients. JAX 0.10 drops no kernel whose results nobody uses.
    old = jax.__version__.startswith("0.10.")
    assert kernels == {"full": 4, "save_attention": 4 if old else 3}
