"""The GPU's grouped matmul, interpreted, is each row times the matrix of its group; rows of no group are not read."""

import functools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, PartitionSpec

from tests.model.attention.test_triton import named
from tests.training.small import EXPERTS, mesh
from tpullm.model.experts import grouped
from tpullm.model.experts.moe import MixtureOfExperts
from tpullm.model.experts.triton import tile_visits, triton_grouped_matmul
from tpullm.model.mesh import planned_mesh

# Input and output width. The tiles of float32 are 64 rows by 64 columns, 16 at a time.
Case = namedtuple("Case", "rows inputs outputs groups")
# Whole tiles and not, in each dimension; more tiles of rows than run side by side; widths of an adapter.
CASES = [Case(150, 40, 72, 5), Case(600, 16, 24, 3), Case(37, 70, 8, 4)]
WHOLE = [Case(128, 64, 64, 2), Case(16, 8, 16, 1)]


@functools.cache
def compiled():
    """A function of rows, matrices, sizes and the gradient of the result: the result, and both gradients."""

    def both(x_MD, weight_EDF, sizes_E, d_MF):
        out, back = jax.vjp(lambda x, weight: triton_grouped_matmul(x, weight, sizes_E), x_MD, weight_EDF)
        return out, *back(d_MF)

    # JAX interprets no kernel where it checks along which axes arrays vary.
    whole = PartitionSpec()
    return jax.jit(jax.shard_map(both, in_specs=(whole,) * 4, out_specs=(whole,) * 3, check_vma=False))


def arrays_of(case: Case, seed: int):
    random = np.random.default_rng(seed)
    shapes = (case.rows, case.inputs), (case.groups, case.inputs, case.outputs), (case.rows, case.outputs)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def by_hand(x_MD, weight_EDF, sizes_E, d_MF):
    """A group at a time, in float64; of rows of no group NaN."""
    x_MD, weight_EDF, d_MF = (np.asarray(x, np.float64) for x in (x_MD, weight_EDF, d_MF))
    out_MF, dx_MD, dweight_EDF = np.full(d_MF.shape, np.nan), np.full(x_MD.shape, np.nan), np.zeros(weight_EDF.shape)
    for group, end in enumerate(np.cumsum(sizes_E)):
        rows = slice(end - sizes_E[group], end)
        out_MF[rows], dx_MD[rows] = x_MD[rows] @ weight_EDF[group], d_MF[rows] @ weight_EDF[group].T
        dweight_EDF[group] = x_MD[rows].T @ d_MF[rows]
    return out_MF, dx_MD, dweight_EDF


def computed(x_MD, weight_EDF, sizes_E, d_MF):
    """The result and both gradients; in rows of no group there is NaN, in the operands and where nothing is written."""
    x_MD, d_MF, used = np.array(x_MD), np.array(d_MF), sum(sizes_E)
    x_MD[used:] = d_MF[used:] = np.nan
    with jax.set_mesh(mesh()):
        return [np.asarray(x) for x in compiled()(x_MD, weight_EDF, np.asarray(sizes_E, np.int32), d_MF)]


def assert_close(found, expected, tolerance):
    """Relative to the scale of each array, its greatest number; NaN is where it is expected."""
    for one, other in zip(found, expected, strict=True):
        scale = np.nanmax(np.abs(other), initial=1.0)
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=tolerance * scale)


def sizes_of(case: Case):
    """Sizes of groups with a sum of at most all rows: borders anywhere, so some are empty and some rows left over."""
    borders = st.lists(st.integers(0, case.rows), min_size=case.groups, max_size=case.groups)
    return borders.map(lambda ends: np.diff(sorted(ends), prepend=0).tolist())


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in WHOLE)], ids=named)
def test_it_is_each_row_times_the_matrix_of_its_group(case):
    """Also of empty groups and of one with all rows.

    Float32 against float64: sums of up to 600 numbers, with a rounding of 6e-8 each, add up to 5e-6 at most.
    """

    def holds(sizes, seed):
        x_MD, weight_EDF, d_MF = arrays_of(case, seed)
        assert_close(computed(x_MD, weight_EDF, sizes, d_MF), by_hand(x_MD, weight_EDF, sizes, d_MF), 5e-6)

    settings(max_examples=12, deadline=None, derandomize=True)(given(sizes_of(case), st.integers(0, 2**31))(holds))()
    for group in {0, case.groups - 1}:
        holds([case.rows if group == other else 0 for other in range(case.groups)], 0)
    holds([0] * case.groups, 0)


