"""The recipe: every setting of one run, each default written once, here.

A recipe is one YAML file, such as those of `configs/`. `tpullm VERB RECIPE --section.key VALUE` overrides a key.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from tpullm.recipe.changes import Changes, changing, declared

SourceKind = Literal[
    "text", "markdown", "html", "jsonl", "parquet", "warc", "code", "files", "python", "tenki", "law", "medicine"
]


@dataclass(frozen=True)
class Source:
    """One source of documents.

    Args:
        name: a short name. File names, metrics and the data card use it.
        kind: format: text, markdown, html, jsonl, parquet, warc, code, files, python or tenki. `files` reads each file
            by its extension. `python` is the documentation and the library of the running Python. `tenki` is the
            built-in grammar of everyday Japanese.
        path: a file, a folder or an http(s) URL. A folder is read recursively. For `python`: `documentation`, `code`,
            or empty for both. For `tenki`: empty.
        held_out: a file or folder for evaluation only. It replaces the choice by hash, and may lie inside `path`.
        licence: the licence of the text. An SPDX name or a sentence; required.
        language: its language, such as `en`, `ja` or `code`. Documents in another language are dropped. Empty keeps
            all.
        weight: share of the training tokens. It is relative to the weights of the other sources.
        text_key: the field with the text, in jsonl and parquet.
        documents: at most this many documents. 0 is all; for `tenki` it is the number to generate.
        bytes: at most this many bytes of its files. 0 is all. Whole files are taken, by the hash of their names, and
            the beginning of one more.
        filter: drop documents that are short or repetitive. Documents in another language than `language` are dropped
            too.
        deduplicate: drop documents that repeat another one. Exact and near copies both count.
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
        sources: the list of sources. Each has the keys of corpus.sources.
        held_out_fraction: share of the documents set aside for evaluation. They are chosen by the hash of their text.
        minimum_characters: shorter documents are dropped.
        maximum_characters: longer documents are cut into pieces. A piece has at most this length and ends at a line's
            end.
        near_duplicate_similarity: least similarity of duplicates. It is the Jaccard similarity of word 5-grams, by
            MinHash. 1 removes exact copies only.
        workers: processes that read and filter. 0 is one per core.
    """

    sources: list[Source] = field(default_factory=list)
    held_out_fraction: float = 0.02
    minimum_characters: int = 50
    maximum_characters: int = 1_000_000
    near_duplicate_similarity: float = 0.8
    workers: int = changing(Changes.NOTHING, 0)


@dataclass(frozen=True)
class TokenizerConfig:
    """Step 2, tokenize.

    Args:
        model_type: SentencePiece model, `unigram` or `char`. `unigram` has pieces of words, `char` single characters.
        vocabulary_size: number of tokens. Special tokens and the 256 byte tokens count. It is smaller where the text
            has too few different pieces. 0 with `char` is all characters of the sample.
        largest_vocabulary: number of tokens up to which the vocabulary may grow. It grows where the frequent characters
            of the text (Chinese, Japanese, Korean) take more than a quarter of it. 0 does not grow.
        sample_characters: characters of text to train the tokenizer on.
        words: keep pieces within Japanese words. Sudachi finds the words, so は+いい never becomes one piece.
        reserved_tokens: unused special tokens, kept for later.
        workers: processes that tokenize. 0 is one per core.
    """

    model_type: Literal["unigram", "char"] = "unigram"
    vocabulary_size: int = 4096
    largest_vocabulary: int = 0
    sample_characters: int = 2_000_000
    words: bool = True
    reserved_tokens: int = 16
    workers: int = changing(Changes.NOTHING, 0)


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
        balance_loss: weight of the load-balancing loss. It is computed in each row (DeepSeek-V3, equations 17 to 20;
            0.0001 there).
        balance_rate: step size of the load-balancing bias. Each step moves a bias on the score of each expert towards
            an even load, without a loss (Wang et al. 2024; 0.001 there). 0 is no bias.
        vocabulary_size: number of token ids (V). 0 is the tokenizer's.
        context_length: longest sequence that the model reads, in tokens.
        positions: `rotary`, or `learned` position vectors. `learned` has a vector for each of the `context_length`
            positions (GPT-2).
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
    balance_loss: float = changing(Changes.TRAINING, 0.0)
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
    dropout: float = changing(Changes.TRAINING, 0.0)
    remat: Literal["none", "full", "save_attention", "save_dots", "offload"] = changing(Changes.ROUNDING, "none")
    attention_block: int = changing(Changes.ROUNDING, 0)
    gradients: Literal["compute", "float32"] = changing(Changes.TRAINING, "compute")

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

    @classmethod
    def of_training(cls) -> list[str]:
        """The keys that concern how a model is trained, and not what it computes."""
        return [field.name for field in dataclasses.fields(cls) if declared(field) is not Changes.RESULT]

    def trained_as(self, other: "ModelConfig") -> "ModelConfig":
        """The same model with what `other` says of its training, which changes no parameter."""
        return dataclasses.replace(self, **{key: getattr(other, key) for key in self.of_training()})

    @classmethod
    def from_json(cls, fields: dict) -> "ModelConfig":
        """What `dataclasses.asdict` gave, after a way through JSON; `TypeError` if a field is unknown."""
        tupled = lambda fields: {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}  # noqa: E731
        scaling = RopeScaling(**tupled(fields.get("rope_scaling", {})))
        return cls(**tupled(fields) | {"rope_scaling": scaling})


@dataclass(frozen=True)
class SkipConfig:
    """Which steps are skipped, and what then. A skipped step changes nothing. What is not finite is always skipped.

    Args:
        deviations: a step this many standard deviations above the mean is skipped. Its loss and its gradient norm are
            held against those of the last updates. What is at most 60 % above the mean is never skipped, at 6
            deviations. 0 skips only what is not finite.
        window: number of last updates in the mean. Half of them must be there first.
        patience: training rolls back after this many skipped steps in a row. It resumes from the last checkpoint of
            `checkpoint.every_steps` and leaves out the batches since then.
        rollbacks: at most this many rollbacks. Then training stops.
    """

    deviations: float = 6.0
    window: int = 128
    patience: int = 16
    rollbacks: int = 3


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, Adafactor or Muon. Weight decay is decoupled and applies to matrices only (Loshchilov & Hutter 2019).

    Args:
        kind: the optimizer. `adafactor` keeps almost no state (Shazeer & Stern 2018; without a first moment). `muon` is
            for the matrices of the layers, with AdamW for all else, at AdamW's learning rates (Jordan et al. 2024; Liu
            et al. 2025).
        moments: type of AdamW's moments and Muon's momentum. bfloat16 takes half the bytes and is rounded
            stochastically.
        peak_lr: learning rate after the warm-up.
        schedule: `cosine`, or `wsd` (warm-up, stable, linear decay). Both end at `final_lr_fraction`.
        warmup_steps: steps of linear warm-up.
        decay_fraction: for `wsd`: share of the steps with decay.
        final_lr_fraction: last learning rate, as a share of the peak.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        epsilon: added to the root of AdamW's second moment.
        momentum: decay of Muon's momentum.
        weight_decay: decay of the matrices, times the learning rate.
        clip_norm: largest global norm of a gradient. Larger gradients are scaled down.
        z_loss: weight of the squared log-normalizer. It keeps logits small (PaLM, section 5).
        skip: which steps are skipped.
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
    skip: SkipConfig = field(default_factory=SkipConfig)


@dataclass(frozen=True)
class CheckpointConfig:
    """When training saves.

    Args:
        every_steps: save after this many steps. 0 is never by steps. A roll-back (`skip.patience`) goes to one of them.
        every_minutes: save after this many minutes. 0 is never by time.
        keep: number of saves to keep, and of those of `every_steps` as many. The last one is never removed.
        keep_every: saves whose step is a multiple of this number are never removed. 0 is none.
        keep_best: keep this many more saves, those of the lowest held-out loss. It is the mean over the sources.
        local: a folder on each host's own disk, for more frequent saves. Training resumes from the newest. Empty: none.
        local_every_minutes: save in `local` after this many minutes. 0 is never by time.
        local_every_steps: save in `local` after this many steps. 0 is never by steps.
        local_copies: save in `local` also what another host alone has, so its disk may be lost. A save costs twice.
    """

    every_steps: int = 500
    every_minutes: float = 10.0
    keep: int = 2
    keep_every: int = 0
    keep_best: int = 0
    local: str = ""
    local_every_minutes: float = 1.0
    local_every_steps: int = 0
    local_copies: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training. Pretraining (step 4) and tuning (step 5) have the same keys.

    Args:
        steps: number of optimizer steps.
        batch_size: rows in one global batch (B).
        sequence_length: tokens in one row (T).
        accumulation: micro-batches per step. The result is the same.
        loss_chunks: chunks of a row in which the loss is computed. The result is the same. 0 keeps the logits of a
            chunk below 1 GiB a device (64 MiB on a CPU).
        compute: type of the matmuls. `auto` is bfloat16 where the machine is fast in it, else float32.
        optimizer: the optimizer.
        evaluate_every: steps between evaluations on held-out text. 0 is only at the end.
        evaluate_rows: at most this many rows a source in an evaluation. 0 is all.
        log_every: steps between lines of `metrics.jsonl`.
        norms_every: steps between lines with norms of parameters, gradient and update by layer. 0 is never.
        data_workers: threads that read ahead. The batches do not depend on it.
        check_every: steps between checks for wrong bits. A check computes a step twice more, and compares the copies of
            each array on all devices. It costs the time of two steps. 0 is never.
        patience_minutes: after so long without progress on a host, training ends (exit code 75). The host is named. 0
            is never. A step, a batch of an evaluation and a save must each take less.
        profile: steps to record, such as `100:105`. The folder `profile` of the stage is for xprof and Perfetto.
        checkpoint: when training saves.
    """

    steps: int = changing(Changes.LENGTH, 1000)
    batch_size: int = 32
    sequence_length: int = 256
    accumulation: int = changing(Changes.ROUNDING, 1)
    loss_chunks: int = changing(Changes.ROUNDING, 0)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluate_every: int = changing(Changes.NOTHING, 0)
    evaluate_rows: int = changing(Changes.NOTHING, 64)
    log_every: int = changing(Changes.NOTHING, 10)
    norms_every: int = changing(Changes.ROUNDING, 0)  # it makes another program
    data_workers: int = changing(Changes.NOTHING, 2)
    check_every: int = changing(Changes.NOTHING, 0)
    profile: str = changing(Changes.NOTHING, "")
    patience_minutes: float = changing(Changes.NOTHING, 30.0)
    checkpoint: CheckpointConfig = changing(Changes.NOTHING, factory=CheckpointConfig)


