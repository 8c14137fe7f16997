"""The choice of the next token: the rules of sampling on logits `[B, V]`, and those of each request.

The random number of a token depends on the seed of its text and its position alone. So a text does not depend on the
rows beside it, and a training that resumes samples the same answers.

Shapes: B batch, V vocabulary, N blocks of S tokens; C pieces of T tokens of prompts.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.programs import Run, dispatch
from tpullm.engine.request import Request, Token
from tpullm.model.mesh import RULES
from tpullm.model.rows import fetch_whole, put_whole
from tpullm.recipe.sampling import GREEDY, Sampling

jax.tree_util.register_dataclass(Sampling)

MOST_TOP = 20  # likeliest tokens that are emitted with each, as in OpenAI's interface


class Choice(NamedTuple):
    """Of each row: the next token; its log-probability by the model alone, the likeliest tokens and theirs, if they are
    told.
    """

    tokens: jax.Array
    log_probabilities: jax.Array | None = None
    top: jax.Array | None = None
    top_log_probabilities: jax.Array | None = None

    def token(self, n: int | tuple[int, int], request: Request, ends: str = "") -> Token:
        """The token of a row, or of a place in a piece, as it is emitted; the arrays are numpy's."""
        token = int(self.tokens[n])
        if request.top is None:
            return Token(token, None, (), ends)
        pairs = zip(self.top[n].tolist(), self.top_log_probabilities[n].tolist(), strict=True)
        return Token(token, float(self.log_probabilities[n]), tuple(pairs)[: request.top], ends)


class Next(NamedTuple):
    """A token to choose: its request, the new tokens before it, and how many more are still on the device."""

    request: Request
    new: tuple[int, ...]
    unseen: int = 0

    def follows(self, new: Sequence[int]) -> bool:
        """Whether it comes next after these."""
        return len(new) == len(self.new) + self.unseen and tuple(new[: len(self.new)]) == self.new


# What a program of choosing can do. One that samples takes 1.1 s to compile (49,152 tokens), one that does not 0.1.
# Only one that adjusts tells log-probabilities: a CPU takes a tenth of a step for them (12 rows, 135 M parameters).
LIKELIEST, SAMPLED, ADJUSTED = range(3)


def form_of(request: Request) -> int:
    """What choosing its tokens needs: the likeliest one, one that is sampled, or logits that are added to or told."""
    if request.bias or request.depends_on_new or request.top is not None:
        return ADJUSTED
    return SAMPLED if request.sampling.temperature > 0 else LIKELIEST


def choose_next(
    mesh: jax.sharding.Mesh, logits: jax.Array, asked: Sequence[Next | None], form: int = LIKELIEST, run: Run = dispatch
) -> Choice:
    """The next token of each row of logits `[B, V]` that is asked for, on the device: `fetched_choice` waits for it.

    Args:
        form: of `form_of`, the least that is computed.
    """
    known = [(n, one) for n, one in enumerate(asked) if one is not None]
    form = max((form_of(one.request) for _, one in known), default=form)
    if form == LIKELIEST:  # and nothing is moved to the device: 0.1 ms for each array
        return run(pick, logits, None, None, None, top=None)
    bias = np.zeros(logits.shape, np.float32) if form == ADJUSTED else None
    integers, shares = np.zeros((len(asked), 3), np.int32), np.zeros((len(asked), 3), np.float32)
    shares[:], integers[:, 2] = (GREEDY.temperature, GREEDY.top_p, GREEDY.min_p), GREEDY.top_k
    for n, one in known:
        sampling, place = one.request.sampling, len(one.request.ids) + len(one.new) + one.unseen
        shares[n] = sampling.temperature, sampling.top_p, sampling.min_p
        integers[n] = np.uint32(one.request.seed).astype(np.int32), place, sampling.top_k
    for n, (request, new, _) in known if bias is not None else ():
        ids, values = request.bias_arrays
        bias[n, ids] += values
        counts = Counter(new) if request.presence_penalty or request.frequency_penalty else {}
        for token, count in counts.items():
            bias[n, token] -= request.presence_penalty + count * request.frequency_penalty
        if request.allowed is not None:
            allowed_V = request.allowed(new)
            bias[n, : len(allowed_V)][~allowed_V] = -np.inf
            bias[n, len(allowed_V) :] = -np.inf
    arrays = (None if array is None else put_whole(mesh, array, "batch", None) for array in (integers, shares, bias))
    return run(pick, logits, *arrays, top=MOST_TOP if form == ADJUSTED else None)


def fetched_choice(mesh: jax.sharding.Mesh, found: Choice) -> Choice:
    """A choice as numpy arrays; waits for the device."""
    return Choice(*(array if array is None else fetch_whole(mesh, array) for array in found))


