"""Writes `trl_model.npz`: losses of a small model with an adapter by trl's trainers, and the adapter's gradients.

    python -m tests.training.objectives.record_trl_model

Needs trl, peft, transformers and torch beside the project (recorded with trl 1.16.0, peft 0.21.2, transformers 5.24.0
and torch 2.15.0 on a CPU). Model, adapter, reference (the model without its adapter) and loss are theirs.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.training.objectives import tuned_model
from tests.training.objectives.record_trl import ACCELERATOR, GRPO, made
from tests.training.objectives.tuned_model import FILE, POLICIES, PREFERENCES, TOKENS, conversations

LOSS_TYPES = {"dpo": "sigmoid", "dpo by token": "sigmoid_norm", "ipo": "ipo"}
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def main() -> None:
    """Prints the loss of each case."""
    found = {}
    for case in (*PREFERENCES, *POLICIES):
        trainer = grouped if case in POLICIES else {"kto": judged, "simpo": contrastive, "orpo": contrastive}.get(case)
        model = adapted(POLICIES[case].temperature if case in POLICIES else 1.0)
        old = {}
        loss = (trainer or paired)(case, model, old)
        loss.backward()
        gradients = {name: of.grad.numpy() for name, of in model.named_parameters() if of.requires_grad}
        found |= {f"{case} loss": loss.item(), f"{case} gradient": in_a_row(gradients)} | old
        print(case, loss.item(), file=sys.stderr)
    np.savez_compressed(FILE, **found)


def adapted(temperature: float):
    """The model with the adapter, of which the adapter is trained; its log-probabilities are trl's."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(tuned_model.MODEL))
        save_file(tuned_model.model()[2], folder / "model.safetensors", {"format": "pt"})
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        add_fused_lm_head(model, temperature=temperature, outputs=OUTPUTS)
        tuned_model.written(folder / "adapter", tuned_model.tuned()[2])
        return peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def in_a_row(gradients: dict[str, np.ndarray]) -> np.ndarray:
    """Gradients of the adapter as one vector, in the order of the names in files."""
    named = {name.replace(".default", ""): of for name, of in gradients.items()}
    return np.concatenate([named[name].ravel() for name in sorted(named)]).astype(np.float32)


def right_padded(rows: list[list[int]], value: int = 0) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def rows_of(prompts, answers) -> dict[str, torch.Tensor]:
    """Each prompt with its answer, and which tokens are the answer's."""
    both = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return {
        "input_ids": right_padded([prompt + answer for prompt, answer in both]),
        "attention_mask": right_padded([[1] * len(prompt + answer) for prompt, answer in both]),
        "completion_mask": right_padded([[0] * len(prompt) + [1] * len(answer) for prompt, answer in both]),
    }


def trainer_of(kind: type, model, **attributes):
    """A trainer whose reference is its own model without the adapter."""
    more = {"unwrap_model": lambda model: model, "autocast": nullcontext, "is_main_process": True}
    accelerator = SimpleNamespace(**vars(ACCELERATOR), **more)
    args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    common = {"model": model.train(), "ref_model": None, "precompute_ref_logps": False, "args": args}
    return made(kind, accelerator=accelerator, **(common | attributes))


def paired(case: str, model, _) -> torch.Tensor:
    prompts, answers = conversations(case)
    trainer = trainer_of(
        DPOTrainer,
        model,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[LOSS_TYPES[case]],
        loss_weights=[1.0],
        beta=PREFERENCES[case].beta,
        use_weighting=False,
        label_smoothing=0.0,
    )
    inputs = rows_of(prompts * 2, [of[0] for of in answers] + [of[1] for of in answers])
    return trainer._compute_loss(model, inputs, return_outputs=False)


