"""Self-attention on a TPU: the splash kernel (block-sparse flash attention, in Pallas), which ships with JAX.

Shapes: B batch, T query length, S key length, N query heads, K key/value heads, H head width.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from tpullm.model.attention.kernels import splash_block
from tpullm.model.mesh import RULES, axis_size
from tpullm.model.platform import target_platform
from tpullm.model.rows import all_gather_row, zigzag_order


def splash(q_BTNH, k_BKTH, v_BKTH, segments_BT, windows: list[int], kind, softcap=0.0, sinks_N=None, block=0):
    """The mixed values `[B, T, N, H]` of `plain.attend`, for queries and keys of the same tokens.

    Args:
        windows: of each kind of layer, how many tokens a token attends to, itself included; 0 is all.
        kind: the index of this layer's kind.
        block: queries and keys at a time, at most; 0 is the choice of `kernels.splash_block`.
    """
    axis, tensor = RULES.time, axis_size(RULES.heads)
    heads, length = q_BTNH.shape[2] // tensor, q_BTNH.shape[1]
    different = sorted(set(windows))
    if different != windows:  # kinds that differ in something else
        kind = jnp.asarray(list(map(different.index, windows)))[kind]
    made = [_splash_kernel(length, window, heads, axis_size(axis), block, softcap) for window in different]
    mesh = jax.sharding.get_abstract_mesh()
    specs = [kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axis))) for kernel in made]
    made = [jax.tree.map(jax.reshard, *pair) for pair in zip(made, specs, strict=True)]

    def local(q_BTNH, k_BKTH, v_BKTH, segments_BT, kind, sinks_N, *made):
        k_BKSH, v_BKSH = (all_gather_row(x, axis, 2) for x in (k_BKTH, v_BKTH))
        k_segments_BS = all_gather_row(segments_BT, axis, 1)
        # The kernel does not scale.
        scaled = (q_BTNH.astype(jnp.float32) * q_BTNH.shape[-1] ** -0.5).astype(q_BTNH.dtype)

        def of_row(kernel, q_NTH, k_KSH, v_KSH, segments_T, k_segments_S):
            ids = kernels.SegmentIds(segments_T, k_segments_S)
            return kernel(q_NTH, k_KSH, v_KSH, segment_ids=ids, sinks=sinks_N)

        branches = [jax.vmap(partial(of_row, kernel)) for kernel in made]
        arguments = (scaled.swapaxes(1, 2), k_BKSH, v_BKSH, segments_BT, k_segments_BS)
        mixed_BNTH = branches[0](*arguments) if len(branches) == 1 else jax.lax.switch(kind, branches, *arguments)
        return mixed_BNTH.swapaxes(1, 2)

    spec = RULES.spec("batch", "time", "heads", "head")
    mapped = jax.shard_map(local, out_specs=spec, check_vma=False)
    return mapped(q_BTNH, k_BKTH, v_BKTH, segments_BT, kind, sinks_N, *made)


class _Mask(masks.CausalMask):
    """A causal mask of `length` tokens, of which each sees `window`, itself included; 0 is all.

    A block whose tokens all see all others, or none, is one number. JAX looks at each block of a mask, and computed all
    pairs of tokens.
    """

    def __init__(self, length: int, window: int):
        super().__init__((length, length))
        self._window, self._blocks = window or length, {}
        if window:
            self.mask_function = lambda q, k: (q >= k) & (q - k < window)

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        rows, columns = self.q_sequence[place[0]], place[1]
        first, last, window = int(rows[0]), int(rows[-1]), self._window
        if last - first != len(rows) - 1:  # of two turns of a zigzag
            return super().__getitem__(place)
        if first >= columns.stop - 1 and last - columns.start < window:
            return np.ones((1, 1), bool)
        if last < columns.start or first - columns.stop + 1 >= window:
            return np.zeros((1, 1), bool)
        key = first - columns.start, len(rows), columns.stop - columns.start
        if key not in self._blocks:
            self._blocks[key] = super().__getitem__(place)
        return self._blocks[key]

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self._window == other._window

    __hash__ = masks.CausalMask.__hash__


def _splash_kernel(length: int, window: int, heads: int, sequence: int, most: int, softcap: float):
    mask = _Mask(length, window)
    if sequence > 1:
        mask.q_sequence = zigzag_order(length, sequence).astype(np.int32)
    turn = length // (2 * sequence if sequence > 1 else 1)
    q, kv = splash_block(turn, most), splash_block(length, most)
    # One pass for all gradients would take 0.7 of the time of these two. But it writes a partial gradient of queries
    # for each block of keys, and summing them takes longer than that saves (docs/design/tpu-programs.md).
    sizes = kernels.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=sequence,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name="attention",
        # Without a TPU (in tests) the kernel is interpreted.
        interpret=target_platform() != "tpu",
    )
