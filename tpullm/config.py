"""The recipe: every setting of one run, each default written once, here.

A recipe is one YAML file under `configs/`. `tpullm VERB --config FILE --section.key VALUE` overrides a key.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

SourceKind = Literal["text", "markdown", "html", "jsonl", "parquet", "warc", "code", "files", "python", "tenki"]


@dataclass(frozen=True)
class Source:
    """One source of documents.

    Args:
        name: a short name, used in file names, metrics and the data card.
        kind: how to read it; `files` reads each file by its extension, `python` is the documentation and library of the
            running Python, `tenki` the built-in grammar of everyday Japanese.
        path: a file, a folder (read recursively) or an http(s) URL; for `python`, `documentation`, `code` or nothing
            (both); nothing for `tenki`.
        held_out: a file or folder kept for evaluation only, instead of documents chosen by hash; it may lie in `path`.
        licence: the licence of the text, as an SPDX name or a sentence. Required.
        language: the language of the text (`en`, `ja`, `code`, ...); documents in another one are dropped.
        weight: share of the training tokens drawn from this source, relative to the other weights.
        text_key: the field that holds the text (jsonl and parquet).
        documents: how many documents at most (0 is all); for `tenki`, how many to generate.
        bytes: how many bytes of its files at most (0 is all): whole files, chosen by hash, and the beginning of one.
        filter: drop documents that are too short, too repetitive or in another language.
        deduplicate: drop documents that repeat another one, exactly or nearly.
    """

    name: str
    kind: SourceKind
    path: str = ""
    held_out: str = ""
    licence: str = ""
    language: str = ""
    weight: float = 1.0
    text_key: str = "text"
    documents: int = 0
    bytes: int = 0
    filter: bool = True
    deduplicate: bool = True


@dataclass(frozen=True)
class CorpusConfig:
    """Step 1, collect.

    Args:
        sources: where the documents come from.
        held_out_fraction: share of the documents set aside for evaluation, chosen by the hash of their text.
        minimum_characters: shorter documents are dropped.
        maximum_characters: longer documents are cut into pieces of at most this length, at a line's end.
        near_duplicate_similarity: documents at least this similar (Jaccard of word 5-grams, by MinHash) are duplicates;
            1 removes exact copies only.
        workers: processes that read and filter; 0 is one per core.
    """

    sources: list[Source] = field(default_factory=list)
    held_out_fraction: float = 0.02
    minimum_characters: int = 50
    maximum_characters: int = 1_000_000
    near_duplicate_similarity: float = 0.8
    workers: int = 0


@dataclass(frozen=True)
class TokenizerConfig:
    """Step 2, tokenize.

    Args:
        model_type: SentencePiece model: `unigram` (pieces of words) or `char` (single characters).
        vocabulary_size: number of tokens, special tokens and the 256 byte tokens included; fewer where the text has
            too few different pieces. 0 with `char` is all characters of the sample.
        largest_vocabulary: the vocabulary grows up to this where the frequent characters of the text (Chinese,
            Japanese, Korean) would take more than a quarter of `vocabulary_size`; 0 does not grow.
        sample_characters: how many characters of the training documents the tokenizer is trained on.
        words: learn pieces within Japanese words (found by Sudachi), so that は+いい never becomes one piece.
        reserved_tokens: unused special tokens kept for later.
        workers: processes that tokenize; 0 is one per core.
    """

    model_type: Literal["unigram", "char"] = "unigram"
    vocabulary_size: int = 4096
    largest_vocabulary: int = 0
    sample_characters: int = 2_000_000
    words: bool = True
    reserved_tokens: int = 16
    workers: int = 0


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than the original one.

    Args:
        kind: `linear` (Chen et al. 2023), `dynamic` (NTK-aware, by the length so far), `llama3` (Grattafiori et al.
            2024), `yarn` (Peng et al. 2023), `longrope` (Ding et al. 2024).
        factor: how many times longer the context becomes.
        original_context: the context that the model was first trained for, in tokens.
        low_frequency: of `llama3`, turns in the original context below which a frequency is divided by `factor`.
        high_frequency: of `llama3`, turns above which it stays.
        fast: of `yarn`, turns above which a frequency stays.
        slow: of `yarn`, turns below which it is divided by `factor`.
        truncate: of `yarn`, round the two bounds to whole dimensions.
        scale: of `yarn` and `longrope`, what cosine and sine are multiplied by.
        short: of `longrope`, the divisor of each frequency up to the original context.
        long: of `longrope`, the divisor of each frequency beyond it.
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


# Keys of a model that say how it is trained and change no parameter.
HOW_TRAINED = ("dropout", "remat", "attention_block", "gradients", "balance_loss")
# What `model.attention_block` may be, the largest first.
ATTENTION_BLOCKS = (2048, 1024, 512, 256, 128)


@dataclass(frozen=True)
class ModelConfig:
    """Step 3, a decoder-only Transformer. What no key names is as in Llama. Many keys exist for published models only.

    Args:
        layers: number of Transformer blocks (L).
        width: width of the residual stream (D).
        heads: query heads (N).
        kv_heads: key and value heads (K), a divisor of `heads`; 0 is the same number.
        head_width: width of one head (H); 0 is `width / heads`.
        mlp_width: width of the feed-forward layer (F), or of each expert; 0 is 8/3 of `width`, rounded up to a multiple
            of 64.
        experts: number of experts (E). An expert is a feed-forward layer, and a router chooses some for each token
            (Mixtral); 0 is one feed-forward layer without a router.
        experts_per_token: experts that the router chooses for each token.
        normalize_router: true renormalizes the weights over the chosen experts; false keeps the softmax over all
            experts.
        router_scores: the function from the router's logits to scores; `sigmoid` is DeepSeek-V3's.
        router_scale: factor on the experts' weights, for a router whose scores are small.
        shared_experts: experts that every token goes through as well, computed as one wider MLP (DeepSeekMoE, Dai et
            al. 2024).
        balance_loss: weight of the loss for even loads in each row (DeepSeek-V3, equations 17 to 20; 0.0001 there).
        balance_rate: how far each step moves a bias on each expert's score towards an even load, without a loss (Wang
            et al. 2024; 0.001 there); 0 is no bias.
        vocabulary_size: number of token ids (V); 0 is the tokenizer's.
        context_length: longest sequence that the model is made for, in tokens.
        positions: `rotary`, or a `learned` vector for each of `context_length` positions (GPT-2).
        rope_theta: base of the rotary position embedding.
        local_rope_theta: base in layers with a window (Gemma 3). These layers then ignore `rope_scaling`; 0 is
            `rope_theta`.
        rope_scaling: for contexts longer than the original one.
        windows: for each layer, how many tokens a token attends to, itself included; 0 is all, and an empty list is
            all tokens in all layers.
        norm: `rms`, or `layer` with a bias (GPT-2).
        norm_epsilon: added to the mean square in a norm.
        norm_unit_offset: store the scale of a norm as its difference from 1 (Gemma).
        norm_placement: normalize the input of attention and MLP (`before`), their output (`after`, OLMo 2) or `both`
            (Gemma 2).
        qk_norm: normalize queries and keys before their product: in each `head`, over `all` heads (OLMo 2) or `none`.
        qkv_bias: add a bias to queries, keys and values.
        out_bias: add a bias to attention's output projection.
        mlp_bias: add biases in the MLP, its router included.
        activation: activation of the MLP; `gelu_tanh` is the approximation by tanh.
        gated: multiply the activation by a second projection (SwiGLU).
        swiglu_limit: bound of both projections, in gpt-oss's form of SwiGLU (see `layers.activated`); 0 is the usual
            form.
        attention_scale: factor on attention's scores; 0 is 1 / sqrt(head_width).
        sinks: give each head a learned score that takes its share of the softmax and adds nothing to the output
            (gpt-oss).
        attention_softcap: soft cap of attention's scores, by tanh (Gemma 2); 0 is none.
        logit_softcap: soft cap of the logits, by tanh; 0 is none.
        scale_embeddings: multiply embeddings by sqrt(width) (Vaswani et al. 2017).
        tied_embeddings: use the embedding table as the output layer too.
        dropout: share of residual activations set to zero in training, for corpora that are read many times. Which
            ones depends on `accumulation` and on the mesh axis `sequence`, and on no other axis.
        remat: activations that the backward pass finds kept; it recomputes all others. `none` recomputes nothing,
            `full` keeps the residual stream only, `save_attention` also keeps attention's outputs, `save_dots` also
            keeps the other products, and `offload` keeps what `save_dots` keeps in the host's memory.
        attention_block: largest block of queries and keys in a TPU's attention kernel, a power of two from 128 to
            2,048; 0 is 1,024. Other devices ignore it.
        gradients: type in which matrices' gradients are summed over devices; `compute` is the type of the products,
            `float32` sends twice the bytes.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 0
    head_width: int = 0
    mlp_width: int = 0
    experts: int = 0
    experts_per_token: int = 2
    normalize_router: bool = True
    router_scores: Literal["softmax", "sigmoid"] = "softmax"
    router_scale: float = 1.0
    shared_experts: int = 0
    balance_loss: float = 0.0
    balance_rate: float = 0.0
    vocabulary_size: int = 0
    context_length: int = 256
    positions: Literal["rotary", "learned"] = "rotary"
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
    swiglu_limit: float = 0.0
    attention_scale: float = 0.0
    sinks: bool = False
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    scale_embeddings: bool = True
    tied_embeddings: bool = True
    dropout: float = 0.0
    remat: Literal["none", "full", "save_attention", "save_dots", "offload"] = "none"
    attention_block: int = 0
    gradients: Literal["compute", "float32"] = "compute"

    def resolved(self, vocabulary_size: int) -> "ModelConfig":
        """The same config with every 0 replaced by the value that it stands for."""
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads or self.heads,
            head_width=self.head_width or self.width // self.heads,
            mlp_width=self.mlp_width or -(-self.width * 8 // 3 // 64) * 64,
            vocabulary_size=self.vocabulary_size or vocabulary_size,
        )

    @property
    def distinct_windows(self) -> list[int]:
        """The windows that there are, each once."""
        return sorted(set(self.windows or (0,)))

    def trained_as(self, other: "ModelConfig") -> "ModelConfig":
        """The same model with what `other` says of its training, which changes no parameter."""
        return dataclasses.replace(self, **{key: getattr(other, key) for key in HOW_TRAINED})

    @classmethod
    def from_json(cls, fields: dict) -> "ModelConfig":
        """What `dataclasses.asdict` gave, after a way through JSON; `TypeError` if a field is unknown."""
        tupled = lambda fields: {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}  # noqa: E731
        scaling = RopeScaling(**tupled(fields.get("rope_scaling", {})))
        return cls(**tupled(fields) | {"rope_scaling": scaling})


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, Adafactor or Muon, with decoupled weight decay on matrices only (Loshchilov & Hutter 2019).

    Args:
        kind: `adamw`; `adafactor`, whose state is next to nothing (Shazeer & Stern 2018; without a first moment); or
            `muon` for the matrices of the layers and AdamW for all else, at AdamW's learning rates (Jordan et al. 2024;
            Liu et al. 2025).
        moments: type of AdamW's moments and Muon's momentum between steps; bfloat16 halves their bytes and is rounded
            stochastically.
        peak_lr: learning rate after the warm-up.
        schedule: `cosine` to `final_lr_fraction`, or `wsd` (warm-up, stable, linear decay).
        warmup_steps: steps of linear warm-up.
        decay_fraction: share of the steps in which `wsd` decays.
        final_lr_fraction: last learning rate as a share of the peak.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        epsilon: added to the root of AdamW's second moment.
        momentum: decay of Muon's momentum.
        weight_decay: decay of the matrices, times the learning rate.
        clip_norm: largest global norm of the gradient; a larger gradient is scaled down to it.
        z_loss: weight of the squared log-normalizer, which keeps logits small (PaLM, section 5).
    """

    kind: Literal["adamw", "adafactor", "muon"] = "adamw"
    moments: Literal["float32", "bfloat16"] = "float32"
    peak_lr: float = 3e-3
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    final_lr_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    z_loss: float = 0.0


@dataclass(frozen=True)
class CheckpointConfig:
    """When training saves.

    Args:
        every_steps: save after this many steps (0 is never by steps).
        every_minutes: save after this many minutes (0 is never by time).
        keep: saves to keep; the last is never removed.
    """

    every_steps: int = 500
    every_minutes: float = 10.0
    keep: int = 2


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training: step 4 is one, and step 5 has one in `finetune.train`.

    Args:
        steps: optimizer steps.
        batch_size: rows in one global batch (B).
        sequence_length: tokens in one row (T).
        accumulation: micro-batches in one step; the result is the same.
        loss_chunks: parts of a row whose logits are computed one after the other; the result is the same. 0 is the
            fewest that keep a chunk's logits below 1 GiB a device (64 MiB on a CPU).
        compute: type of the products; `auto` is bfloat16 where the machine is fast in it, else float32.
        optimizer: the optimizer.
        evaluate_every: steps between evaluations on held-out documents (0 is only at the end).
        evaluate_rows: at most this many rows a source in one evaluation (0 is all).
        log_every: steps between lines of `metrics.jsonl`.
        data_workers: threads that read ahead; the batches do not depend on their number.
        checkpoint: when to save.
    """

    steps: int = 1000
    batch_size: int = 32
    sequence_length: int = 256
    accumulation: int = 1
    loss_chunks: int = 0
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: int = 0
    evaluate_rows: int = 64
    log_every: int = 10
    data_workers: int = 2
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True)
class FinetuneConfig:
    """Step 5, fine-tune on conversations.

    Args:
        conversations: JSON Lines files of `{"messages": [{"role", "content"}]}`; `tenki` is the built-in questions.
        chat_template: a Jinja file that shows conversations to the model, for a `base` that has no such template.
        held_out_fraction: share of the conversations never trained on, chosen by hash.
        train: the stage of training.
    """

    conversations: list[str] = field(default_factory=list)
    chat_template: str = ""
    held_out_fraction: float = 0.2
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class EvaluateConfig:
    """What `evaluate` measures.

    Args:
        rows: at most this many rows of held-out text a source (0 is all).
        batch_size: rows at a time.
        questions: at most this many held-out questions (0 is all).
        prompts: beginnings of texts that the pretrained model continues, as samples.
        sample_tokens: length of a sample, in tokens.
        attention: the text whose attention is drawn.
    """

    rows: int = 0
    batch_size: int = 32
    questions: int = 0
    prompts: list[str] = field(default_factory=lambda: ["今日は", "The ", "def "])
    sample_tokens: int = 60
    attention: str = "昨日、リンゴを食べました。そのリンゴはとても"


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: the recipe's name; a run directory belongs to one recipe.
        run: the run directory; everything that a run makes is in it.
        seed: seed of everything random.
        language: of the report, `en` or `ja`; without one, the language of the environment (`LANG`).
        text: a file or folder of your own text, added to the sources.
        text_bytes: how many bytes of `text` at most (0 is all).
        base: a published model to start from, a folder in the format of Hugging Face. Its shapes and its tokenizer are
            used, and training starts from its parameters.
        topology: the TPU slice that the recipe is made for, such as `v5e:4x4`, or `2 x v5p:4x4x8` for two slices; the
            recipe runs on other devices too.
        mesh: devices along each axis (data, fsdp, expert, sequence, tensor); -1 is all devices that are left.
        corpus: step 1.
        tokenizer: step 2.
        model: step 3.
        pretrain: step 4.
        finetune: step 5; a recipe without it ends with the pretrained model.
        evaluate: what is measured at the end.
    """

    name: str = "unnamed"
    run: str = "runs/unnamed"
    seed: int = 0
    language: Literal["", "en", "ja"] = ""
    text: str = ""
    text_bytes: int = 0
    base: str = ""
    topology: str = ""
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    finetune: FinetuneConfig | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def foundation(self) -> str:
        """The stage that tuning starts from: `pretrain`, or `base` if there is a base and no text to go on with."""
        return "base" if self.base and not (self.corpus.sources or self.text) else "pretrain"