@dataclass(frozen=True)
class FinetuneConfig:
    """Step 5, fine-tune on conversations.

    Args:
        conversations: files of conversations, JSON Lines. A line is `{"messages": [{"role", "content"}]}`. `tenki`
            stands for the built-in questions.
        chat_template: a Jinja file that formats conversations. For a `base` that has no chat template.
        held_out_fraction: share of the conversations kept for evaluation. They are chosen by hash.
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
        rows: at most this many rows of held-out text a source. 0 is all.
        batch_size: rows at a time.
        questions: at most this many held-out questions. 0 is all.
        prompts: texts that the pretrained model continues, as samples.
        sample_tokens: length of a sample, in tokens.
        attention: the text whose attention is drawn.
    """

    rows: int = 0
    batch_size: int = changing(Changes.ROUNDING, 32)
    questions: int = 0
    prompts: list[str] = field(default_factory=lambda: ["今日は", "The ", "def "])
    sample_tokens: int = 60
    attention: str = "昨日、リンゴを食べました。そのリンゴはとても"


@dataclass(frozen=True)
class Recipe:
    """One run.

    Args:
        name: the name of the recipe. A run directory belongs to one recipe.
        run: the run directory. It holds all that a run makes.
        seed: the seed of everything random.
        language: language of the report, `en` or `ja`. Empty is that of the environment (`LANG`).
        text: a file or folder of your own text. It is added to the sources.
        text_bytes: at most this many bytes of `text`. 0 is all.
        base: a published model to start from. A folder in the format of Hugging Face; its shapes, its tokenizer and its
            parameters are used.
        branch: a checkpoint of any run, for pretraining to start from. Such as `runs/a/pretrain/checkpoints/700`. The
            model has to be the same; with `branch_state: parameters` the vocabulary may have grown.
        branch_state: what is taken of `branch`. `all`: the optimizer and the step too, so training continues from that
            step. `parameters`: training starts at step 0.
        topology: the TPU slice of the recipe, such as `v5e:4x4` or `2 x v5p:4x4x8` (two). It runs on others too.
        trackers: who else gets the numbers of a training: `wandb`, `mlflow`. By default in the folder of the stage.
        mesh: devices along each axis; -1 takes the rest. The axes are data, fsdp, expert, sequence and tensor.
        corpus: step 1, collect.
        tokenizer: step 2, tokenize.
        model: step 3, the Transformer.
        pretrain: step 4, pretrain.
        finetune: step 5, tune on conversations. A recipe without it ends with the pretrained model.
        evaluate: what `evaluate` measures.
    """

    name: str = "unnamed"
    run: str = changing(Changes.NOTHING, "runs/unnamed")
    seed: int = 0
    language: Literal["", "en", "ja"] = changing(Changes.NOTHING, "")
    text: str = ""
    text_bytes: int = 0
    base: str = ""
    branch: str = ""
    branch_state: Literal["all", "parameters"] = "all"
    topology: str = changing(Changes.NOTHING, "")
    trackers: list[Literal["wandb", "mlflow"]] = changing(Changes.NOTHING, factory=list)
    mesh: dict[str, int] = changing(Changes.ROUNDING, factory=lambda: {"fsdp": -1})
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
