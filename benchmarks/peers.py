"""The peer: `LlamaForCausalLM` of transformers on torch, set up to be fast on a CPU."""

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from figures import cores
from sizes import BATCHES, DECODED, NEW_TOKENS, PROMPT_TOKENS, SIZES
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM
from turns import Program

from tpullm.recipe.schema import ModelConfig, OptimizerConfig

Rows = tuple[torch.Tensor, torch.Tensor]  # inputs and targets
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of them

WARM_UP = 2  # steps: the first compiles forward and backward, the second finds its memory


def llama(config: ModelConfig) -> LlamaForCausalLM:
    """The peer of the same shapes, with SDPA attention."""
    torch.manual_seed(0)
    peer = LlamaConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied_embeddings,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(peer)


def adamw(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW with the same numbers; matrices decay, the scales of norms don't."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=1e-3, betas=betas, eps=config.epsilon, fused=True)


def training(size: str, compute: str, compiled: bool) -> Program:
    """Training steps with mixed precision (`bfloat16`) or without (`float32`); a unit is a step."""
    torch.set_num_threads(cores())
    model = llama(SIZES[size].model)
    program = stepping(model, llama_loss(torch.compile(model) if compiled else model), compute, random_batches(size))
    return Program(program.run, program.facts | {"compute": compute})


def llama_loss(forward: torch.nn.Module) -> Loss:
    """The loss of Llama, compiled or not. `shift_labels`: every position is predicted, the last of a row too."""
    return lambda inputs, targets: forward(inputs, labels=targets, shift_labels=targets, use_cache=False).loss


def stepping(model: torch.nn.Module, loss_of: Loss, compute: str, batches: Sequence[Rows]) -> Program:
    """Training steps on these batches in turn, which lie on the device of the model; a unit is a step.

    Args:
        compute: `bfloat16` is mixed precision, `float32` is none.
    """
    config, turn, device = OptimizerConfig(), itertools.cycle(batches), batches[0][0].device.type
    optimizer = adamw(model.train(), config)

    def step() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=compute == "bfloat16"):
            loss = loss_of(*next(turn))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(count: int) -> dict:
        for _ in range(count):
            loss = step()
        return {"loss": loss.item()}

    run(WARM_UP)
    return Program(run, {"parameters": sum(p.numel() for p in model.parameters())})


def random_batches(size: str, count: int = 8) -> list[Rows]:
    """Batches of random tokens: inputs and targets."""
    chosen = SIZES[size]
    return random_rows(chosen.model.vocabulary_size, chosen.batch_size, chosen.sequence_length, count)


def random_rows(vocabulary: int, rows: int, length: int, count: int, device: str = "cpu") -> list[Rows]:
    """`count` batches of random tokens on a device: inputs and targets."""
    batches = []
    for _ in range(count):
        tokens = torch.randint(vocabulary, (rows, length + 1), device=device)
        batches.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
    return batches


def decoding(compute: str, compiled: bool) -> Program:
    """`generate` for `count` prompts at once; a unit is a prompt.

    Args:
        compute: the type of the whole model.
        compiled: a static cache and a compiled step; else the default, a cache that grows. transformers compiles for a
            static cache by itself on a GPU; on a CPU it must be told.
    """
    torch.set_num_threads(cores())
    config = SIZES[DECODED].model
    model = llama(config).eval().to(getattr(torch, compute))
    options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    if compiled:
        everywhere = CompileConfig()
        everywhere._compile_all_devices = True
        options |= {"cache_implementation": "static", "compile_config": everywhere}

    def run(count: int) -> None:
        prompts = torch.randint(config.vocabulary_size, (count, PROMPT_TOKENS))
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        assert out.shape == (count, PROMPT_TOKENS + NEW_TOKENS)

    for count in BATCHES:
        run(count)
        run(count)
    return Program(run, {"compute": compute})


def peak(size: int = 2048) -> Program:
    """Matmuls of square bfloat16 matrices; the answer has the best FLOP/s."""
    torch.set_num_threads(cores())
    x = torch.randn(size, size, dtype=torch.bfloat16)
    out = torch.matmul(x, x)

    def run(count: int) -> dict:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            torch.matmul(x, x, out=out)
            seconds.append(time.perf_counter() - start)
        return {"flops": 2 * size**3 / min(seconds)}

    return Program(run, {})
