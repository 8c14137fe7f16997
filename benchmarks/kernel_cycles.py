"""The cycles of the attention kernels by the TPU compiler's schedule: the tables in hardware/chips.yaml.

    python benchmarks/kernel_cycles.py            # all, three minutes

The text of a program does not have a kernel's cycles. But the compiler can dump the instructions of each core, one
bundle a cycle. Counted are the bundles that multiply a block in a turn of the kernel's loop (`body`), those of every
turn (`turn`), and those that begin and end a row of blocks (`edge`). They do not include waiting for memory.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tpullm.hardware.chips import CHIPS
from tpullm.recipe.schema import ATTENTION_BLOCKS

NAMES = {"fwd": "forward", "dq": "queries", "dkv": "keys"}
LENGTH, HEADS, WIDTH = 4096, 2, 128
REGION = re.compile(r"(Start|End) region (\d+)")
LEAST = 30  # bundles: smaller regions are part of every turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, help="generation, block, `fused` or `apart`: compile that here")
    one = parser.parse_args().one
    if one:
        compile_one(one[0], int(one[1]), one[2] == "fused")
        return
    for generation in (name for name, chip in CHIPS.items() if chip.slices):
        for block in reversed(ATTENTION_BLOCKS):
            found = measured(generation, block, "apart")
            if found:
                found["all"] = measured(generation, block, "fused").get("keys")
            told = (
                ", ".join(f"{name}: {list(found[name])}" for name in (*NAMES.values(), "all")) if found else "refused"
            )
            print(f"{generation} {block}: {{{told}}}", flush=True)


def measured(generation: str, block: int, how: str) -> dict[str, tuple[int, int, int]]:
    """Bundles of `body`, `turn` and `edge` of each kernel; empty if it does not fit the VMEM."""
    with tempfile.TemporaryDirectory() as folder:
        told = {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, "--one", generation, str(block), how]
        done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True)
        if "CompileTimeScopedVmemOom" in done.stderr:
            return {}
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found = {}
        for kernel, name in NAMES.items():
            for path in Path(folder).glob(f"*splash_mha_{kernel}_*final_bundles.txt"):
                if "schedule-analysis" not in path.name:
                    found[name] = counted(path.read_text())
        return found


def counted(text: str) -> tuple[int, int, int]:
    """The bundles of one kernel. Its largest region without inner regions is the body; others begin or end a row."""
    starts, regions, address = {}, [], 0
    for line in text.splitlines():
        if not (found := re.match(r"\s*0x([0-9a-f]+)\s", line)):
            continue
        address = int(found[1], 16)
        for kind, name in REGION.findall(line):
            if kind == "Start":
                starts[name] = address
            elif name in starts:
                regions.append((starts[name], address))
    inside = lambda a, b: b[0] <= a[0] and a[1] <= b[1]  # noqa: E731
    bodies = [
        a
        for a in regions
        if a[1] - a[0] >= LEAST and not any(inside(b, a) and b[1] - b[0] >= LEAST for b in regions if b != a)
    ]
    body = max(bodies, key=lambda of: of[1] - of[0])
    others = [a for a in set(regions) if a[1] - a[0] >= LEAST and not inside(body, a)]
    edge = sum(a[1] - a[0] for a in others if not any(inside(a, b) for b in others if b != a))
    size = body[1] - body[0]
    return size, address - size - edge, edge


def compile_one(generation: str, block: int, fused: bool) -> None:
    """Compile both passes of causal attention within documents."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
    from jax.sharding import NamedSharding, PartitionSpec

    from tpullm.hardware.topologies import Slices
    from tpullm.planning.program import compiler_mesh

    shape = next(shape for shape in CHIPS[generation].slices.small if math.prod(shape) == 4)
    mesh = compiler_mesh({"fsdp": -1}, Slices(generation, shape))
    of_queries = {"use_fused_bwd_kernel": True} if fused else {"block_q_dq": block, "block_kv_dq": block}
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block), **of_queries)
    mask = masks.MultiHeadMask([masks.CausalMask((LENGTH, LENGTH))] * HEADS)
    kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)

    def gradients(q_NTH, k_NTH, v_NTH, segments_T):
        attend = lambda *x: kernel(*x, segment_ids=kernels.SegmentIds(segments_T, segments_T))  # noqa: E731
        return jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), (0, 1, 2))(q_NTH, k_NTH, v_NTH)

    whole = NamedSharding(mesh, PartitionSpec())
    array = jax.ShapeDtypeStruct((HEADS, LENGTH, WIDTH), jnp.bfloat16, sharding=whole)
    segments = jax.ShapeDtypeStruct((LENGTH,), jnp.int32, sharding=whole)
    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    jax.jit(mapped).lower(array, array, array, segments).compile()


if __name__ == "__main__":
    main()
