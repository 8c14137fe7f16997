"""Our programs on one GPU: the step of a recipe with what the plan expects of it, the step as the compiler has it for
an absent GPU, and the attention kernel beside cuDNN's by JAX.
"""

import contextlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import ours
from attention_truth import Arrays
from attention_turns import Kernel, turns
from figures import versions
from gpu_cases import Attention
from turns import Program

from tpullm.hardware.peak_flops import peak
from tpullm.hardware.topologies import parse
from tpullm.model.attention.triton import triton_attention
from tpullm.model.mesh import make_mesh, named_sharding
from tpullm.model.platform import compute_dtype
from tpullm.planning.economics import estimate_step
from tpullm.planning.memory import device_memory, global_state
from tpullm.planning.proof import prove
from tpullm.planning.this_machine import setting_here
from tpullm.recipe import shipped
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import Recipe
from tpullm.system.log import say

BATCHES = 4


def training(recipe: str, changes: list[str]) -> Program:
    """Steps of a recipe on one device; a unit is a step, and `peak_bytes` of an answer the peak memory so far."""
    loaded, mesh = recipe_of(recipe, changes), make_mesh({}, jax.devices()[:1])
    model, config = loaded.model.resolved(loaded.tokenizer.vocabulary_size), loaded.pretrain
    setting = setting_here(model, config, mesh)
    expected = {
        "step_seconds": estimate_step(setting).step_seconds,
        "peak_bytes": device_memory(setting, global_state(model, config.optimizer)).peak,
    }
    rows = ours.random_rows(model.vocabulary_size, config.batch_size, config.sequence_length, BATCHES)
    program = ours.stepping(model, config, mesh, rows)

    def run(count: int) -> dict:
        answer = program.run(count)
        statistics = mesh.devices.flat[0].memory_stats() or {}
        return answer | {"peak_bytes": statistics.get("peak_bytes_in_use")}

    facts = program.facts | {
        "tokens": config.batch_size * config.sequence_length,
        "peak_flops": peak(compute_dtype(config.compute)).flops,
        "topology": str(setting.topology),
        "expected": expected,
        "versions": versions(),
    }
    return Program(run, facts)


def proven(recipe: str, changes: list[str], topology: str) -> Program:
    """The same step as `plan --compile` has it. It does not run; the facts are all."""
    proof = prove(recipe_of(recipe, changes), parse(topology), say)
    seconds = None if proof.refused else proof.step_seconds
    return Program(
        lambda count: None,
        {"versions": versions(), "step_seconds": seconds, "peak_bytes": proof.peak_bytes, "failed": proof.refused},
    )


def recipe_of(name: str, changes: list[str]) -> Recipe:
    """A shipped recipe with changes, such as `--model.remat=none`, for one device."""
    return load(Path(shipped.find(name)), [*changes, "--mesh", "{}"])


def attention(**shape: int) -> Program:
    """Our kernel beside cuDNN's, which is only measured without documents: JAX gives it a mask of all pairs."""
    case, device = Attention(**shape), jax.devices()[0]
    return turns(
        case,
        {"tpullm": _ours} | ({"JAX cuDNN": _cudnn} if case.documents == 1 else {}),
        lambda x: jax.device_put(x.astype(jnp.bfloat16), device),
        lambda x: np.asarray(x[-1].astype(jnp.float32)),
        jax.block_until_ready,
    )


def _ours(given: Arrays, begins_BT: np.ndarray) -> Kernel:
    length, mesh = begins_BT.shape[1], make_mesh({}, jax.devices()[:1])
    shardings = [named_sharding(mesh, "batch", "time", heads, "head") for heads in ("heads", "kv_heads")]
    queries, keys = shardings
    positions_BT = np.arange(length, dtype=np.int32) - begins_BT
    with jax.set_mesh(mesh):
        positions_BT = jax.device_put(positions_BT, named_sharding(mesh, "batch", "time"))
        given = Arrays(*jax.device_put(tuple(given), (queries, keys, keys, queries)))

    def attend(q_BTNH, k_BTKH, v_BTKH):
        keys = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        return triton_attention(q_BTNH, *keys, positions_BT, jnp.int32(length))

    return _kernel(attend, given, lambda: jax.set_mesh(mesh))


def _cudnn(given: Arrays, begins_BT: np.ndarray) -> Kernel:
    del begins_BT
    attend = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    return _kernel(attend, given, contextlib.nullcontext)


def _kernel(attend, given: Arrays, used) -> Kernel:
    """`used` makes the context of every call."""

    def with_gradients(q_BTNH, k_BTKH, v_BTKH, d_BTNH):
        mixed_BTNH, back = jax.vjp(attend, q_BTNH, k_BTKH, v_BTKH)
        return mixed_BTNH, *back(d_BTNH)

    passes = jax.jit(attend), jax.jit(with_gradients)

    def forward():
        with used():
            return passes[0](*given[:3])

    def gradient():
        with used():
            return passes[1](*given)

    return Kernel(forward, gradient)
