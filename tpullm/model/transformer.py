"""The decoder-only Transformer: embed tokens, pass them through L blocks, and score every next token.

One model computes all families of published models: `ModelConfig` has everything in which they differ. Layers are
stacked and scanned; a CPU unrolls them. If the first ones have no experts, they are a stack of their own.

Shapes: B batch, T query length, S key length, D model width, K key/value heads, V vocabulary, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tpullm.model.adapter import with_adapters
from tpullm.model.attention.kernels import attention_kernel
from tpullm.model.attention.plain import causal_mask
from tpullm.model.attention.rope import rotary_table
from tpullm.model.attention.self_attention import LayerKind
from tpullm.model.block import Block, rematerialized
from tpullm.model.collectives import all_gather
from tpullm.model.experts.moe import Routing
from tpullm.model.linear import lookup, parameter
from tpullm.model.mesh import RULES, axis_size
from tpullm.model.mlp import Norm, dropout
from tpullm.model.packed import is_packed
from tpullm.model.platform import unrolled_layers
from tpullm.model.quantized import dequantize_after, is_quantized
from tpullm.recipe.schema import AdapterConfig, ModelConfig


class Output(NamedTuple):
    """The output of the model for tokens.

    `hidden`: the normalized residual stream `[B, T, D]`, from which `output_table` scores the next token; `attention`:
    the weights `[L, B, K, G, T, S]`, or None; `routing`: of all layers with experts (`[L, ...]`), or None without any.
    """

    hidden: jax.Array
    attention: jax.Array | None
    routing: Routing | None


class Transformer(nnx.Module):
    """The whole model. Layers are stacked (`[L, ...]`) so that one traced block serves all of a stack."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, adapter: AdapterConfig | None = None):
        self.config = config
        self.embedding = parameter(rngs, (config.vocabulary_size, config.width), ("vocabulary", "embed"), 0.02)
        learned, shape = config.positions == "learned", (config.context_length, config.width)
        self.position_embedding = parameter(rngs, shape, ("position", "embed"), 0.02) if learned else None

        keys = jax.random.split(rngs.params(), config.layers)
        for name, (of_layer, numbers) in config.stacks.items():

            def layer(rngs: nnx.Rngs, of_layer: ModelConfig = of_layer) -> nnx.Module:
                return with_adapters(Block(of_layer, rngs), adapter, rngs)

            graph, _ = nnx.split(jax.eval_shape(lambda: layer(nnx.Rngs(0))))
            own = keys[numbers.start : numbers.stop]
            setattr(self, name, nnx.merge(graph, jax.vmap(lambda key: nnx.split(layer(nnx.Rngs(key)))[1])(own)))
        self.norm = Norm(config, (config.width,), ("width",), rngs)
        if not config.tied_embeddings:
            shape = (config.vocabulary_size, config.width)
            self.head = parameter(rngs, shape, ("vocabulary", "embed"), config.width**-0.5)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Token ids `[B, T]` to vectors `[B, T, D]`, plus the vectors of their positions if positions are learned."""
        axes, reduce_dtype = ("vocabulary", "embed"), self.config.gradients
        if is_packed(table := self.embedding[...]):
            vectors = table.rows(tokens_BT, dtype, RULES.spec("batch", "time", "width"))
        else:
            vectors = lookup(axes, reduce_dtype, dtype, table, tokens_BT)
        if self.config.scale_embeddings:
            vectors *= jnp.asarray(self.config.width**0.5, dtype)
        if self.config.embedding_scale != 1:
            vectors *= jnp.asarray(self.config.embedding_scale, dtype)
        if self.position_embedding is None:
            return vectors
        return vectors + lookup(("position", "embed"), reduce_dtype, dtype, self.position_embedding[...], positions_BT)

    def normalized(self, x_BTD: jax.Array) -> jax.Array:
        """The residual stream after all layers, as `output_table` scores it."""
        x_BTD, divisor = self.norm(x_BTD), self.config.logit_divisor
        return x_BTD if divisor == 1 else x_BTD / divisor

    def output_table(self, dtype: jnp.dtype) -> jax.Array:
        """The table `[V, D]` whose rows score the next token."""
        return all_gather(self.output_parameter(), "vocabulary", "embed", dtype=dtype)

    def output_parameter(self) -> jax.Array:
        """The same as a parameter, sharded as at rest."""
        return (self.embedding if self.config.tied_embeddings else self.head)[...]

    def unstacked(self) -> list[list[jax.Array]]:
        """The parameters of each layer, for `after_layers`: made once, since making them copies all parameters."""
        found = []
        for name, (_, numbers) in self.config.stacks.items():
            stacked = jax.tree.leaves(nnx.split(getattr(self, name))[1])
            found += [[leaf[n] for leaf in stacked] for n in range(len(numbers))]
        return found

    def __call__(
        self, tokens_BT, segment_ids_BT, positions_BT, *, dtype, key=None, keep_weights=False, branched=False
    ) -> Output:
        """Token ids to the `Output`.

        On several devices along `sequence`, the tokens of a row are in zigzag order (`model/rows.py`).

        Args:
            tokens_BT, segment_ids_BT, positions_BT: `[B, T]` int32.
            dtype: type of the matmuls.
            key: for dropout; None is no dropout.
            keep_weights: also return the attention weights.
            branched: rows hold several answers to one prompt.
        """
        with jax.named_scope("embedding"):
            x_BTD = dropout(self.embed(tokens_BT, positions_BT, dtype), self.config.dropout, key)
        own, length, sequence = (segment_ids_BT, positions_BT), tokens_BT.shape[1], axis_size(RULES.time)
        kernel = "plain" if keep_weights else attention_kernel(self.config, length, sequence, branched)
        kinds, indices = self._kinds(own, kernel), [kind for _, kind in self.config.kinds_by_layer]
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, 1), self.config.layers)
        kept, routing = [], None
        for name, (_, numbers) in self.config.stacks.items():
            graph, stacked = nnx.split(getattr(self, name))

            def layer(x_BTD, scanned, graph=graph):
                state, layer_key, index = scanned
                kind = kinds[0] if len(kinds) == 1 else jax.tree.map(lambda *of: jax.lax.select_n(index, *of), *kinds)
                block = nnx.merge(graph, state)
                x_BTD, weights, routing = block(x_BTD, kind, *own, kernel, key=layer_key)
                return x_BTD, (weights if keep_weights else None, routing)

            part = slice(numbers.start, numbers.stop)
            scanned = (stacked, None if keys is None else keys[part], jnp.asarray(indices[part], jnp.int32))
            layer, unrolled = rematerialized(layer, self.config.remat), unrolled_layers(len(numbers))
            x_BTD, (weights, routing) = jax.lax.scan(layer, x_BTD, scanned, unroll=unrolled)
            kept.append(weights)
        weights = kept[0] if len(kept) == 1 or not keep_weights else jnp.concatenate(kept)
        return Output(self.normalized(x_BTD), weights, routing)

    def _kinds(self, own, kernel: str, longest_B: jax.Array | None = None) -> list[LayerKind]:
        """The kinds of layers, as of `layer_kinds`.

        Args:
            own: segment ids and positions, `[B, T]`.
            longest_B: of `rotary_table`.
        """
        kinds = []
        for index, (window, rotates) in enumerate(self.config.layer_kinds):
            arguments = *reversed(own), self.config, window > 0, longest_B, rotates
            table = rotary_table(*arguments) if self.config.positions == "rotary" else None
            mask_BTS = causal_mask(*own, *own, window or None) if kernel in ("plain", "blocks") else None
            kinds.append(LayerKind(table, mask_BTS, jnp.int32(window or 2**30), jnp.int32(index)))
        return kinds

    def after_layers(self, x_BTD, segment_ids_BT, positions_BT, longest_B, layers, kinds, attend) -> jax.Array:
        """The residual stream `[B, T, D]` after some of the layers, of tokens whose earlier keys the caller caches.

        Args:
            longest_B: how long each row's text may become.
            layers: of `unstacked`, those that are meant; None is all of them, read where they stand.
            kinds: of each of them, as `kinds_by_layer` has it.
            attend: of a layer's number and window (0 is none), the function that mixes its values: `kernel` of
                `Attention`. It gets the new keys and values, and caches them.
        """
        own = (segment_ids_BT, positions_BT)
        stacks = {name: nnx.split(getattr(self, name)) for name in self.config.stacks}
        layers = self.unstacked() if layers is None else layers
        layer_kinds, every_kind = self.config.layer_kinds, self._kinds(own, "", longest_B)
        for number, (leaves, (stack, index)) in enumerate(zip(layers, kinds, strict=True)):
            graph, stacked = stacks[stack]
            state = jax.tree.unflatten(jax.tree.structure(stacked), leaves)
            if any(map(is_quantized, jax.tree.leaves(state, is_leaf=is_quantized))):
                state, x_BTD = dequantize_after(state, x_BTD)
            block = nnx.merge(graph, state)
            x_BTD, *_ = block(x_BTD, every_kind[index], *own, attend(number, layer_kinds[index][0]))
        return x_BTD

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores of every next token, `[B, T, V]` float32."""
        if is_packed(table := self.output_parameter()):
            spec = RULES.spec("batch", "time", "vocabulary")
            return soft_capped(table.matmul(hidden_BTD, spec), self.config.logit_softcap)
        return logits(hidden_BTD, self.output_table(hidden_BTD.dtype), self.config.logit_softcap)


def logits(hidden_BTD: jax.Array, table_VD: jax.Array, softcap: float) -> jax.Array:
    """Scores of every next token, `[B, T, V]` float32, bounded by tanh if `softcap` is not 0 (Gemma 2)."""
    spec = RULES.spec("batch", "time", "vocabulary")
    out = jnp.einsum("btd,vd->btv", hidden_BTD, table_VD, out_sharding=spec, preferred_element_type=jnp.float32)
    return soft_capped(out, softcap)


def soft_capped(logits: jax.Array, softcap: float) -> jax.Array:
    """Logits bounded by tanh if `softcap` is not 0 (Gemma 2)."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits
