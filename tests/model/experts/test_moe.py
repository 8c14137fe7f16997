"""A mixture of experts is each token through its own experts, one after the other; none is dropped or added."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.eight_devices import printed_alone
from tests.training.small import EXPERTS, mesh
from tpullm.model.experts.moe import MixtureOfExperts, route_to_experts
from tpullm.model.mesh import RULES
from tpullm.model.mlp import residual_scale


def by_hand(module, x_MD, k, normalize):
    """The published formulas (Jiang et al. 2024, section 2.1), a token and an expert at a time, in float64."""
    value = lambda parameter: np.asarray(parameter[...], np.float64)  # noqa: E731
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    out_MD = np.zeros_like(x_MD)
    for token, x_D in enumerate(x_MD):
        logits_E = x_D @ value(module.router.weight) + value(module.router.bias)
        chosen = np.argsort(-logits_E)[:k]
        among = chosen if normalize else range(len(logits_E))
        total = sum(math.exp(logits_E[expert]) for expert in among)
        for expert in chosen:
            gate_F, up_F = (x_D @ value(of.weight)[expert] + value(of.bias)[expert] for of in (module.gate, module.up))
            out_D = silu(gate_F) * up_F @ value(module.down.weight)[expert] + value(module.down.bias)[expert]
            out_MD[token] += math.exp(logits_E[expert]) / total * out_D
    return out_MD


@pytest.mark.parametrize(("k", "normalize"), [(1, False), (2, True), (5, False)])
def test_it_is_each_token_through_its_experts(k, normalize):
    config = dataclasses.replace(EXPERTS.config, experts_per_token=k, normalize_router=normalize)
    random = np.random.default_rng(0)
    x_BTD = random.standard_normal((3, 7, config.width)).astype(np.float32)
    with jax.set_mesh(mesh()):
        module = MixtureOfExperts(config, nnx.Rngs(0))
        for part in (module.router, module.gate, module.up, module.down):
            part.bias[...] = jnp.asarray(random.standard_normal(part.bias.shape), jnp.float32)
        found = np.asarray(nnx.jit(lambda module, x: module(x)[0])(module, x_BTD)).reshape(21, -1)
    expected = by_hand(module, x_BTD.reshape(21, -1).astype(np.float64), k, normalize)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())  # float32 against float64


def test_fresh_experts_differ_keep_the_variance_of_their_inputs_and_have_no_bias():
    """The deviation is one over the root of the inputs; of what goes into the residual stream less, see residual.py."""
    config = dataclasses.replace(EXPERTS.config, width=64, mlp_width=128)
    with jax.set_mesh(mesh()):
        module = MixtureOfExperts(config, nnx.Rngs(0))
    deviations = 1 / 8, 1 / 8, residual_scale(128, config.layers)
    for part, deviation in zip((module.gate, module.up, module.down), deviations, strict=True):
        weights = np.asarray(part.weight[...])
        assert len({one.tobytes() for one in weights}) == config.experts
        np.testing.assert_allclose(weights.std(), deviation, rtol=0.02)  # of 40,960 numbers
        assert (np.asarray(part.bias[...]) == 0).all()
    assert not np.array_equal(module.gate.weight[...], module.up.weight[...])


@pytest.mark.parametrize(("reduced", "dtype"), [("compute", jnp.bfloat16), ("float32", jnp.float32)])
def test_a_weight_is_cast_where_it_rests_if_gradients_are_not_reduced_in_float32(reduced, dtype):
    """All-gathered in bfloat16 either way; what comes back of it is in the type that it went in with."""
    config = dataclasses.replace(EXPERTS.config, gradients=reduced)
    with jax.set_mesh(mesh()):
        module = MixtureOfExperts(config, nnx.Rngs(0))
        for part in (module.gate, module.down):
            weight, bias, _ = part.cast(jnp.bfloat16)
            assert weight.dtype == bias.dtype == dtype
            np.testing.assert_array_equal(weight, part.weight[...].astype(dtype))


def test_the_routing_counts_what_is_not_padding():
    """Each real token chooses k experts and has scores that sum to 1; of a row, `[B, 1, E]`."""
    real_BT = np.arange(21).reshape(3, 7) % 3 != 0
    x_BTD = np.random.default_rng(0).standard_normal((3, 7, EXPERTS.config.width)).astype(np.float32)
    with jax.set_mesh(mesh()):
        module = MixtureOfExperts(EXPERTS.config, nnx.Rngs(0))

        @nnx.jit
        def computed(module, x_BTD, real_BT):
            logits = module.router("btd,de->bte", x_BTD, RULES.spec("batch", "time", None))
            return module(x_BTD, real_BT)[1], module(x_BTD)[1], *route_to_experts(logits.reshape(-1, 5), EXPERTS.config)

        real = jax.reshard(real_BT, RULES.spec("batch", "time"))
        found, none, scores_ME, _, experts_Mk = computed(module, x_BTD, real)
    assert none is None and found.loads.shape == found.scores.shape == (3, 1, 5)
    chosen_BTE = np.any(np.asarray(experts_Mk)[..., None] == np.arange(5), axis=1).reshape(3, 7, 5)
    np.testing.assert_array_equal(found.loads[:, 0], (chosen_BTE * real_BT[..., None]).sum(axis=1))
    scores_BTE = np.asarray(scores_ME).reshape(3, 7, 5)
    np.testing.assert_allclose(found.scores[:, 0], (scores_BTE * real_BT[..., None]).sum(axis=1), rtol=1e-5)


@pytest.mark.ci
def test_experts_on_other_devices_are_the_same_experts():
    """Also if all tokens choose experts of one device. The output is that of a loop, the gradients those of one device.

    1e-6 of the largest number: float32 (6e-8 a rounding) in sums over 64 inputs and 48 tokens in another order.
    """
    found = printed_alone("tests.model.experts.sharded_experts")
    assert len(found) == 6
    for name, case in found.items():
        assert case["output"] < 1e-6 and case["gradients"] < 1e-6, (name, case)
        assert ("interpreted" in case) == ("kernel" in name) and case.get("interpreted", 0) < 1e-6, (name, case)
        assert case["loads"] == case["loads of one device"], name
        assert sum(case["loads"]) == 3 * case["real"], "none is dropped, and padding is not counted"
    skewed = found["expert 4, tensor 2, all to one device"]
    assert skewed["loads"] == [skewed["real"]] * 3 + [0] * 5


def test_sigmoid_scores_and_a_bias_that_only_chooses():
    """DeepSeek-V3, equations 13 to 16: chosen by score and bias, weighted by score, of those chosen, alone."""
    config = dataclasses.replace(EXPERTS.config, router_scores="sigmoid", router_scale=2.5)
    logits_ME = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    balance_E = np.array([0.0, 2.0, 0.0, 0.0, 0.0], np.float32)
    scores_ME, weights_Mk, experts_Mk = map(np.asarray, route_to_experts(jnp.asarray(logits_ME), config, balance_E))
    assert (experts_Mk[:, 0] == 1).all(), "a bias of 2 is more than any score"
    score_ME = 1 / (1 + np.exp(-logits_ME.astype(np.float64)))
    others_ME = np.where(np.arange(5) == 1, -1, score_ME)
    np.testing.assert_array_equal(experts_Mk[:, 1], others_ME.argmax(axis=1))
    chosen_Mk = np.take_along_axis(score_ME, experts_Mk, axis=1)
    # float32 against float64
    np.testing.assert_allclose(weights_Mk, 2.5 * chosen_Mk / chosen_Mk.sum(axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(scores_ME, score_ME / score_ME.sum(axis=1, keepdims=True), rtol=1e-6)


def test_shared_experts_are_an_mlp_of_their_width_beside_the_others():
    config = dataclasses.replace(EXPERTS.config, shared_experts=2)
    x_BTD = np.random.default_rng(0).standard_normal((3, 7, config.width)).astype(np.float32)
    with jax.set_mesh(mesh()):
        module = MixtureOfExperts(config, nnx.Rngs(0))
        run = nnx.jit(lambda module, x_BTD: module(x_BTD)[0])
        both, alone = run(module, x_BTD), nnx.jit(lambda module, x_BTD: module.shared(x_BTD))(module, x_BTD)
        module.shared = None
        routed_only = run(module, x_BTD)
    assert module.gate.weight.shape[1:] == (config.width, config.mlp_width)
    np.testing.assert_array_equal(both, routed_only + alone)
    assert np.abs(alone).max() > 0
