"""The peak memory of a device, by kind: the training state, kept activations, and the arrays of the worst moment.

The state's shapes and layouts are from `training.step.abstract_state`, once for a model; a mesh then only divides them.

Three moments can be the worst: the all-gather of the tables, the loss (where the table's gradient is whole, in float32)
and a layer's backward pass. The update never is: it holds all gradients and no activations. This is read off compiled
programs; tests compare it with `benchmarks/compiled.yaml`. XLA for GPUs works on two layers at once: it has the next
layer's parameters, and a second sum of gradients. Where much memory is free it takes more to wait less, which is not
counted.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpullm.model.architecture import Architecture
from tpullm.model.mesh import mesh_axes, planned_mesh
from tpullm.planning.routes import waits_for_parameters
from tpullm.planning.setting import PLACES, Setting, attention_parameters
from tpullm.recipe.schema import AdapterConfig, ModelConfig, OptimizerConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state

GlobalBytes = tuple[tuple[tuple[str, ...], int], ...]  # mesh axes, and the bytes of all global arrays that they shard


@dataclass(frozen=True)
class GlobalState:
    """Bytes of a training's state as global arrays, by the mesh axes that shard them.

    Args:
        parameters: that are trained: of the model, or of its adapter.
        optimizer: its state.
        frozen: the parameters beside an adapter.
    """

    parameters: GlobalBytes
    optimizer: GlobalBytes
    frozen: GlobalBytes = ()

    def total(self) -> int:
        """Bytes of what is trained: the size of a checkpoint."""
        return sum(size for _, size in self.parameters + self.optimizer)


def device_bytes(whole: GlobalBytes, sizes: tuple[int, ...]) -> float:
    """Bytes on one device of a mesh of these `sizes` (in the order of `AXES`)."""
    total = 0.0
    for axes, size in whole:
        for axis in axes:
            size /= sizes[PLACES[axis]]
        total += size
    return total


architecture_of = lru_cache(maxsize=8)(Architecture)


@lru_cache(maxsize=64)
def global_state(model: ModelConfig, optimizer: OptimizerConfig, adapter: AdapterConfig | None = None) -> GlobalState:
    """The state of a training of this model, or of an adapter beside it."""
    architecture, mesh = architecture_of(model, adapter), planned_mesh({}, 1)
    made = make_optimizer(optimizer, 1000, architecture.trained(architecture.axes), adapter=architecture.adapter)
    state = abstract_state(architecture, made, mesh)
    frozen = architecture.frozen(architecture.at_rest(mesh, jnp.dtype("bfloat16")))
    return GlobalState(*map(_global_bytes, (state["params"], state["optimizer"], frozen)))


def _global_bytes(tree) -> GlobalBytes:
    found = Counter()
    for leaf in jax.tree.leaves(tree):
        axes = mesh_axes(leaf.sharding.spec, range(min(len(leaf.shape), len(leaf.sharding.spec))))
        found[axes] += math.prod(leaf.shape) * leaf.dtype.itemsize
    return tuple(found.items())


PROGRAM = 34 << 20  # bytes of the program itself: 27 to 56 MiB in compiled programs


class Memory(NamedTuple):
    """Bytes of one device at the worst moment, by kind, and the name of that moment."""

    kinds: dict[str, float]
    moment: str

    @property
    def peak(self) -> float:
        """Bytes of all kinds."""
        return sum(self.kinds.values())


def device_memory(setting: Setting, whole: GlobalState) -> Memory:
    """The memory of a device at the worst moment of a step."""
    parameters, frozen = device_bytes(whole.parameters, setting.sizes), device_bytes(whole.frozen, setting.sizes)
    state = {"parameters": parameters, "optimizer": device_bytes(whole.optimizer, setting.sizes)}
    state |= {"frozen parameters": frozen} if setting.adapter else {}
    # Layers are cast once, outside of the loop over layers; frozen ones are in the type of the matmuls, or quantized.
    cast = setting.parameters_of_layers / setting.along("fsdp")
    if setting.adapter:
        cast = setting.adapters_of_layers / setting.along("fsdp", "expert")
    kept = {"kept activations": _kept_bytes(setting), "cast parameters": 2 * cast, "program": PROGRAM}
    if setting.adapter and setting.accumulation > 1:  # frozen tables are gathered once for all micro-batches
        kept["gathered tables"] = 2 * _frozen_copy(setting) * setting.tables
    # Offloaded activations of one layer. The backward pass fetches the next layer's while it uses this layer's.
    layer = 2.0 * setting.offloaded * setting.tokens / setting.along("tensor")
    going, coming = {"in flight to the host": layer}, {"from the host": 2 * layer}
    ahead = setting.on_gpu and setting.along("fsdp") > 1  # in the next layer's collectives
    summed = parameters * (setting.accumulation > 1) * (2 if ahead else 1)
    coming |= {"next layer": 2 * setting.layer_parameters} if ahead else {}
    moments = {
        "gather of the tables": kept | going | {"gradients": summed} | _moment_before_loss(setting),
        "loss": kept | going | {"gradients": summed} | _moment_of_loss(setting),
        "backward pass": kept | coming | {"gradients": summed + parameters} | _moment_of_backward(setting),
    }
    worst = max(moments, key=lambda name: sum(moments[name].values()))
    return Memory(state | moments[worst], worst)


def _kept_bytes(setting: Setting) -> float:
    """Bytes that the backward pass finds kept: the residual stream of each layer, and what remat keeps."""
    return sum(count * _kept_of_layer(of) for of, count in setting.stacks)


def _kept_of_layer(setting: Setting) -> float:
    model, tensor = setting.model, setting.along("tensor")
    N, K, H = model.heads / tensor, model.kv_heads / tensor, model.head_width
    lanes = H if setting.on_gpu else -(-H // 128) * 128  # a TPU pads an array's last dimension to a multiple of 128
    attention = model.heads * (lanes + 2) / tensor  # the kernel's output, and the log-sum-exp of each head in float32
    split = {"qkv": tensor, "out": 1, "up": 1 if model.experts else tensor}
    dots = attention + sum(size / split[name] for name, size in setting.dots.items())
    everything = attention + (N + 2 * K) * lanes + N * H + (model.qk_norm != "none") * (N + K) * H
    hidden = (3 if model.gated else 2) * model.mlp_width / tensor
    if model.experts:
        routed = 0 if setting.along("expert") > 1 else model.experts_per_token * (hidden + 2 * model.width)
        hidden = routed + model.shared_experts * hidden + model.experts
    everything = 3 * model.width + everything + hidden
    numbers = {"full": 0, "offload": 0, "save_attention": attention, "save_dots": dots, "none": everything}
    return 2.0 * setting.tokens * (model.width + numbers[setting.remat])


def _moment_before_loss(setting: Setting) -> dict[str, float]:
    """Before the loss: the gathered table, its transpose, the embedding table, and the zeros of the gradient."""
    table, hidden = setting.table, 4.0 * setting.tokens * setting.model.width
    if setting.adapter:
        tables = 2 * _frozen_copy(setting) * setting.tables * (setting.accumulation == 1)
        return {"table": tables, "hidden states": hidden}
    return {"table": 2 * (setting.tables + 1) * table, "gradient of the table": 4 * table, "hidden states": hidden}


def _moment_of_loss(setting: Setting) -> dict[str, float]:
    """The table and its gradient, whole along `fsdp`; a chunk of logits; the last hidden states and their gradient.

    XLA for GPUs writes the logits' gradient to memory, in bfloat16, and then what a chunk adds to the table's gradient.
    The table's gradient of the micro-batch before is still being scattered.
    """
    model, table = setting.model, setting.table
    scores = setting.tokens * model.vocabulary_size / setting.along("tensor") / setting.chunks
    hidden = {"hidden states": 6.0 * setting.tokens * model.width}
    held = {"scores": (6 if setting.on_gpu else 4) * scores}
    if setting.adapter:
        return {"table": 2 * _frozen_copy(setting) * (setting.accumulation == 1)} | held | hidden
    held |= {"gradient of the table": 4 * table}
    if setting.on_gpu and setting.chunks > 1 and table > scores:
        held = {"scores": 2 * scores, "gradient of the table": 8 * table}
    if setting.on_gpu and setting.accumulation > 1 and setting.along("fsdp") > 1:
        held["gradient of the table"] += 4 * table
    return {"table": 2 * table} | held | hidden


def _frozen_copy(setting: Setting) -> float:
    """Elements of a frozen table's copy, whole along `fsdp`; one device alone needs none."""
    return setting.table if setting.along("fsdp") > 1 else 0


