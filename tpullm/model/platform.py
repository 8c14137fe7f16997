"""What depends on the machine, chosen in one place, each with the measurement that decided it."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

from tpullm.config import ATTENTION_BLOCKS, ModelConfig
from tpullm.sharding import device

# Bytes of the float32 scores in a chunk of the loss, at most: see `logits_bytes`.
CHUNK, CHUNK_HERE = 1 << 30, 64 << 20
# The longest row whose attention weights a CPU keeps: in bfloat16 they are 17 MB a head.
LONGEST_KEPT = 4096


def target() -> str:
    """The platform that is computed for (`cpu`, `gpu`, `tpu`): that of the mesh, which may be of devices not here."""
    return device().platform if device() is not None else jax.default_backend()


def compute_dtype(choice: str) -> jnp.dtype:
    """The type of products for `auto`, `float32` or `bfloat16`.

    bfloat16 is for a CPU too: 2048-wide products on two Zen cores ran at 400 GFLOP/s, and at 200 in float32; with AMX
    bfloat16 was 5 times faster.
    """
    return jnp.dtype("bfloat16" if choice == "auto" else choice)


def product_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type that a product of two arrays in `dtype` comes in before it is made `dtype`.

    float32 for JAX 0.10 on a CPU, whose library of products only has that: 4,096 x 384 by 384 x 1,024 in bfloat16 ran
    at 187 GFLOP/s to bfloat16 and at 345 to float32. JAX 0.12 has both, and float32 costs it 5 % of the quickstart's
    step.
    """
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    return jnp.dtype("float32") if target() == "cpu" and version < (0, 11) else dtype


def cache_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type of cached keys and values: float32 on a CPU, which would convert all of them for every token."""
    return jnp.dtype("float32") if target() == "cpu" else dtype


def unrolled(layers: int) -> int:
    """How many layers a scan unrolls. A CPU loses a third to slicing stacked weights; a TPU compiles faster scanned."""
    return layers if target() == "cpu" and layers <= 12 else 1


def has_ragged_exchange() -> bool:
    """Whether devices of the mesh can send each other rows of uneven numbers in one operation, and not padded.

    TPUs can, but v5e: its compiler refuses on 64 and 256 chips ("not supported in limited ICI routing settings", libtpu
    0.0.50), where those of v5p and v6e don't. XLA for a CPU does not compile `ragged-all-to-all` (JAX 0.10 and 0.12),
    and nobody has tried several GPUs here. All these send padded rows, to the same numbers.
    """
    return target() == "tpu" and device() is not None and device().device_kind != "TPU v5 lite"


def row_shape(width: int) -> tuple[int, ...]:
    """The dimensions of a row of that width that is gathered and sent by itself, in which it is one piece of memory.

    A TPU keeps `[rows, width]` in tiles of 8 rows; there a row that is alone is laid out anew, in tiles of 2.
    """
    return (8, width // 8) if target() == "tpu" and width % (8 * 128) == 0 else (width,)


def in_memory_order(x: jax.Array) -> jax.Array:
    """`x` as it is, with its last dimension contiguous in memory; elsewhere than on a CPU the compiler chooses.

    XLA would leave a transposed array where it is and give the product a slower form: see `layers.product`.
    """
    if target() != "cpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def halves_swapped(x_BTNH: jax.Array) -> jax.Array:
    """`x` with the two halves of its last dimension in each other's place, in the form that fuses with what follows.

    On a CPU that is a reversal of the two; a concatenation is an operation of its own. A TPU keeps the last dimension
    in its 128 lanes and would transpose all of `x` for either, there and back, in float32 (a tenth of a layer of 7 B
    parameters by the compiler's estimate): a product with a permutation gives the same numbers on its way.
    """
    *_, H = x_BTNH.shape
    spec = jax.typeof(x_BTNH).sharding.spec
    if target() == "tpu":
        swap = jnp.roll(jnp.eye(H, dtype=x_BTNH.dtype), H // 2, axis=1)
        return jnp.einsum("btnh,hg->btng", x_BTNH, swap, precision="highest", out_sharding=spec)
    halves = jnp.reshape(x_BTNH, (*x_BTNH.shape[:3], 2, H // 2), out_sharding=P(*spec[:3], None, spec[3]))
    return jnp.reshape(jax.lax.rev(halves, (3,)), x_BTNH.shape, out_sharding=spec)


def settled(x):
    """Arrays that are computed once and written: on a TPU, a product would compute them anew for each of its tiles.

    By the compiler's estimates the products around the activation of 7 B parameters took 1.5 times as long (v5e).
    """
    return jax.lax.optimization_barrier(x) if target() == "tpu" else x


def query_block(length: int) -> int:
    """How many queries attention takes at a time; all of them is one block."""
    block = max(128, length // 8)
    return block if length % block == 0 else length


# With XLA's defaults a v6e and a v5p stop for gathers and scatters (a v5e for scatters alone). These generations have
# small cores of another kind, which can do them meanwhile.
_ON_SPARSE_CORES = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "false",
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "false",
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_use_tc_device_shape_on_sc": "true",
    "xla_sc_disable_megacore_partitioning": "true",
}
COMPILER_OPTIONS = {"TPU v5": _ON_SPARSE_CORES, "TPU v5p": _ON_SPARSE_CORES, "TPU v6 lite": _ON_SPARSE_CORES}


def compiler_options() -> dict[str, str]:
    """What XLA is told beyond its defaults for the devices that are computed for."""
    return COMPILER_OPTIONS.get(device().device_kind, {}) if device() is not None else {}


def attention_kernel(config: ModelConfig, length: int, dtype: jnp.dtype, sequence: int) -> str:
    """How training attends on rows of `length` tokens, on `sequence` devices along time.

    `splash` on a TPU and `cudnn` on a GPU are their own kernels; a CPU attends in `blocks` whose weights it keeps, or
    plainly where caps or sinks are asked, up to a length; `flash` is everything else.
    """
    special = bool(config.attention_softcap or config.sinks)
    if target() == "tpu" and splash_fits(length, sequence):
        return "splash"
    if target() == "gpu" and dtype == jnp.bfloat16 and not special and sequence == 1:
        return "cudnn"
    if target() == "cpu" and sequence == 1 and length <= LONGEST_KEPT:
        return "plain" if special else "blocks"
    return "flash"


def splash_fits(length: int, sequence: int) -> bool:
    """Whether a TPU's kernel takes rows of that many tokens: 128 at a time, in two pieces a device."""
    return length % (128 * (2 * sequence if sequence > 1 else 1)) == 0


def splash_block(length: int, most: int = 0) -> int:
    """How many of `length` queries or keys a TPU's kernel takes at a time: at most `most`, or 1,024 if that is 0.

    1,024 is best by `planning/kernels.py`, but for a v6e from 8,192 tokens on, where 2,048 take 6 % less.
    """
    return next(block for block in ATTENTION_BLOCKS if block <= (most or 1024) and length % block == 0)


def largest_block(device_kind: str) -> int:
    """The most that `model.attention_block` can be: the compiler refuses 2,048 where a core has 16 MiB of its own."""
    return 2048 if device_kind == "TPU v6 lite" else 1024


def logits_bytes() -> int:
    """How large the float32 logits of one chunk of the loss may be.

    A CPU keeps 64 MiB near; an accelerator reads the whole output table for each chunk, so a chunk needs a thousand
    tokens to be bound by products and not by memory: 1 GiB is 2,000 tokens of 128 Ki scores.
    """
    return CHUNK_HERE if target() == "cpu" else CHUNK
