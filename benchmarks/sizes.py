"""The compared models: the same shapes for tpullm and for its peer. Imports neither library."""

from dataclasses import dataclass

from tpullm.recipe.schema import ModelConfig


@dataclass(frozen=True)
class Size:
    """One model, its training batch, and its turns. Turns are short since the machine's speed changes.

    Args:
        model: its shapes; no `qk_norm`, which the peer doesn't have.
        batch_size: rows in a batch (B).
        sequence_length: tokens in a row (T).
        steps: in one turn.
        rounds: turns of each program.
    """

    model: ModelConfig
    batch_size: int
    sequence_length: int
    steps: int
    rounds: int

    @property
    def tokens(self) -> int:
        """Tokens in one batch; each of them is predicted."""
        return self.batch_size * self.sequence_length


def shapes(layers: int, width: int, heads: int, vocabulary: int, context: int) -> ModelConfig:
    """A model with tied embeddings, the feed-forward width that follows from `width`, and as many key/value heads."""
    model = ModelConfig(layers=layers, width=width, heads=heads, context_length=context, qk_norm="none")
    return model.resolved(vocabulary)


SIZES = {
    "0.8M": Size(shapes(4, 128, 4, 65, 64), batch_size=12, sequence_length=64, steps=15, rounds=15),
    "12M": Size(shapes(6, 384, 6, 4096, 256), batch_size=16, sequence_length=256, steps=1, rounds=10),
    "50M": Size(shapes(8, 640, 10, 16384, 512), batch_size=4, sequence_length=512, steps=1, rounds=5),
}

# Decoding: a prompt of this many tokens, this many new ones, greedily, at one size, for several texts at once or one.
PROMPT_TOKENS, NEW_TOKENS = 64, 128
DECODED = "12M"
BATCHES = (1, 8)
