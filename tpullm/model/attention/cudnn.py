"""Self-attention on a GPU: cuDNN's flash attention.

Shapes: B batch, T length, N query heads, K key/value heads, H head width.
"""

import jax

from tpullm.mesh.layout import RULES


def cudnn_attention(q_BTNH, k_BKTH, v_BKTH, mask_BTT) -> jax.Array:
    """The mixed values `[B, T, N, H]` of `plain.attend`, for queries and keys of the same tokens."""

    def local(q_BTNH, k_BKTH, v_BKTH, mask_BTT):
        k_BTKH, v_BTKH = k_BKTH.swapaxes(1, 2), v_BKTH.swapaxes(1, 2)
        return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask_BTT[:, None], implementation="cudnn")

    spec = RULES.spec("batch", "time", "heads", "head")
    return jax.shard_map(local, out_specs=spec, check_vma=False)(q_BTNH, k_BKTH, v_BKTH, mask_BTT)
