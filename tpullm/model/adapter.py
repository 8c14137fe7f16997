"""Low-rank adapters: beside a matrix that stays as it is stand two small ones, which alone are trained.

LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024), as PEFT computes them. A checkpoint of
such a stage holds the adapter alone, and names the checkpoint of its base. The next stage, `export --merge` and a model
in use get merged parameters (`formats/models.py`). Query, key and value have adapters of their own.

Shapes: a matrix is `[*inputs, *outputs]`, its adapter `a` is `[*inputs, R]` and `b` is `[R, *outputs]`, R the rank.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.model.collectives import all_gather
from tpullm.model.experts.moe import Experts
from tpullm.model.linear import Linear, matmul, parameter, vector_axes
from tpullm.model.mesh import RULES
from tpullm.model.packed import is_packed
from tpullm.model.quantized import Quantized, dequantized
from tpullm.recipe.schema import AdapterConfig

Tree = Any
NAME = "adapter"  # in the path of each parameter of an adapter, after that of its matrix


class LowRank(nnx.Module):
    """The adapter of a `Linear`: its product with `x` becomes `x W + scale x a b`.

    With DoRA each output has in addition a learned length, `magnitude`, over that of its column of `W + scale a b`. The
    latter counts as a constant in the gradient. Experts have no magnitudes, and multiply with their adapters themselves
    (`model/experts/moe.py`).
    """

    def __init__(self, config: AdapterConfig, rngs: nnx.Rngs, linear: Linear | Experts):
        shape, axes, self.inputs = linear.weight.shape, linear.axes, linear.inputs
        experts, stacked = shape[: len(shape) - len(axes)], ("experts",) * (len(shape) - len(axes))
        inputs, outputs = shape[len(experts) :][: self.inputs], shape[len(experts) :][self.inputs :]
        self.axes_a = (*stacked, *axes[: self.inputs], "rank")
        self.axes_b = (*stacked, "rank", *axes[self.inputs :])
        # As wide as PEFT's uniform numbers. The second matrix is 0, so a fresh adapter changes nothing.
        deviation = (3 * math.prod(inputs)) ** -0.5
        self.a = parameter(rngs, (*experts, *inputs, config.rank), self.axes_a, deviation)
        self.b = parameter(rngs, (*experts, config.rank, *outputs), self.axes_b, 0.0)
        lengths = config.magnitude and not experts
        self.magnitude = parameter(rngs, outputs, vector_axes(self.axes_b[1:]), None) if lengths else None
        self.scale, self.reduce_dtype = config.scale, linear.reduce_dtype

    def __call__(self, subscripts: str, x: jax.Array, out: jax.Array, out_spec, weight) -> jax.Array:
        """What becomes of `out`, the product of `x` and `weight` by `subscripts`."""
        operands, result = subscripts.split("->")
        left, right = operands.split(",")
        read, new = right[: self.inputs], right[self.inputs :]
        kept = "".join(letter for letter in left if letter not in read)
        narrow = RULES.spec("batch", "time", "rank")
        low = matmul(f"{left},{read}r->{kept}r", self.axes_a, "compute", self.reduce_dtype, narrow, x, self.a[...])
        subscripts, b = f"{kept}r,r{new}->{result}", self.b[...]
        out = out + self.scale * matmul(subscripts, self.axes_b, "compute", self.reduce_dtype, out_spec, low, b)
        if self.magnitude is None:
            return out
        length = jax.lax.stop_gradient(column_lengths(weight, self.a[...], self.b[...], self.scale))
        axes = vector_axes(self.axes_b[1:])
        factor = self.magnitude[...] / jax.reshard(length, RULES.spec(*axes))
        return out * all_gather(factor, *axes, dtype=x.dtype)


def with_adapters(module: nnx.Module, config: AdapterConfig | None, rngs: nnx.Rngs) -> nnx.Module:
    """The module, in which each matrix that is a target has an adapter."""
    if config and config.rank:
        for path, inner in nnx.iter_modules(module):
            if path and path[-1] in config.targets and isinstance(inner, Linear | Experts):
                inner.adapter = nnx.data(LowRank(config, rngs, inner))
    return module


def column_lengths(weight: jax.Array | Quantized, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """The length of each column of `weight + scale a b`, over the inputs, float32."""
    weight = weight.unpacked() if is_packed(weight) else dequantized(weight)
    total = jnp.square(_weight_plus_adapter(weight, a, b, scale))
    return jnp.sqrt(jnp.sum(total, axis=tuple(range(_stacking_dimensions(weight, a, b), a.ndim - 1))))


def _stacking_dimensions(weight: jax.Array, a: jax.Array, b: jax.Array) -> int:
    """How many dimensions stack layers and experts."""
    return a.ndim + b.ndim - 2 - weight.ndim


def _weight_plus_adapter(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """`weight + scale a b`, float32, sharded as the weight is."""
    stacked, letters = _stacking_dimensions(weight, a, b), "defghijklm"
    lead, inputs = letters[:stacked], letters[stacked : a.ndim - 1]
    outputs = letters[a.ndim - 1 : weight.ndim]
    subscripts = f"{lead}{inputs}r,{lead}r{outputs}->{lead}{inputs}{outputs}"
    spec = jax.typeof(weight).sharding.spec
    return weight.astype(jnp.float32) + scale * jnp.einsum(subscripts, a, b, out_sharding=spec, precision="highest")


def merge_adapters(params: Tree, adapters: Tree, scale: float) -> Tree:
    """The parameters of a model with its adapters merged: a matrix computes alone what it did with its adapter.

    Args:
        adapters: a part of the tree of parameters, with `NAME` beside each `weight` that has an adapter.
    """
    if NAME not in adapters:
        inner = {key: merge_adapters(params[key], below, scale) for key, below in adapters.items() if key in params}
        return params | inner
    weight, adapter = params["weight"], adapters[NAME]
    a, b, total = adapter["a"], adapter["b"], _weight_plus_adapter(weight, adapter["a"], adapter["b"], scale)
    if "magnitude" in adapter:
        inputs = tuple(range(_stacking_dimensions(weight, a, b), a.ndim - 1))
        total *= jnp.expand_dims(adapter["magnitude"] / column_lengths(weight, a, b, scale), inputs)
    return params | {"weight": total.astype(weight.dtype)}


def with_magnitudes(params: Tree, adapters: Tree) -> Tree:
    """Fresh adapters whose magnitudes are the lengths of the columns of their matrices, so that they change nothing."""
    if NAME not in adapters:
        return {key: with_magnitudes(params[key], below) for key, below in adapters.items()}
    fresh = adapters[NAME]
    if "magnitude" in fresh:
        length = column_lengths(params["weight"], fresh["a"], fresh["b"], 0.0)
        fresh = fresh | {"magnitude": jax.reshard(length, jax.typeof(fresh["magnitude"]).sharding.spec)}
    return {NAME: fresh}
