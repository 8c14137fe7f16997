"""Which earlier tokens each token looks at.

Shapes: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K, L layers.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.inference.session import Session, bucket, fits, padded, row_bucket
from tpullm.mesh.rows import put


@partial(jax.jit, static_argnames=("architecture", "dtype"))
def _weights(architecture, params, tokens_BT, lengths_B1, *, dtype) -> jax.Array:
    place_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32) + jnp.zeros_like(tokens_BT)
    segments_BT = (place_BT < lengths_B1).astype(jnp.int32)
    model = architecture.model(params)
    return model(tokens_BT, segments_BT, place_BT, dtype=dtype, keep_weights=True).attention


def weights(session: Session, text: str) -> tuple[list[str], np.ndarray]:
    """The tokens of `text` as they are shown, `<s>` first, and the attention weights `[L, N, T, T]`.

    `weights[l, n, t, s]` is how much token t looks at token s in layer l and head n; each row sums to 1.

    Raises:
        UserError: the text is longer than the context.
    """
    tokenizer = session.tokenizer
    ids = [*tokenizer.begin, *tokenizer.encode(text)]
    fits(session, ids, "text")
    tokens, lengths = padded(session, [ids], row_bucket(session, 1), bucket(len(ids)))
    with jax.set_mesh(session.mesh):
        arguments = put(session.mesh, (tokens, lengths[:, None]))
        found_LBKGTS = np.asarray(_weights(session.architecture, session.params, *arguments, dtype=session.dtype))
    found_LKGTS = found_LBKGTS[:, 0, ..., : len(ids), : len(ids)]
    L, K, G, T, S = found_LKGTS.shape
    return [tokenizer.piece(token) for token in ids], found_LKGTS.reshape(L, K * G, T, S).astype(np.float32)
