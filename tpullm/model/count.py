"""The number of parameters, and the FLOPs of a token."""

import math

from tpullm.recipe.schema import ModelConfig


def parameter_count(shapes: dict) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that multiply each token: the matrices of the blocks (chosen experts alone) and the output table."""
    D, N, K, H, F = config.width, config.heads, config.kv_heads, config.head_width, config.mlp_width
    mlp = (3 if config.gated else 2) * D * F
    if config.experts:
        mlp = (config.experts_per_token + config.shared_experts) * mlp + D * config.experts
    block = 2 * D * N * H + 2 * D * K * H + mlp
    return config.layers * block + config.vocabulary_size * D


def training_flops_per_token(config: ModelConfig, sequence_length: int, frozen: bool = False) -> float:
    """Floating-point operations of forward and backward for one token (PaLM, appendix B, causal attention halved).

    6 per matrix parameter: 2 for each multiply-add, times 3 for the forward pass and the two gradients. Attention adds
    `6 L T N H`, half of 12: a token attends to T/2 others on average.

    Args:
        frozen: matrices have no gradients, since adapters are trained beside them: 4 a parameter. What the adapters
            compute is not counted.
    """
    attention = 6 * config.layers * sequence_length * config.heads * config.head_width
    return (4 if frozen else 6) * matrix_parameters(config) + attention
