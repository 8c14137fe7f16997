"""The peers on one GPU, in torch: Llama of transformers and nanoGPT's form, both compiled, and torch's attention.

A GPU is taken if there is one, else the CPU, where all of this can be tried at tiny sizes.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from attention_truth import Arrays, ends
from attention_turns import Kernel, turns
from figures import versions
from gpu_cases import Attention
from nanogpt import NanoGPT
from peers import llama, llama_loss, random_rows, stepping
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from turns import Program

from tpullm.model.architecture import training_flops_per_token
from tpullm.recipe.schema import ModelConfig

BATCHES = 4


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def training(kind: str, model: Mapping, rows: int, length: int) -> Program:
    """Steps in mixed precision of a compiled model; a unit is a step, `peak_bytes` the peak memory so far.

    Args:
        kind: `transformers` or `nanoGPT`.
        model: fields of its `ModelConfig`.
    """
    config = ModelConfig(**model)
    torch.set_float32_matmul_precision("high")  # what stays in float32 may round to TF32, as both peers' users set it
    with torch.device(device()):
        made = llama(config) if kind == "transformers" else NanoGPT(config)
    compiled = torch.compile(made)
    loss_of = llama_loss(compiled) if kind == "transformers" else compiled
    batches = random_rows(config.vocabulary_size, rows, length, BATCHES, device())
    program = stepping(made, loss_of, "bfloat16", batches)

    def run(count: int) -> dict:
        answer = program.run(count)
        return answer | {"peak_bytes": torch.cuda.max_memory_allocated() if device() == "cuda" else None}

    facts = {"tokens": rows * length, "flops_per_token": training_flops_per_token(config, length)}
    return Program(run, program.facts | facts | {"versions": versions()})


def attention(**shape: int) -> Program:
    """SDPA with its two fast backends, which have no documents; FlexAttention with both; the kernel for many lengths,
    which has documents alone.
    """
    case = Attention(**shape)
    kernels = {"FlexAttention": _flex}
    if case.documents == 1:
        backends = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
        kernels |= {name: _sdpa_with(backend) for name, backend in backends.items()}
    else:
        kernels |= {"varlen_attn": _varlen}
    return turns(
        case,
        kernels,
        lambda x: torch.from_numpy(x).to(device(), torch.bfloat16),
        lambda x: x[-1].detach().float().cpu().numpy(),
        lambda x: torch.cuda.synchronize() if device() == "cuda" else None,
    )


def _sdpa_with(backend: SDPBackend) -> Callable:
    def made(given: Arrays, begins_BT: np.ndarray) -> Kernel:
        del begins_BT

        groups = given.q.shape[2] // given.k.shape[2]

        def attend(q, k, v, repeats=1):
            k, v = (x.repeat_interleave(repeats, 2) if repeats > 1 else x for x in (k, v))
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=repeats == 1).transpose(1, 2)

        try:
            kernel = _kernel(attend, given)
            kernel.gradient()
        except RuntimeError:  # a backend without groups of heads: keys and values are repeated, as transformers does
            kernel = _kernel(partial(attend, repeats=groups), given)
        return kernel

    return made


def _flex(given: Arrays, begins_BT: np.ndarray) -> Kernel:
    return _kernel(flex(begins_BT), given)


def flex(begins_BT: np.ndarray) -> Callable:
    """Attention within documents of `[B, T, N, H]`. The mask of blocks is made once, as for all layers of a step."""
    rows, length = begins_BT.shape
    begins = torch.from_numpy(begins_BT).to(device())
    on_gpu = device() == "cuda"

    def visible(row, head, query, key):
        return (key <= query) & (key >= begins[row, query])

    mask = create_block_mask(visible, rows, None, length, length, device(), _compile=on_gpu)
    compiled = torch.compile(flex_attention) if on_gpu else flex_attention

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return attend


def _varlen(given: Arrays, begins_BT: np.ndarray) -> Kernel:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later

    rows, length = begins_BT.shape
    edges = [0, *(row * length + end for row in range(rows) for end in ends(begins_BT[row]))]
    longest = int(np.diff(edges).max())
    edges = torch.tensor(edges, dtype=torch.int32, device=device())

    def attend(q, k, v):
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return varlen_attn(*flat, edges, edges, longest, longest, window_size=(-1, 0)).view_as(q)

    return _kernel(attend, given)


def _kernel(attend: Callable, given: Arrays) -> Kernel:
    q, k, v = (x.detach().requires_grad_() for x in given[:3])

    def forward():
        with torch.no_grad():
            return attend(q, k, v)

    def gradient():
        mixed = attend(q, k, v)
        return mixed, *torch.autograd.grad(mixed, (q, k, v), given.d)

    return Kernel(forward, gradient)