def _moment_of_backward(setting: Setting) -> dict[str, float]:
    """One layer: its gathered parameters, its gradients in flight, and its recomputed activations.

    The compiler keeps the table's gradient until the end. In attention, RoPE's gradient is in float32: of queries, and
    of keys if there are as many. The inputs of the feed-forward part's gradients are still kept there; all of them if
    reduce-scatters overlap with matmuls.
    """
    model, tensor = setting.model, setting.along("tensor")
    table = {"gradient of the table": 0 if setting.adapter else setting.gradient * setting.table}
    if model.experts:
        return table | _experts_backward(setting)
    heads, keys = model.heads * model.head_width / tensor, model.kv_heads * model.head_width / tensor
    hidden = model.mlp_width / tensor
    numbers = setting.tokens * (3 * model.width + 2 * heads + 3 * hidden)
    mlp = {"one layer": 2 * numbers, "gathered parameters": 8 / 3 * setting.mlp_parameters}
    kept = (3 if waits_for_parameters(setting)[1] else 4) * model.mlp_width / tensor
    rotated = 4 * (heads + (keys if keys == heads else 0)) + heads * (model.qk_norm != "none")
    numbers = setting.tokens * (3 * model.width + kept + rotated + 3 * heads + 2 * keys)
    attention = {"one layer": 2 * numbers, "gathered parameters": 2 * attention_parameters(model) / tensor}
    return table | max(mlp, attention, key=lambda moment: sum(moment.values()))


def _experts_backward(setting: Setting) -> dict[str, float]:
    """The backward pass of experts: their weights and gradients, and rows in flight, in buffers that are not full.

    On GPUs, fitted to seven programs: with all experts on each GPU the gradients of a layer are not whole at once;
    along `expert` little more than one half of the tokens is in flight.
    """
    model, M, tensor = setting.model, setting.tokens, setting.along("tensor")
    D, F, k = model.width, model.mlp_width / tensor, model.experts_per_token
    buffers, matrices = 4.0, 4
    if setting.on_gpu:
        buffers, matrices = (4.0, 3) if setting.along("expert") == 1 else (2.5, 4)
    in_flight = buffers * M * k * setting.fullness * (D + F) + M * k * D
    around = M * (7 * D + 3 * model.heads * model.head_width / tensor)
    parameters = matrices * setting.mlp_parameters + 2 * attention_parameters(model) / tensor
    return {"one layer": 2 * (in_flight + around), "gathered parameters": parameters}
