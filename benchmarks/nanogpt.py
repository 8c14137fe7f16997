"""GPT-2 in torch, in the form of nanoGPT: fused causal attention, tied embeddings, no biases, no dropout.

The shape is a `ModelConfig` of `gpu_cases.nanogpt`; initial values are those of the GPT-2 paper.
"""

from torch import nn
from torch.nn import functional

from tpullm.recipe.schema import ModelConfig

SPREAD = 0.02  # standard deviation of initial values


class Layer(nn.Module):
    """One block: attention and MLP, each after its norm and beside the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, width, bias=False)

    def forward(self, x):
        """`[rows, tokens, width]` to the same."""
        rows, tokens, width = x.shape
        split = self.qkv(self.attention_norm(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class NanoGPT(nn.Module):
    """The model; called with inputs and targets `[rows, tokens]`, it returns the mean loss."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = nn.Embedding(config.context_length, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.output = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.output.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=SPREAD / (2 * config.layers) ** 0.5 if residual else SPREAD)

    def forward(self, inputs, targets):
        """The mean of the next-token loss, in nats."""
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = self.output(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
