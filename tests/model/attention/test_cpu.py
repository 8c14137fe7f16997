"""Attention by LLVM's code: that of float64, whatever rows and blocks there are beside."""

import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.small import mesh
from tpullm.model.attention import cpu

R, K, G, H, BLOCKS = 5, 3, 2, 64, (32, 48, 64)
SLOTS = np.array([[0], [31], [77], [143], [1000]], np.int32)  # the last is in no block


def placed(array):
    whole = jax.device_put(array, jax.NamedSharding(mesh(), jax.P(*[None] * array.ndim)))
    return whole if array.dtype == np.int32 else whole.astype(jnp.bfloat16)


def given(seed=0):
    """Queries, and keys and values of each block."""
    rng = np.random.default_rng(seed)
    made = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return made(R, 1, K * G, H) * 3, [(made(R, K, S, H) * 2, made(R, K, S, H)) for S in BLOCKS]


def attended(q, blocks, slots, window):
    with jax.set_mesh(mesh()):
        attend = jax.jit(lambda *of: cpu.attend_to_slots(*of, window))
        out = attend(placed(q), [tuple(map(placed, pair)) for pair in blocks], placed(slots))
        return np.asarray(out.astype(jnp.float32))


def wanted(q, blocks, slots, window):
    q, *both = (np.asarray(placed(array).astype(jnp.float32), np.float64) for array in (q, *sum(blocks, ())))
    k, v = (np.concatenate(both[n::2], axis=2) for n in range(2))
    scores = np.einsum("rkgh,rksh->rkgs", q.reshape(R, K, G, H), k) * H**-0.5
    place = np.arange(k.shape[2])
    seen = (place <= slots) & (place > slots - (window or 10_000))
    raised = np.where(seen[:, None, None], np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    weights = raised / np.maximum(raised.sum(axis=-1, keepdims=True), 1e-300)
    return np.einsum("rkgs,rksh->rkgh", weights, v).reshape(R, 1, K * G, H) * (slots < sum(BLOCKS))[:, :, None, None]


@functools.cache
def plain_target(*of):
    """The kernel of a processor that lacks instructions for short types."""
    return target(*of, fast=False)


target = cpu._target


@pytest.mark.parametrize("sizes", [(3, 2, 64), (1, 4, 256), (2, 1, 32)])
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("plain", [False, True])
def test_it_is_the_attention_of_float64(sizes, window, plain, monkeypatch):
    """But for the roundings of float32, and those of the result to bfloat16, an eighth of a percent each."""
    for name, size in zip("KGH", sizes, strict=True):
        monkeypatch.setattr(sys.modules[__name__], name, size)
    if plain:
        monkeypatch.setattr(cpu, "_target", plain_target)
    q, blocks = given()
    np.testing.assert_allclose(
        attended(q, blocks, SLOTS, window), wanted(q, blocks, SLOTS, window), rtol=2**-8, atol=1e-5
    )


def test_a_row_has_the_same_bits_alone_and_with_fewer_blocks():
    q, blocks = given(1)
    whole = attended(q, blocks, SLOTS, 0)
    alone = attended(q[1:2], [(k[1:2], v[1:2]) for k, v in blocks[:1]], SLOTS[1:2], 0)
    np.testing.assert_array_equal(alone, whole[1:2])


def test_tokens_of_a_row_have_the_bits_of_each_by_itself():
    """A prompt's: those of a row share its keys."""
    rng, (_, blocks) = np.random.default_rng(2), given(2)
    q = rng.standard_normal((R, 7, K * G, H)).astype(np.float32)
    slots = rng.integers(0, sum(BLOCKS) + 9, (R, 7)).astype(np.int32)
    each = [attended(q[:, n : n + 1], blocks, slots[:, n : n + 1], 40) for n in range(7)]
    np.testing.assert_array_equal(attended(q, blocks, slots, 40), np.concatenate(each, axis=1))


@pytest.mark.parametrize(
    ("width", "slots", "dtype", "fits"),
    [
        (64, 128, "bfloat16", True),
        (64, 128, "float32", False),
        (48, 128, "bfloat16", False),
        (64, 40, "bfloat16", False),
    ],
)
def test_what_it_is_for(width, slots, dtype, fits):
    q, keys = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((1, 1, 2, width), (1, 2, slots, width)))
    with jax.set_mesh(mesh()):
        assert cpu.can_attend(q, [(keys, keys)]) == fits
        with mock.patch.object(cpu, "on_one_cpu", lambda: False):
            assert not cpu.can_attend(q, [(keys, keys)])
