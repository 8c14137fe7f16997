"""Plain attention: the mask and the softmax over all scores at once.

Shapes: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, H head width; A answers to
each of B / A prompts of P tokens.
"""

import functools
import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.model.mesh import RULES
from tpullm.model.platform import target_platform

BRANCH = 1 << 16  # as in `data/batch.py`
# XLA for a CPU computes exponentials and sums of fewer numbers in another way, with other last bits (JAX 0.12): then a
# row would not be the same alone and among others.
SMALL = 4096


def causal_mask(q_segments_BT, q_positions_BT, k_segments_BS, k_positions_BS, window: int | None = None) -> jax.Array:
    """Whether each query attends to each key, `[B, T, S]` bool: of the same segment, and not later.

    Positions count from 0 within a segment, so comparing them is causal inside it; a segment of 0 is padding.

    Args:
        window: how many tokens a token attends to, itself included; None is all.
    """
    whole = RULES.spec("batch", None)
    k_segments_BS, k_positions_BS = jax.reshard((k_segments_BS, k_positions_BS), (whole, whole))
    same = same_segment(q_segments_BT[:, :, None], k_segments_BS[:, None, :])
    q_positions_BT1, k_positions_B1S = q_positions_BT[:, :, None], k_positions_BS[:, None, :]
    mask = same & (q_positions_BT1 >= k_positions_B1S)
    return mask if window is None else mask & (q_positions_BT1 - window < k_positions_B1S)


def same_segment(q_segments, k_segments) -> jax.Array:
    """Whether a key is of the segment of the query, or of the prompt that the query's answer belongs to.

    Answers to one prompt have its segment id plus a multiple of `BRANCH` (`data/batch.py`).
    """
    return (q_segments == k_segments) | (q_segments % BRANCH == k_segments)


