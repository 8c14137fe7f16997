"""What `gpu.py` measures: trainings and shapes of attention. Imports no library of either side."""

from dataclasses import dataclass

from tpullm.recipe.schema import ModelConfig


@dataclass(frozen=True)
class Training:
    """One model, trained by us and by the peers, each with the first of its settings that fits the memory.

    Args:
        recipe: ours, of `configs`.
        ours: changes of the recipe to try in this order: rows of a batch, and what is recomputed.
        rows: rows of the peers' batches to try in this order. The peers recompute nothing.
        layers: of the model in nanoGPT's form, so that a token takes as many FLOPs as in ours.
        steps: in one turn.
    """

    recipe: str
    ours: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]
    layers: int
    steps: int


@dataclass(frozen=True)
class Attention:
    """One shape of attention, causal and in bfloat16.

    Args:
        rows, length: of the batch.
        heads, kv_heads, width: query heads, key/value heads, head width.
        documents: of a row; 1 is the whole row.
    """

    rows: int
    length: int
    heads: int
    kv_heads: int
    width: int
    documents: int

    def __str__(self) -> str:
        documents = f", {self.documents} documents each" if self.documents > 1 else ""
        return f"{self.rows} x {self.length:,}{documents}"


def _ours(rows: int, remat: str, *more: str) -> tuple[str, ...]:
    batch = (f"--pretrain.batch_size={rows}", "--pretrain.accumulation=1")
    return (*batch, f"--model.remat={remat}", *more)


# By the compiler for an H100, ours hold 24 and 46 GiB (125m), 39 and 47 GiB (1b).
TRAININGS = {
    "125m": Training("125m", (_ours(32, "none"), _ours(64, "none"), _ours(8, "none")), (32, 16, 8), layers=12, steps=8),
    "1b": Training("1b", (_ours(4, "none"), _ours(8, "save_dots"), _ours(2, "none")), (4, 2, 1), layers=19, steps=4),
}
# Documents of 1,024 tokens in the mean.
TOKENS = 32768
ATTENTION = [
    Attention(TOKENS // length, length, 32, 8, 128, documents)
    for length in (2048, 8192, 32768)
    for documents in (1, length // 1024)
]
# Everything once, on a CPU too. The smallest recipe has a vocabulary that nothing is trained for.
_SMALL = ("--model.layers=2", "--model.width=64", "--model.heads=2", "--tokenizer.vocabulary_size=512")
_SMALL_ROWS = ("--pretrain.sequence_length=64", "--pretrain.batch_size=4")
TINY_TRAININGS = {"tiny": Training("quickstart", ((*_SMALL, *_SMALL_ROWS),), (4,), layers=2, steps=2)}
TINY_ATTENTION = [Attention(2, 64, 4, 2, 16, documents) for documents in (1, 3)]

ROUNDS = 5  # turns of a program; the median counts
CALLS = 5  # of an attention kernel, in one turn


def nanogpt(model: ModelConfig, layers: int, length: int) -> ModelConfig:
    """The shape of GPT-2 at the width, the head width and the vocabulary of a model, as nanoGPT has it.

    Norms have no biases there: `nanogpt.py` leaves them out.
    """
    return ModelConfig(
        layers=layers,
        width=model.width,
        heads=model.width // model.head_width,
        mlp_width=4 * model.width,
        context_length=length,
        positions="learned",
        norm="layer",
        norm_epsilon=1e-5,
        qk_norm="none",
        activation="gelu",
        gated=False,
        scale_embeddings=False,
    ).resolved(model.vocabulary_size)