@partial(jax.jit, static_argnames=("top",))
def pick(logits_BV, integers_B3, shares_B3, bias_BV, *, top: int | None) -> Choice:
    """Choose the next token of each row.

    Args:
        integers_B3: of each row the seed, the position of the token that is chosen, and top-k; None samples nothing.
        shares_B3: its temperature, top-p and min-p; None samples nothing.
        bias_BV: is added to the logits before sampling; None is nothing.
        top: how many of the likeliest tokens are emitted; None tells no log-probabilities.
    """
    logits_BV = jax.reshard(logits_BV, RULES.spec("batch", None))
    biased_BV = logits_BV if bias_BV is None else logits_BV + bias_BV
    if integers_B3 is not None:
        temperature, top_p, min_p = (shares_B3[:, n : n + 1] for n in range(3))
        sampling = Sampling(temperature, integers_B3[:, 2:], top_p, min_p)
        tokens_B = choose(biased_BV, sampling, integers_B3[:, 0].astype(jnp.uint32), integers_B3[:, 1])
    else:
        tokens_B = likeliest(biased_BV)
    return Choice(tokens_B) if top is None else _with_probabilities(tokens_B, logits_BV, top)


@partial(jax.jit, static_argnames=("architecture", "top"))
def given_tokens(architecture, params, hidden_CTD, tokens_CT, *, top: int) -> Choice:
    """Tokens of prompts with their log-probabilities, `[C, T]`.

    Args:
        hidden_CTD: the states before them.
    """
    C, T, _ = hidden_CTD.shape
    model, rows = architecture.model(params), RULES.spec("batch")

    def some(_, given):
        hidden_CTD, tokens_CT = given
        logits_CTV = jax.reshard(model.logits(hidden_CTD), jax.P(*rows, None, None))
        return None, _with_probabilities(tokens_CT, logits_CTV, top)

    # A quarter of the logits at a time: for a vocabulary of 256 k tokens all of them are 0.5 GB.
    arrays = (jax.reshard(array, jax.P(*rows, *[None] * (array.ndim - 1))) for array in (hidden_CTD, tokens_CT))
    parts = tuple(jnp.swapaxes(array.reshape(C, 4, T // 4, *array.shape[2:]), 0, 1) for array in arrays)
    _, found = jax.lax.scan(some, None, parts)
    return jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1).reshape(C, T, *array.shape[3:]), found)


def _with_probabilities(tokens, logits, top: int) -> Choice:
    """Tokens `[...]` with the log-probabilities that logits `[..., V]` give them, and the likeliest ones."""
    own = jnp.arange(logits.shape[-1]) == tokens[..., None]
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.sum(jnp.where(own, logits, 0), axis=-1) - total
    best, ids = jax.lax.top_k(logits, top) if top else (logits[..., :0], tokens[..., None][..., :0])
    return Choice(tokens, chosen, ids, best - total[..., None])


def restrict_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
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
    most = lambda logits_BV, *_: likeliest(logits_BV)  # noqa: E731
    return jax.lax.cond(samples, _sampled, most, logits_BV, sampling, seeds_B, positions_B)


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """The token with the highest logit, the first of several, `[B]` int32.

    As `argmax`, which XLA for a CPU computes number by number: 12 rows of 49,152 took 2.8 ms, and so 0.2.
    """
    last, best_B1 = logits_BV.shape[-1] - 1, jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BV == best_B1, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def _sampled(logits_BV, sampling, seeds_B, positions_B):
    """A token by the probabilities: first a block of tokens, then one in it, each by a random number of its own.

    Two numbers are enough for a row, and as the second one divides a block alone, rare tokens keep their
    probability. Noise for every token (Gumbel-max) took a quarter of the time of decoding: 12 M parameters, 64 rows,
    4,096 tokens, two cores.
    """

    def uniform(seed, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position), (2,), jnp.float32)

    restricted_BV = restrict_logits(logits_BV, sampling)
    p_BV = jnp.exp(restricted_BV - jnp.max(restricted_BV, axis=-1, keepdims=True))
    B, V = p_BV.shape
    size = 1 << V.bit_length() // 2
    p_BNS = jnp.pad(p_BV, ((0, 0), (0, -V % size))).reshape(B, -1, size)
    u_B2 = jax.vmap(uniform)(seeds_B, positions_B)
    block_B = _drawn_by_share(jnp.sum(p_BNS, axis=-1), u_B2[:, 0])
    chosen_BN1 = (jnp.arange(p_BNS.shape[1]) == block_B[:, None])[..., None]
    drawn_B = block_B * size + _drawn_by_share(jnp.sum(jnp.where(chosen_BN1, p_BNS, 0), axis=1), u_B2[:, 1])
    samples = jnp.asarray(sampling.temperature > 0)  # one of all rows, or one of each
    samples = samples[:, 0] if samples.ndim else samples
    return jnp.where(samples, drawn_B, likeliest(logits_BV))


def _drawn_by_share(p_BN: jax.Array, u_B: jax.Array) -> jax.Array:
    """The place where the sum of the weights passes `u` of their total, `[B]` int32; its weight is above 0."""
    sums_BN = jnp.cumsum(p_BN, axis=-1)
    passed_BN = (sums_BN > u_B[:, None] * sums_BN[:, -1:]) & (p_BN > 0)
    # Where rounding lets no sum pass, the largest weight.
    found_B = jnp.where(jnp.any(passed_BN, axis=-1), jnp.argmax(passed_BN, axis=-1), jnp.argmax(p_BN, axis=-1))
    return found_B.astype(jnp.int32)
