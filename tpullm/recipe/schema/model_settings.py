"""Settings of step 3: the Transformer."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from tpullm.recipe.fields import (
    Changes,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    changing,
    declared_change,
    later,
)


@dataclass(frozen=True)
class RopeScaling:
    """Rotary positions for contexts longer than the original one.

    Args:
        kind: the method. `linear` (Chen et al. 2023), `dynamic` (NTK-aware, by the length so far), `llama3`
            (Grattafiori et al. 2024), `yarn` (Peng et al. 2023), `longrope` (Ding et al. 2024).
        factor: how many times longer the context becomes.
        original_context: the context of the first training, in tokens.
        low_frequency: for `llama3`: the lower bound, in turns. Frequencies with fewer turns in the original context are
            divided by `factor`.
        high_frequency: for `llama3`: the upper bound, in turns. Frequencies with more turns do not change.
        fast: for `yarn`: the upper bound, in turns. Frequencies with more turns do not change.
        slow: for `yarn`: the lower bound, in turns. Frequencies with fewer turns are divided by `factor`.
        truncate: for `yarn`: round the two bounds to whole dimensions.
        scale: for `yarn` and `longrope`: factor on cosine and sine.
        short: for `longrope`: divisors up to the original context. One for each frequency.
        long: for `longrope`: divisors beyond the original context. One for each frequency.
    """

    kind: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original_context: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    scale: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


# The values of `model.attention_block`, the largest first.
ATTENTION_BLOCKS = (2048, 1024, 512, 256, 128)


@dataclass(frozen=True)
class ModelConfig:
    """Step 3, the Transformer. A decoder-only one, by default as in Llama, with tied and scaled embeddings and with
    normalized queries and keys. Many keys are for published models only.

    Args:
        layers: number of Transformer blocks (L).
        width: width of the residual stream (D).
        heads: number of query heads (N).
        kv_heads: number of key and value heads (K). It divides `heads`. 0 is the same number.
        head_width: width of one head (H). 0 is `width / heads`.
        mlp_width: width of the feed-forward layer (F), or of each expert. 0 is 8/3 of `width`, rounded up to a multiple
            of 64.
        experts: number of experts (E). 0 is one feed-forward layer without a router. Otherwise a router chooses some of
            the experts for each token (Mixtral).
        experts_per_token: number of experts that the router chooses for a token.
        normalize_router: renormalize the weights of the chosen experts. They then sum to 1. False keeps the softmax
            over all experts.
        router_scores: function that turns the router's logits into scores. `sigmoid` is DeepSeek-V3's.
        router_scale: factor on the weights of the experts.
        shared_experts: number of experts that every token uses. They are computed as one wider MLP (DeepSeekMoE, 2024).
        dense_layers: number of first layers that have one feed-forward layer in place of experts (DeepSeek-V3).
        dense_width: width of that feed-forward layer. 0 is that of all experts of a token together.
        balance_loss: weight of the load-balancing loss. It is computed in each row (DeepSeek-V3, equations 17 to 20;
            0.0001 there).
        balance_rate: step size of the load-balancing bias. Each step moves a bias on the score of each expert towards
            an even load, without a loss (Wang et al. 2024; 0.001 there). 0 is no bias.
        vocabulary_size: number of token ids (V). 0 is the tokenizer's.
        context_length: longest sequence that the model reads, in tokens.
        positions: `rotary`, or `learned` position vectors. `learned` has a vector for each of the `context_length`
            positions (GPT-2).
        rotary_width: dimensions of a head that rotary positions turn: the first ones (Phi-4-mini). 0 is all.
        rotary_layers: for each layer, whether rotary positions turn its queries and keys (SmolLM3). Empty is all.
        rope_theta: base of the rotary position embedding.
        local_rope_theta: base in layers with a window. These layers then have no scaling (Gemma 3). 0 is `rope_theta`
            in all layers.
        rope_scaling: rotary positions for long contexts.
        windows: attention window of each layer, in tokens. A token sees that many tokens, itself included. 0 is all.
            Empty is all in every layer.
        norm: `rms`, or `layer` with a bias (GPT-2).
        norm_epsilon: added to the mean square in a norm.
        norm_unit_offset: store the scales of norms as their difference from 1. As in Gemma.
        norm_placement: norms `before` attention and MLP, `after`, or `both`. `after` is OLMo 2, `both` is Gemma 2.
        qk_norm: norm of queries and keys: `head`, `all` or `none`. `head` normalizes each head, `all` all heads
            together (OLMo 2).
        qkv_bias: add a bias to queries, keys and values.
        out_bias: add a bias to the output of attention.
        mlp_bias: add biases in the MLP and its router.
        activation: activation of the MLP. `gelu_tanh` is the approximation of GELU by tanh.
        gated: use a gated MLP (SwiGLU).
        swiglu_limit: bound on both factors of SwiGLU, in gpt-oss's form. See `layers.activated`. 0 is the usual form.
        attention_scale: factor on the attention scores. 0 is 1 / sqrt(head width).
        sinks: give each head a learned attention sink. It takes a share of the softmax and adds no value (gpt-oss).
        attention_softcap: soft cap of the attention scores, by tanh. As in Gemma 2. 0 is none.
        logit_softcap: soft cap of the logits, by tanh. 0 is none.
        scale_embeddings: multiply embeddings by sqrt(width). As in Vaswani et al. 2017.
        embedding_scale: factor on embeddings, beside that (Granite).
        residual_scale: factor on what attention and the MLP add to the residual stream (Granite).
        logit_divisor: divisor of the logits, before their soft cap (Granite).
        tied_embeddings: use the embedding table as the output layer too.
        dropout: share of residual activations set to zero in training. For small corpora that are read many times. The
            pattern depends on `accumulation` and on the devices along `sequence`, and on no other mesh axis.
        remat: what is recomputed in the backward pass. `none`: nothing. `full`: keep only the residual stream.
            `save_attention`: keep the outputs of attention too. `save_dots`: keep the outputs of all matmuls.
            `offload`: as `save_dots`, in the memory of the host.
        attention_block: block size of a TPU's attention kernel. A power of two from 128 to 2,048; 0 is 1,024. Other
            devices ignore it.
        gradients: type in which devices sum the gradients of matrices. `compute` is the type of the matmuls. float32
            sends twice the bytes.
        matmuls: type of the operands of the layers' matmuls in training. `compute` is the type of the matmuls. `fp8`:
            8-bit floats, with scales that are computed anew for each matmul (see `model/fp8.py`). For chips that
            multiply them; a CPU computes the same numbers, more slowly. Embedding, output layer, router, the experts'
            own matrices, attention's scores and adapters keep the type of the matmuls.
    """

    layers: PositiveInt = 4
    width: PositiveInt = 128
    heads: PositiveInt = 4
    kv_heads: NonNegativeInt = 0
    head_width: int = 0
    mlp_width: NonNegativeInt = 0
    experts: NonNegativeInt = 0
    experts_per_token: PositiveInt = 2
    normalize_router: bool = True
    router_scores: Literal["softmax", "sigmoid"] = "softmax"
    router_scale: PositiveFloat = 1.0
    shared_experts: NonNegativeInt = 0
    dense_layers: NonNegativeInt = later(0)
    dense_width: NonNegativeInt = later(0)
    balance_loss: NonNegativeFloat = changing(Changes.TRAINING, 0.0)
    balance_rate: Fraction = 0.0
    vocabulary_size: NonNegativeInt = 0
    context_length: int = 256
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_width: NonNegativeInt = later(0)
    rotary_layers: tuple[bool, ...] = later(())
    rope_theta: float = 10_000.0
    local_rope_theta: float = 0.0
    rope_scaling: RopeScaling = RopeScaling()
    windows: tuple[int, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-6
    norm_unit_offset: bool = False
    norm_placement: Literal["before", "after", "both"] = "before"
    qk_norm: Literal["head", "all", "none"] = "head"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated: bool = True
    swiglu_limit: NonNegativeFloat = 0.0
    attention_scale: float = 0.0
    sinks: bool = False
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    scale_embeddings: bool = True
    embedding_scale: PositiveFloat = later(1.0)
    residual_scale: PositiveFloat = later(1.0)
    logit_divisor: PositiveFloat = later(1.0)
    tied_embeddings: bool = True
    dropout: Annotated[float, Interval(ge=0, le=0.95)] = changing(Changes.TRAINING, 0.0)
    remat: Literal["none", "full", "save_attention", "save_dots", "offload"] = changing(Changes.ROUNDING, "none")
    attention_block: int = changing(Changes.ROUNDING, 0)
    gradients: Literal["compute", "float32"] = changing(Changes.TRAINING, "compute")
    matmuls: Literal["compute", "fp8"] = changing(Changes.TRAINING, "compute")

    def resolved(self, vocabulary_size: int) -> "ModelConfig":
        """The same config with every 0 replaced by the value that it stands for."""
        mlp_width = self.mlp_width or -(-self.width * 8 // 3 // 64) * 64
        of_token = mlp_width * (self.experts_per_token + self.shared_experts)
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads or self.heads,
            head_width=self.head_width or self.width // self.heads,
            mlp_width=mlp_width,
            dense_width=self.dense_width or (of_token if self.dense_layers else 0),
            vocabulary_size=self.vocabulary_size or vocabulary_size,
        )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        model, blocks = self.resolved(vocabulary_size=1), (0, *ATTENTION_BLOCKS)
        if model.heads % model.kv_heads:
            yield "kv_heads", f"{model.kv_heads} does not divide model.heads {model.heads}; choose a divisor"
        if not self.head_width and self.width % self.heads:
            yield "heads", f"{self.heads} does not divide model.width {self.width}; choose a divisor, or set head_width"
        if model.head_width % 2:
            yield "head_width", f"{model.head_width} is odd; rotary embeddings need an even head, change width or heads"
        for key in () if model.positions == "rotary" else ("rotary_width", "rotary_layers"):
            if getattr(model, key):
                yield key, "there are no rotary positions; set model.positions to rotary, or leave this out"
        if model.rotary_width % 2 or model.rotary_width > model.head_width:
            yield "rotary_width", f"{model.rotary_width} is odd, or beyond a head's {model.head_width}; choose less"
        for key in ("windows", "rotary_layers"):
            if (given := len(getattr(model, key))) not in (0, model.layers):
                yield key, f"{given} for {model.layers} layers; give one for each, or none"
        if model.experts and model.experts_per_token > model.experts:
            why = f"{model.experts_per_token} can't be chosen of {model.experts} experts; choose fewer"
            yield "experts_per_token", why
        if model.attention_block not in blocks:
            yield "attention_block", f"{model.attention_block} is none of {', '.join(map(str, blocks))}; choose one"
        for key in () if model.experts else ("shared_experts", "dense_layers", "balance_loss", "balance_rate"):
            if getattr(model, key):
                yield key, "needs a router; set model.experts, or this to 0"
        if model.experts and model.dense_layers >= model.layers:
            why = f"{model.dense_layers} of {model.layers} layers leave none with experts; choose fewer, or experts 0"
            yield "dense_layers", why
        if self.dense_width and not model.dense_layers:
            yield "dense_width", "no layer has this width; set model.dense_layers, or this to 0"
        if model.swiglu_limit and not model.gated:
            yield "swiglu_limit", "there is no SwiGLU without model.gated"

    @property
    def stacks(self) -> dict[str, tuple["ModelConfig", range]]:
        """By the name of each stack of parameters: the config of its layers, and which ones they are.

        The stacks stand one after the other; the first one is there only with `dense_layers`.
        """
        first = self.dense_layers
        if not first:
            return {"layers": (self, range(self.layers))}
        whole = dataclasses.replace(self, dense_layers=0, dense_width=0)
        no_experts = {"experts": 0, "shared_experts": 0, "balance_loss": 0.0, "balance_rate": 0.0}
        dense = dataclasses.replace(whole, mlp_width=self.dense_width, **no_experts)
        return {"dense_layers": (dense, range(first)), "layers": (whole, range(first, self.layers))}

    @property
    def layer_kinds(self) -> list[tuple[int, bool]]:
        """Which kinds of attention there are, each once: the window, and whether positions turn queries and keys."""
        return sorted(set(self._kinds()))

    @property
    def kinds_by_layer(self) -> tuple[tuple[str, int], ...]:
        """Of each layer the name of its stack, and the index of its attention among `layer_kinds`."""
        names = [name for name, (_, numbers) in self.stacks.items() for _ in numbers]
        return tuple(zip(names, map(self.layer_kinds.index, self._kinds()), strict=True))

    def _kinds(self) -> list[tuple[int, bool]]:
        rotates = self.rotary_layers or (self.positions == "rotary",) * self.layers
        return list(zip(self.windows or (0,) * self.layers, rotates, strict=True))

    @classmethod
    def of_training(cls) -> list[str]:
        """The keys that concern how a model is trained, and not what it computes."""
        return [field.name for field in dataclasses.fields(cls) if declared_change(field) is not Changes.RESULT]

    def trained_as(self, other: "ModelConfig") -> "ModelConfig":
        """The same model with what `other` says of its training, which changes no parameter."""
        return dataclasses.replace(self, **{key: getattr(other, key) for key in self.of_training()})

    @classmethod
    def from_json(cls, fields: dict) -> "ModelConfig":
        """What `dataclasses.asdict` gave, after a way through JSON; `TypeError` if a field is unknown."""
        tupled = lambda fields: {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}  # noqa: E731
        scaling = RopeScaling(**tupled(fields.get("rope_scaling", {})))
        return cls(**tupled(fields) | {"rope_scaling": scaling})
