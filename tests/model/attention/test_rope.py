"""Rotary positions: rotations by angle, and what the scalings to longer contexts keep and divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_linear import normal
from tests.training.small import mesh
from tpullm.model.attention import rope
from tpullm.model.attention.rope import rotary, rotary_table, scaled_frequencies
from tpullm.recipe.schema import ModelConfig, RopeScaling


def test_rotary_turns_each_pair_by_its_angle():
    """As complex numbers (Su et al. 2021, section 3.4.2): the pair (h, h + H/2) times exp(i position theta^(-2h/H))."""
    (x,) = normal((2, 5, 3, 8))
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]], np.int32)
    config = ModelConfig(head_width=8)
    with jax.set_mesh(mesh()):
        turned = jax.jit(lambda x: rotary(x, rotary_table(positions, np.ones_like(positions), config, local=False)))(x)
    turned = np.asarray(turned)
    angles = positions[:, :, None, None] * 10_000.0 ** (-np.arange(4) / 4)
    expected = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * np.exp(1j * angles)
    np.testing.assert_allclose(turned[..., :4], expected.real, atol=2e-6)  # roundings of numbers up to about 3
    np.testing.assert_allclose(turned[..., 4:], expected.imag, atol=2e-6)


def test_a_part_of_each_head_is_turned_as_a_head_of_that_width_and_no_layer_without_positions_is():
    (x,) = normal((2, 5, 3, 8))
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]], np.int32)

    def turned(x, rotates=True, **sizes):
        scaling = RopeScaling("yarn", factor=4.0, original_context=4, scale=1.1)
        config = ModelConfig(**sizes, rope_scaling=scaling)
        with jax.set_mesh(mesh()):
            table = rotary_table(positions, np.ones_like(positions), config, local=False, rotates=rotates)
            out, back = jax.vjp(jax.jit(lambda x: rotary(x, table)), x)
            return np.asarray(out), np.asarray(back(x)[0])

    for part, whole in zip(turned(x, head_width=8, rotary_width=6), turned(x[..., :6], head_width=6), strict=True):
        np.testing.assert_array_equal(part[..., :6], whole)
        np.testing.assert_array_equal(part[..., 6:], x[..., 6:])
    for same in turned(x, rotates=False, head_width=8, rotary_width=6):
        np.testing.assert_array_equal(same, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tpus_form_of_rotary_gives_the_same_bits(dtype, monkeypatch):
    """A matmul with a permutation adds zeros to one number; its gradient is the inverse rotation, as JAX finds it."""
    x, cotangent = normal((2, 5, 3, 8), (2, 5, 3, 8), dtype=dtype)
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]], np.int32)

    def both(turn):
        with jax.set_mesh(mesh()):
            table = rotary_table(positions, np.ones_like(positions), ModelConfig(head_width=8), local=False)
            out, back = jax.vjp(lambda x: turn(x, table), x)
            return np.asarray(out, np.float32), np.asarray(back(cotangent)[0], np.float32)

    here = both(rotary)
    differentiated = both(lambda x, table: rope._turned.__wrapped__(x.astype(jnp.float32), table).astype(dtype))
    monkeypatch.setattr(rope, "target_platform", lambda: "tpu")
    for ours, others, plain in zip(both(rotary), here, differentiated, strict=True):
        np.testing.assert_array_equal(ours, others)
        np.testing.assert_array_equal(others, plain)


THETA, WIDTH = 10_000.0, 64
PLAIN = THETA ** (-np.arange(WIDTH // 2) / (WIDTH // 2))
TURNS = 4096 * PLAIN / (2 * np.pi)  # of each frequency, in an original context of 4,096 tokens


def frequencies(kind: str, longest: int = 1, **options) -> np.ndarray:
    scaling = RopeScaling(kind=kind, original_context=4096, **options)
    return np.asarray(scaled_frequencies(WIDTH, THETA, scaling, jnp.asarray(longest)), np.float64)


def test_linear_scaling_divides_all_frequencies():
    np.testing.assert_allclose(frequencies("none"), PLAIN, rtol=1e-6)
    np.testing.assert_allclose(frequencies("linear", factor=3.0), PLAIN / 3, rtol=1e-6)


@pytest.mark.parametrize("longest", [1, 4096, 8192, 12_288])
def test_dynamic_scaling_keeps_the_highest_frequency_and_divides_the_lowest_by_the_length(longest):
    """NTK-aware: the base is such that the lowest is divided by `factor * length / original - (factor - 1)`."""
    found = frequencies("dynamic", longest, factor=3.0)
    divisor = 3.0 * max(longest, 4096) / 4096 - 2.0
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found[-1], PLAIN[-1] / divisor, rtol=1e-5)
    ratios = found[1:] / found[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)  # a geometric sequence


def shares_kept(found: np.ndarray, factor: float) -> np.ndarray:
    """What each frequency is between divided by `factor` (0) and as it was (1)."""
    return (found - PLAIN / factor) / (PLAIN - PLAIN / factor)


def test_llama_3_keeps_frequencies_of_many_turns_and_divides_those_of_few():
    """Between the bounds the share grows as the turns do."""
    low, high = 2.0, 16.0
    found = shares_kept(frequencies("llama3", factor=4.0, low_frequency=low, high_frequency=high), 4.0)
    np.testing.assert_allclose(found, np.clip((TURNS - low) / (high - low), 0, 1), atol=1e-5)
    assert {0.0, 1.0} < set(np.round(found, 4))


@pytest.mark.parametrize("truncate", [False, True])
def test_yarn_keeps_frequencies_of_many_turns_and_divides_those_of_few(truncate):
    """Between the bounds the share falls as the number of the dimension grows; truncated, both are whole dimensions."""
    fast, slow = 32.0, 1.0
    found = shares_kept(frequencies("yarn", factor=4.0, fast=fast, slow=slow, truncate=truncate), 4.0)
    low, high = np.interp([-np.log(fast), -np.log(slow)], -np.log(TURNS), np.arange(WIDTH // 2))
    low, high = (np.floor(low), np.ceil(high)) if truncate else (low, high)
    np.testing.assert_allclose(found, np.clip((high - np.arange(WIDTH // 2)) / (high - low), 0, 1), atol=1e-5)
    assert {0.0, 1.0} < set(np.round(found, 4))


def test_yarn_of_one_bound_is_a_step():
    """It must not divide by the 0 between two equal bounds."""
    bound = np.sqrt(TURNS[10] * TURNS[11])
    found = frequencies("yarn", factor=4.0, fast=bound, slow=bound, truncate=False)
    np.testing.assert_allclose(shares_kept(found, 4.0), np.arange(WIDTH // 2) <= 10, atol=1e-5)


def test_longrope_divides_each_frequency_by_the_length_of_the_longest_text():
    short, long = tuple(np.linspace(1, 2, WIDTH // 2)), tuple(np.linspace(1, 9, WIDTH // 2))
    for longest, divisors in ((4096, short), (4097, long)):
        found = frequencies("longrope", longest, short=short, long=long)
        np.testing.assert_allclose(found, PLAIN / np.array(divisors), rtol=1e-6)


def test_the_longest_text_is_that_without_padding_and_a_window_may_have_its_own_base():
    positions = np.array([[0, 1, 2, 3], [0, 1, 2, 0]], np.int32)
    segments = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], np.int32)  # the position 3 is of padding
    scaling = RopeScaling("longrope", original_context=3, short=(1.0,) * 4, long=(2.0,) * 4, scale=1.5)
    config = ModelConfig(head_width=8, rope_scaling=scaling, local_rope_theta=50.0)
    with jax.set_mesh(mesh()):
        cos, sin = (np.asarray(x) for x in rotary_table(positions, segments, config, local=False))
        long_cos, _ = (np.asarray(x) for x in rotary_table(positions, np.ones_like(segments), config, local=False))
        local_cos, _ = (np.asarray(x) for x in rotary_table(positions, segments, config, local=True))
    angles = positions[..., None, None] * 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(cos, 1.5 * np.cos(np.concatenate([angles, angles], -1)), atol=1e-6)
    np.testing.assert_allclose(sin, 1.5 * np.sin(np.concatenate([-angles, angles], -1)), atol=1e-6)
    np.testing.assert_allclose(long_cos[..., :4], 1.5 * np.cos(angles / 2), atol=1e-6)
    local = positions[..., None, None] * 50.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(local_cos[..., :4], np.cos(local), atol=1e-6)