def attend(
    q_BTNH, k_BKSH, v_BKSH, mask_BTS, softcap: float = 0.0, sinks_N=None, before: Sequence[tuple] = ()
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), softmax in float32.

    Args:
        softcap: bound of the scores, by tanh (Gemma 2); 0 is none.
        sinks_N: of each head, the score of a key whose value is 0, float32 (gpt-oss's model card, OpenAI 2025).
        before: keys and values that stand before these, in parts; the mask and the weights have all of them. A part of
            prompts, `[B / A, K, P, H]`, is read once for A rows, not copied for them.

    Returns:
        The mixed values `[B, T, N, H]` and the weights `[B, K, G, T, S]` (the compiler drops them if unused).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    # A reshape with a dimension of size 1 leaves the sharding open, so it is given.
    grouped = RULES.spec("batch", "time", "kv_heads", None, "head")
    q_BTKGH = jnp.reshape(q_BTNH, (B, T, K, N // K, H), out_sharding=grouped)
    parts = [*before, (k_BKSH, v_BKSH)]
    ends = np.cumsum([0, *(values.shape[2] for _, values in parts)]).tolist()
    places = [slice(first, end) for first, end in itertools.pairwise(ends)]
    scores = [_attention_scores(q_BTKGH, keys) for keys, _ in parts]
    scores = [softcap * jnp.tanh(part / softcap) if softcap else part for part in scores]
    lowest = jnp.finfo(jnp.float32).min
    scores = [jnp.where(mask_BTS[:, None, None, :, at], part, lowest) for part, at in zip(scores, places, strict=True)]
    weights, total = _joint_softmax(scores)
    if sinks_N is not None:  # exp(s) / (sum + exp(sink)) is softmax times sum / (sum + exp(sink))
        sinks = jnp.reshape(sinks_N, (K, N // K, 1, 1), out_sharding=RULES.spec("kv_heads", None, None, None))
        weights = [part * jax.nn.sigmoid(total - sinks) for part in weights]
    mixed = [_mix_values(part, values) for part, (_, values) in zip(weights, parts, strict=True)]
    mixed, weights = functools.reduce(operator.add, reversed(mixed)), jnp.concatenate(weights, axis=-1)
    whole = RULES.spec("batch", "time", "heads", "head")
    return jnp.reshape(mixed.astype(q_BTNH.dtype), (B, T, N, H), out_sharding=whole), weights


def _joint_softmax(scores: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """The softmax over several arrays, and the log of the sum of all exponentials.

    Each array has a sum of its own. So their bits are the same with another one after them that weighs nothing.
    """
    if len(scores) == 1:
        return [jax.nn.softmax(scores[0], axis=-1)], jax.nn.logsumexp(scores[0], axis=-1, keepdims=True)
    rows = len(scores[0])
    if on_one_cpu() and rows < (least := max(-(-SMALL * rows // part.size) for part in scores)):
        more = [jnp.zeros((least - rows, *part.shape[1:]), part.dtype) for part in scores]
        whole = [jnp.concatenate([jax.reshard(part, jax.P()), rest]) for part, rest in zip(scores, more, strict=True)]
        weights, total = _joint_softmax([jax.lax.optimization_barrier(part) for part in whole])
        first = lambda array: jax.reshard(array[:rows], jax.typeof(scores[0]).sharding.spec)  # noqa: E731
        return [first(part) for part in weights], first(total)
    most = functools.reduce(jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in scores])
    raised = [jnp.exp(part - most) for part in scores]
    total = functools.reduce(operator.add, [jnp.sum(part, axis=-1, keepdims=True) for part in raised])
    return [part / total for part in raised], most + jnp.log(total)


def _attention_scores(q_BTKGH, k_BKSH):
    """Of each query and key, `[B, K, G, T, S]`; the keys may be those of prompts, with fewer rows."""
    B, T, K, G, H = q_BTKGH.shape
    if on_one_cpu() and len(k_BKSH) == B:
        scores = _matmul_by_row(jnp.moveaxis(q_BTKGH, 1, 3), k_BKSH, 2) * H**-0.5
    else:
        q = _answers_by_prompt(q_BTKGH, k_BKSH, "time", "kv_heads", None, "head")
        scores = jnp.einsum("batkgh,bksh->bakgts", q, k_BKSH, preferred_element_type=jnp.float32) * H**-0.5
    return jnp.reshape(scores, (B, K, G, T, -1), out_sharding=RULES.spec("batch", "kv_heads", None, "time", None))


def _mix_values(weights_BKGTS, v_BKSH):
    """The values by their weights, `[B, T, K, G, H]`; the values may be those of prompts, with fewer rows.

    Float32 on a CPU: to round each part before they are added took 1.7 of the 15 ms in which 64 tokens are read with
    1,024 in sight (12 M parameters, bfloat16).
    """
    B, K, G, T, S = weights_BKGTS.shape
    if on_one_cpu() and len(v_BKSH) == B:
        mixed = jnp.moveaxis(_matmul_by_row(weights_BKGTS.astype(v_BKSH.dtype), v_BKSH, 1), 3, 1)
    else:
        weights = _answers_by_prompt(weights_BKGTS, v_BKSH, "kv_heads", None, "time", None)
        mixed = jnp.einsum("bakgts,bksh->batkgh", weights.astype(v_BKSH.dtype), v_BKSH)
    grouped = RULES.spec("batch", "time", "kv_heads", None, "head")
    return jnp.reshape(mixed, (B, T, K, G, v_BKSH.shape[-1]), out_sharding=grouped)


def on_one_cpu() -> bool:
    """Whether the current mesh is a single CPU."""
    return target_platform() == "cpu" and jax.sharding.get_abstract_mesh().size == 1


def _matmul_by_row(left_BKGTX, right_BKSH, contracted: int):
    """A matmul for each row and head, in a form that a CPU multiplies fast and in the same way for any number of rows.

    As `einsum` writes the values, with the queries before the heads, they took five times as long (JAX 0.12). A single
    row is multiplied by one core, two by all; but not if keys in float32 are read along their heads. Six layers, 64
    rows of 6 heads of 64, 384 tokens, two cores, ms, once and twice: scores 18 and 17 (float32), 32 and 9.5 (bfloat16),
    values 17 and 11, 30 and 9.5; as sums of products 18, 19, 16 and 9.5, and with blocks of 1,024 slots twice as long.
    """
    B, K, G, T, _ = left_BKGTX.shape
    left, right = jax.reshard((left_BKGTX, right_BKSH), (jax.P(), jax.P()))
    left, right = left.reshape(B * K, G * T, -1), right.reshape(B * K, *right.shape[2:])
    if G * T == 1 and (contracted == 1 or right.dtype == jnp.bfloat16):
        left = jnp.concatenate([left, left], axis=1)
    dimensions = ((2,), (contracted,)), ((0,), (0,))
    product = jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)
    return product[:, : G * T].reshape(B, K, G, T, -1)


def _answers_by_prompt(x, rows, *dimensions):
    """`x`, `[B, ...]`, as `[rows, answers, ...]`: a device has the answers to its own prompts."""
    B, R = x.shape[0], rows.shape[0]
    return jnp.reshape(x, (R, B // R, *x.shape[1:]), out_sharding=RULES.spec("batch", None, *dimensions))
