"""The choice of the next token: pure functions on logits `[B, V]`.

Shapes: B batch, V vocabulary, N blocks of S tokens.
"""

import jax
import jax.numpy as jnp

from tpullm.model.mesh import RULES
from tpullm.recipe.sampling import Sampling

jax.tree_util.register_dataclass(Sampling)


def restrict(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits divided by the temperature; -inf for a token that top-k, top-p or min-p excludes.

    Each rule is a threshold on the logits, so ties with the last token that is kept are kept too. As in Hugging Face
    transformers, top-p counts probability among the tokens that top-k keeps.
    """
    logits_BV = logits_BV / jnp.where(sampling.temperature > 0, sampling.temperature, 1)
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(jnp.asarray(sampling.min_p, jnp.float32))
    # Only top-k and top-p need a sort. On a CPU, sorting 4,096 logits took a third as long as the model's step.
    ordered = jnp.any((sampling.top_k > 0) | (sampling.top_p < 1))
    least_B1 = jax.lax.cond(ordered, _least_by_order, lambda _, least_B1, __: least_B1, logits_BV, least_B1, sampling)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _least_by_order(logits_BV, least_B1, sampling):
    """The larger of `least_B1` and the least logit that top-k and top-p keep."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    V = logits_BV.shape[-1]
    kept_BV = jnp.arange(V) < jnp.where(sampling.top_k > 0, sampling.top_k, V)
    p_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
    mass_before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    kept_BV &= (mass_before_BV < sampling.top_p) | (sampling.top_p >= 1)
    return jnp.maximum(least_B1, jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True))


def choose(logits_BV: jax.Array, sampling: Sampling, seeds_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """The next token of each row, `[B]` int32.

    The settings are those of all rows, or `[B, 1]` those of each.

    The random number depends only on the row's seed and on the token's position. So a row's text does not depend on
    the other rows or on the number of tokens that one call computes.
    """
    # A sort needs whole rows, and the vocabulary can be split over devices.
    logits_BV = jax.reshard(logits_BV, RULES.spec("batch", None))
    # `cond` runs one branch only. With `where`, greedy decoding would sort too.
    samples = jnp.any(sampling.temperature > 0)
    return jax.lax.cond(samples, _sampled, _likeliest, logits_BV, sampling, seeds_B, positions_B)


def _likeliest(logits_BV, sampling, seeds_B, positions_B):
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def _sampled(logits_BV, sampling, seeds_B, positions_B):
    """A token by the probabilities: first a block of tokens, then one in it, each by a random number of its own.

    Two numbers are enough for a row, and as the second one divides a block alone, rare tokens keep their
    probability. Noise for every token (Gumbel-max) took a quarter of the time of decoding: 12 M parameters, 64 rows,
    4,096 tokens, two cores.
    """

    def uniform(seed, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position), (2,), jnp.float32)

    restricted_BV = restrict(logits_BV, sampling)
    p_BV = jnp.exp(restricted_BV - jnp.max(restricted_BV, axis=-1, keepdims=True))
    B, V = p_BV.shape
    size = 1 << V.bit_length() // 2
    p_BNS = jnp.pad(p_BV, ((0, 0), (0, -V % size))).reshape(B, -1, size)
    u_B2 = jax.vmap(uniform)(seeds_B, positions_B)
    block_B = _drawn(jnp.sum(p_BNS, axis=-1), u_B2[:, 0])
    chosen_BN1 = (jnp.arange(p_BNS.shape[1]) == block_B[:, None])[..., None]
    drawn_B = block_B * size + _drawn(jnp.sum(jnp.where(chosen_BN1, p_BNS, 0), axis=1), u_B2[:, 1])
    samples = jnp.asarray(sampling.temperature > 0)  # one of all rows, or one of each
    samples = samples[:, 0] if samples.ndim else samples
    return jnp.where(samples, drawn_B, jnp.argmax(logits_BV, axis=-1).astype(jnp.int32))


def _drawn(p_BN: jax.Array, u_B: jax.Array) -> jax.Array:
    """The place where the sum of the weights passes `u` of their total, `[B]` int32; its weight is above 0."""
    sums_BN = jnp.cumsum(p_BN, axis=-1)
    passed_BN = (sums_BN > u_B[:, None] * sums_BN[:, -1:]) & (p_BN > 0)
    # Where rounding lets no sum pass, the largest weight.
    found_B = jnp.where(jnp.any(passed_BN, axis=-1), jnp.argmax(passed_BN, axis=-1), jnp.argmax(p_BN, axis=-1))
    return found_B.astype(jnp.int32)