def test_bfloat16_is_float32_up_to_its_rounding():
    """Of the same rounded arrays: sums are in float32, so only the results are rounded, by up to 2^-9."""
    sizes, case = [70, 0, 41, 30, 3], CASES[0]
    x_MD, weight_EDF, d_MF = (np.asarray(x, jnp.bfloat16) for x in arrays_of(case, 0))
    found = computed(x_MD, weight_EDF, sizes, d_MF)
    assert {x.dtype.name for x in found} == {"bfloat16"}
    for one, other in zip(found, by_hand(x_MD, weight_EDF, sizes, d_MF), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=2**-8, atol=1e-6 * np.nanmax(np.abs(other)))


def test_rows_and_matrices_of_other_groups_are_not_read():
    """NaN would reach all that multiplies it, even with a weight of 0: it stays in its own group."""
    sizes = [50, 40, 60]
    x_MD, weight_EDF, d_MF = arrays_of(Case(150, 40, 72, 3), 0)
    clean = computed(x_MD, weight_EDF, sizes, d_MF)
    x_MD[50:90] = d_MF[50:90] = weight_EDF[1] = np.nan
    found = computed(x_MD, weight_EDF, sizes, d_MF)
    others = np.r_[0:50, 90:150]
    for one, other, kept in zip(found, clean, (others, others, [0, 2]), strict=True):
        np.testing.assert_array_equal(one[kept], other[kept])
    assert np.isnan(found[0][50:90]).all() and np.isnan(found[1][50:90]).all() and np.isnan(found[2][1]).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes_of(Case(200, 0, 0, 4)), st.sampled_from([16, 32]))
def test_each_row_of_a_group_is_visited_once_and_no_tile_for_nothing(sizes, tile):
    of, visited = jax.jit(tile_visits, static_argnums=(1, 2))(np.asarray(sizes, np.int32), 200, tile), []
    for group, first, begin, end in np.stack(of, axis=1).tolist():
        own = [row for row in range(first, first + tile) if begin <= row < end]
        assert first % tile == 0 and (own or begin == end) and group < 4  # also of visits without rows: it is read
        visited += [(row, group) for row in own]
    assert visited == list(enumerate(np.repeat(np.arange(4), sizes)))


def test_the_kernel_of_each_platform():
    found = {}
    for platform in ("cpu", "gpu", "tpu"):
        with jax.sharding.use_abstract_mesh(planned_mesh({}, 1, AbstractDevice("any", 1, platform))):
            found[platform] = grouped.grouped_kernel()
    assert found == {"cpu": "ragged_dot", "gpu": "triton", "tpu": "ragged_dot"}


@pytest.mark.ci
def test_a_mixture_with_the_kernel_is_that_without_it(monkeypatch):
    """The output and the gradients of tokens and parameters: 1e-5 of the largest is some hundred float32 roundings."""
    # On one device nothing is lost by not checking along which axes arrays vary: sums over them are of one number.
    monkeypatch.setattr(jax, "shard_map", functools.partial(jax.shard_map, check_vma=False))
    config, random, found = EXPERTS.config, np.random.default_rng(0), {}
    x_BTD, d_BTD = random.standard_normal((2, 3, 50, config.width)).astype(np.float32)
    with jax.set_mesh(mesh()):
        graph, state = nnx.split(MixtureOfExperts(config, nnx.Rngs(0)))
        for kernel in ("triton", "ragged_dot"):
            monkeypatch.setattr(grouped, "grouped_kernel", lambda kernel=kernel: kernel)
            loss = lambda state, x: jnp.sum(nnx.merge(graph, state)(x)[0] * d_BTD)  # noqa: E731
            text = str(jax.make_jaxpr(jax.grad(loss))(state, x_BTD))
            assert ("grouped_matmul_weights" in text) == (kernel == "triton")
            found[kernel] = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(state, x_BTD))
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
