"""The peer: `LlamaForCausalLM` of transformers on torch, set up to be fast on a CPU."""

import itertools
import time

import torch
from figures import cores
from sizes import BATCHES, DECODED, NEW_TOKENS, PROMPT_TOKENS, SIZES
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM
from turns import Program

from tpullm.recipe.schema import ModelConfig, OptimizerConfig

WARM_UP = 2  # steps: the first compiles forward and backward, the second finds its memory


def llama(config: ModelConfig) -> LlamaForCausalLM:
    """The peer of the same shapes, with SDPA attention, on all cores."""
    torch.set_num_threads(cores())
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
    chosen, config = SIZES[size], OptimizerConfig()
    model = llama(chosen.model).train()
    optimizer = adamw(model, config)
    forward = torch.compile(model) if compiled else model
    batches = itertools.cycle(random_batches(size))

    def step() -> torch.Tensor:
        inputs, targets = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute == "bfloat16"):
            # `shift_labels`: every position is predicted, the last of a row too.
            loss = forward(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
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
    return Program(run, {"parameters": sum(p.numel() for p in model.parameters()), "compute": compute})


def random_batches(size: str, count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of random tokens: inputs and targets."""
    chosen, batches = SIZES[size], []
    for _ in range(count):
        shape = (chosen.batch_size, chosen.sequence_length + 1)
        tokens = torch.randint(chosen.model.vocabulary_size, shape)
        batches.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
    return batches


def decoding(compute: str, compiled: bool) -> Program:
    """`generate` for `count` prompts at once; a unit is a prompt.

    Args:
        compute: the type of the whole model.
        compiled: a static cache and a compiled step; else the default, a cache that grows. transformers compiles for a
            static cache by itself on a GPU; on a CPU it must be told.
    """
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
