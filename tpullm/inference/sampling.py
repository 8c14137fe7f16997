"""How the next token is chosen from the model's scores: pure functions on logits `[B, V]`.

Shapes: B batch, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpullm.errors import UserError
from tpullm.sharding import RULES


@dataclass(frozen=True)
class Sampling:
    """How to choose. The numbers are traced, so that one compiled program serves every choice.

    Args:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that hold this much probability together (Holtzman et al. 2020).
        min_p: only tokens at least this share as likely as the likeliest (Nguyen et al. 2024).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.05


GREEDY = Sampling(temperature=0.0)
jax.tree_util.register_dataclass(Sampling)


def check(sampling: Sampling) -> Sampling:
    """Refuse values without a meaning; `UserError` names the option."""
    if sampling.temperature < 0:
        raise UserError(f"--temperature: {sampling.temperature} is below 0; use 0 for the likeliest token, or more")
    if sampling.top_k < 0:
        raise UserError(f"--top-k: {sampling.top_k} is below 0; use 0 for all tokens")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"--top-p: {sampling.top_p} is not a share above 0 and up to 1; use 1 for all tokens")
    if not 0 <= sampling.min_p <= 1:
        raise UserError(f"--min-p: {sampling.min_p} is not a share from 0 to 1; use 0 for all tokens")
    return sampling


def add_options(parser, defaults: Sampling) -> None:
    """The options of a verb that generates: --temperature, --top-k, --top-p, --min-p."""
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="0 is the likeliest token")
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="only the k likeliest tokens; 0 is all")
    parser.add_argument(
        "--top-p", type=float, default=defaults.top_p, help="only the likeliest tokens with this probability together"
    )
    parser.add_argument(
        "--min-p", type=float, default=defaults.min_p, help="only tokens this share as likely as the likeliest"
    )


def from_options(arguments) -> Sampling:
    """What the options of `add_options` choose, checked, `--seed` with them."""
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed: {arguments.seed} is not from 0 to 2147483647; use such a number")
    return check(Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p))


def restrict(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits divided by the temperature (> 0), and -inf where top-k, top-p or min-p excludes the token.

    Each rule is a least logit, so tokens that are exactly as likely as the last one kept are kept too. As in Hugging
    Face transformers, top-p counts the probability among what top-k leaves.
    """
    logits_BV = logits_BV / sampling.temperature
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(jnp.asarray(sampling.min_p, jnp.float32))
    # Only top-k and top-p need the order. A sort of 4,096 logits took a CPU as long as a third of the model's step.
    ordered = (sampling.top_k > 0) | (sampling.top_p < 1)
    least_B1 = jax.lax.cond(ordered, _least_by_order, lambda _, least_B1, __: least_B1, logits_BV, least_B1, sampling)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _least_by_order(logits_BV, least_B1, sampling):
    """`least_B1` or, if it is larger, the least logit that top-k and top-p leave."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    V = logits_BV.shape[-1]
    kept_BV = jnp.arange(V) < jnp.where(sampling.top_k > 0, sampling.top_k, V)
    p_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
    mass_before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    kept_BV &= (mass_before_BV < sampling.top_p) | (sampling.top_p >= 1)
    return jnp.maximum(least_B1, jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True))


def choose(logits_BV: jax.Array, sampling: Sampling, seeds_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """The next token of each row, `[B]` int32.

    Randomness is a function of the row's seed and of the position that the token will have, so a row's text depends
    neither on the other rows nor on how many tokens are computed at a time.
    """
    # A sort needs each row whole, and the vocabulary may be split over devices.
    logits_BV = jax.reshard(logits_BV, RULES.spec("batch", None))
    # A program that may be either would sort for greedy choices too; `cond` runs one branch.
    return jax.lax.cond(sampling.temperature > 0, _sampled, _likeliest, logits_BV, sampling, seeds_B, positions_B)


def _likeliest(logits_BV, sampling, seeds_B, positions_B):
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def _sampled(logits_BV, sampling, seeds_B, positions_B):
    """Gumbel-max: the argmax of logits plus Gumbel noise is a sample of their softmax."""

    def noise(seed, position):
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.gumbel(key, logits_BV.shape[1:], jnp.float32)

    restricted_BV = restrict(logits_BV, sampling)
    return jnp.argmax(restricted_BV + jax.vmap(noise)(seeds_B, positions_B), axis=-1).astype(jnp.int32)