def contrastive(case: str, model, _) -> torch.Tensor:
    """SimPO and ORPO."""
    prompts, answers = conversations(case)
    batch, settings = {}, PREFERENCES[case]
    for side, name in enumerate(("chosen", "rejected")):
        rows = rows_of(prompts, [of[side] for of in answers])
        batch |= {f"{name}_{key}": rows[key] for key in ("input_ids", "attention_mask")}
        batch[f"{name}_labels"] = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
    common = {"is_encoder_decoder": False, "beta": settings.beta, "label_smoothing": 0.0}
    if case == "orpo":
        trainer = trainer_of(ORPOTrainer, model, padding_value=0, **common)
    else:
        options = {"loss_type": "simpo", "simpo_gamma": settings.gamma, "alpha": 0.0, "cpo_alpha": 0.0}
        trainer = trainer_of(CPOTrainer, model, pad_token_id=0, **options, **common)
    return trainer.get_batch_loss_metrics(model, batch)[0]


def judged(case: str, model, _) -> torch.Tensor:
    """KTO: each prompt with its first answer, and beside it the next prompt's, as a mismatched one."""
    prompts, answers = conversations(case)
    settings, first = PREFERENCES[case], [of[0] for of in answers]
    options = {
        "beta": settings.beta,
        "desirable_weight": settings.desirable_weight,
        "undesirable_weight": settings.undesirable_weight,
    }
    trainer = trainer_of(KTOTrainer, model, calculate_KL=True, loss_type="kto", **options)
    mismatched = {f"KL_{key}": of for key, of in rows_of(prompts, first[1:] + first[:1]).items()}
    inputs = rows_of(prompts, first) | mismatched | {"label": torch.tensor(tuned_model.good())}
    return trainer._compute_loss(model, inputs, return_outputs=False)


def grouped(case: str, model, old: dict) -> torch.Tensor:
    """GRPO and its forms, of answers that were sampled a few steps ago; `old` is told how likely they were then."""
    prompts, answers = conversations(case)
    settings = POLICIES[case]
    both = [(prompt, answer) for prompt, of_prompt in zip(prompts, answers, strict=True) for answer in of_prompt]
    longest = max(len(prompt) for prompt, _ in both)
    room = lambda prompt: longest - len(prompt)  # noqa: E731
    inputs = {
        "prompt_ids": torch.tensor([[0] * room(prompt) + prompt for prompt, _ in both]),
        "prompt_mask": torch.tensor([[0] * room(prompt) + [1] * len(prompt) for prompt, _ in both]),
        "completion_ids": right_padded([answer for _, answer in both]),
        "completion_mask": right_padded([[1] * len(answer) for _, answer in both]),
        "advantages": torch.from_numpy(tuned_model.advantages().ravel()),
    }
    mask = inputs["completion_mask"]
    common = {"epsilon_low": settings.clip_low, "epsilon_high": settings.clip_high, "beta": settings.kl_weight}
    if case == "rloo":
        trainer = trainer_of(RLOOTrainer, model, **common)
    else:
        trainer = trainer_of(
            GRPOTrainer,
            model,
            loss_type={"gspo": "grpo"}.get(case, case),
            importance_sampling_level="sequence" if case == "gspo" else "token",
            max_completion_length=TOKENS,
            **GRPO,
            **common,
        )
    ids, seen = (torch.cat([inputs[f"prompt_{of}"], inputs[f"completion_{of}"]], 1) for of in ("ids", "mask"))
    with torch.no_grad():
        own, *_ = trainer._get_per_token_logps_and_entropies(model, ids, seen, TOKENS)
        with model.disable_adapter():
            reference, *_ = trainer._get_per_token_logps_and_entropies(model, ids, seen, TOKENS)
    assert not own.requires_grad
    was = (own + torch.from_numpy(tuned_model.noise().reshape(-1, TOKENS))) * mask
    old[f"{case} old"] = was.detach().numpy()
    inputs |= {"old_per_token_logps": was, "old_logps": was.sum(1)}
    inputs |= {"ref_per_token_logps": reference.detach(), "num_items_in_batch": mask.sum()}
    return trainer._compute_loss(model, inputs)


if __name__ == "__main__":
    main()
