"""Which earlier tokens each token attends to.

Shapes: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, L layers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.inference.padding import bucket, fits, padded, row_bucket, segments_and_positions
from tpullm.inference.session import Session
from tpullm.mesh.rows import fetch, put_whole


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def _weights(architecture, params, tokens_BT, lengths_B1, *, dtype) -> jax.Array:
    """Of the first row, `[L, K, G, T, S]`."""
    inputs = segments_and_positions(tokens_BT, lengths_B1)
    found_LBKGTS = architecture.model(params)(tokens_BT, *inputs, dtype=dtype, keep_weights=True).attention
    # By a mask: the rows are split over the devices, and all of them would be too much for each.
    first_B1111 = (jnp.arange(tokens_BT.shape[0]) == 0)[:, None, None, None, None]
    return jnp.sum(jnp.where(first_B1111, found_LBKGTS, 0), axis=1)


def weights(session: Session, text: str) -> tuple[list[str], np.ndarray]:
    """The texts of the tokens of `text`, `<s>` first, and the attention weights `[L, N, T, T]`.

    `weights[l, n, t, s]` is how much token t attends to token s in layer l and head n; each row sums to 1.

    Raises:
        UserError: the text is longer than the context.
    """
    tokenizer = session.tokenizer
    ids = [*tokenizer.begin, *tokenizer.encode(text)]
    fits(session, ids, "text")
    tokens, lengths = padded(session, [ids], row_bucket(session, 1), bucket(len(ids)))
    with jax.set_mesh(session.mesh):
        arguments = (put_whole(session.mesh, array, "batch", "time") for array in (tokens, lengths[:, None]))
        found = _weights(session.architecture, session.params, *arguments, dtype=session.dtype)
        found_LKGTS = fetch(session.mesh, found)
    found_LKGTS = found_LKGTS[..., : len(ids), : len(ids)]
    L, K, G, T, S = found_LKGTS.shape
    return [tokenizer.piece(token) for token in ids], found_LKGTS.reshape(L, K * G, T, S).astype(np.float32)
