"""Writes `trl.json`: losses and gradients by trl's own functions. Run by hand: `python record_trl.py`.

Needs trl and torch, which the project does not (recorded with trl 1.16.0 and torch 2.13.0 on a CPU), and nothing of
tpullm. Log-probabilities are given in place of models; what is then computed is trl's code. Where a trainer
has no function of its own for a part (advantages), the lines of its method are executed as they stand.
"""

import importlib.metadata
import inspect
import json
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer
from trl.experimental.async_distillation import async_distillation_trainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer

FILE = Path(__file__).parent / "trl.json"
PAIRS, ANSWERS, LENGTH = 6, 6, 9

GRPO = {  # what GRPOTrainer's loss asks for and no case changes
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
    "current_gradient_accumulation_steps": 1,
    "args": SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
    "_entropy_bonus_enabled": False,
}
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


def main() -> None:
    """Prints how many cases were written."""
    random = np.random.default_rng(0)
    inputs = {"preferences": preference_inputs(random), "policy": policy_inputs(random)}
    inputs["distillation"] = distillation_inputs(random)
    cases = {
        "preferences": preferences(tensors(inputs["preferences"])),
        "policy": policies(tensors(inputs["policy"])),
        "advantages": advantages(inputs["policy"]["rewards"]),
        "distillation": distillation(tensors(inputs["distillation"])),
    }
    versions = {name: importlib.metadata.version(name) for name in ("trl", "torch")}
    FILE.write_text(json.dumps({"versions": versions, "inputs": inputs, "cases": cases}) + "\n", "utf-8")
    print({name: len(found) for name, found in cases.items()}, versions, file=sys.stderr)


def rounded(array: np.ndarray) -> list:
    """Numbers that are the same in float32 on both sides, and short."""
    return np.round(array, 3).tolist()


def tensors(inputs: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.array(values)) for name, values in inputs.items()} | {
        name: torch.tensor(values, dtype=torch.float32)
        for name, values in inputs.items()
        if np.array(values).dtype == np.float64
    }


def masks(random: np.random.Generator, rows: int) -> np.ndarray:
    """The first tokens of each row, at least one; the longest row is full."""
    lengths = random.integers(1, LENGTH + 1, rows)
    lengths[0] = LENGTH
    return (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)


def preference_inputs(random: np.random.Generator) -> dict:
    """Token log-probabilities of the chosen and then the rejected answers; the first pair's are equal."""
    logp, mask = -random.exponential(0.8, (2 * PAIRS, LENGTH)), masks(random, 2 * PAIRS)
    logp[PAIRS], mask[PAIRS] = logp[0], mask[0]
    reference = (logp * mask).sum(1) + random.normal(size=2 * PAIRS)
    reference[PAIRS] = reference[0]
    mismatched = -random.exponential(8, 2 * PAIRS)
    return {
        "logp": rounded(logp),
        "mask": mask.tolist(),
        "reference": rounded(reference),
        "mismatched": rounded(mismatched),
        "mismatched_reference": rounded(mismatched - random.normal(0.3, 1, 2 * PAIRS)),
        "desirable": (random.random(2 * PAIRS) > 0.4).tolist(),
    }


def policy_inputs(random: np.random.Generator) -> dict:
    logp, mask = -random.exponential(0.8, (ANSWERS, LENGTH)), masks(random, ANSWERS)
    return {
        "logp": rounded(logp),
        "mask": mask.tolist(),
        "old": rounded(logp + random.normal(0, 0.25, logp.shape)),
        "reference": rounded(logp + random.normal(0, 0.5, logp.shape)),
        "entropy": rounded(random.exponential(1, logp.shape)),
        "advantages": rounded(random.normal(size=ANSWERS)),
        # Of four answers to each prompt: any, one without a reward, all equal, and all but one without.
        "rewards": [[1.0, 0.0, 0.25, 0.5], [2.0, 1.0, np.nan, -1.0], [0.5] * 4, [np.nan, np.nan, 1.0, np.nan]],
    }


def distillation_inputs(random: np.random.Generator, tokens=4, width=5, vocabulary=12, kept=4) -> dict:
    teacher = random.normal(0, 2, (tokens, vocabulary))
    ids = np.argsort(-teacher)[:, :kept]
    return {
        "hidden": rounded(random.normal(size=(tokens, width))),
        "table": rounded(random.normal(size=(vocabulary, width))),
        "teacher": rounded(teacher),
        "ids": ids.tolist(),
    }


def made(trainer: type, **attributes):
    """A trainer with the attributes that its loss needs, and no others."""
    found = object.__new__(trainer)
    common = {
        "accelerator": ACCELERATOR,
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "model": SimpleNamespace(training=True),
    }
    for name, value in (common | attributes).items():
        setattr(found, name, value)
    return found


def differentiated(loss, *leaves: torch.Tensor) -> dict:
    """The loss and its gradients."""
    gradients = torch.autograd.grad(loss, leaves)
    return {"loss": loss.item(), "gradients": [gradient.tolist() for gradient in gradients]}


def with_prompt(mask: torch.Tensor) -> torch.Tensor:
    """The mask of the ids: trl shifts by one token, which is the prompt here."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


def model_of(logp: torch.Tensor, mask: torch.Tensor):
    """What trl calls a model: it returns these log-probabilities, 0 where there is no answer."""
    zeros = torch.zeros_like(logp)
    outputs = {"entropy": zeros, "mean_logits": zeros, "is_top1": zeros.bool(), "aux_loss": None}
    return lambda **_: SimpleNamespace(log_probs=logp * mask, **outputs)


def logged(trainer) -> dict[str, float]:
    return {name: values[-1] for name, values in trainer._metrics["train"].items() if isinstance(values[-1], float)}


def preferences(given: dict) -> dict:
    found = {
        "dpo": paired(given, "sigmoid", 0.3),
        "dpo_per_token": paired(given, "sigmoid_norm", 3.0),
        "ipo": paired(given, "ipo", 0.4),
        "cdpo": contrastive(given, "sigmoid", given["reference"], beta=0.3, label_smoothing=0.1),
        "dpo_without_reference": contrastive(given, "sigmoid", 0, beta=0.3),
        "simpo": contrastive(given, "simpo", 0, per_token=True, beta=2.0, simpo_gamma=0.7),
        "orpo": odds_ratio(given, 0.25),
        "kto": kahneman_tversky(given, 0.3, given["mismatched_reference"]),
        "kto_negative_kl": kahneman_tversky(given, 0.3, given["mismatched"] + 0.5),
    }
    return found


def paired(given: dict, loss_type: str, beta: float) -> dict:
    logp, mask = given["logp"].clone().requires_grad_(), given["mask"]
    chosen, rejected = given["reference"].chunk(2)
    trainer = made(
        DPOTrainer,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        label_smoothing=0.0,
    )
    inputs = {
        "completion_mask": with_prompt(mask),
        "input_ids": with_prompt(mask),
        "attention_mask": with_prompt(mask),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = trainer._compute_loss(model_of(logp, mask), inputs, return_outputs=False)
    return differentiated(loss, logp) | {"beta": beta, "logged": logged(trainer)}


def contrastive(given: dict, loss_type: str, reference, per_token=False, **options) -> dict:
    """By CPO's loss. It is a function of differences, so log-ratios are given as log-probabilities."""
    logp, mask = given["logp"].clone().requires_grad_(), given["mask"]
    options = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.0} | options
    trainer = made(CPOTrainer, loss_type=loss_type, **options)
    scores = (logp * mask).sum(1) - reference
    if per_token:
        scores = scores / mask.sum(1)
    losses, *rewards = trainer.cpo_loss(*scores.chunk(2))
    chosen, rejected = (reward.mean().item() for reward in rewards)
    return (
        differentiated(losses.mean(), logp)
        | options
        | {"logged": {"rewards/chosen": chosen, "rewards/rejected": rejected}}
    )


def odds_ratio(given: dict, beta: float) -> dict:
    logp, mask = given["logp"].clone().requires_grad_(), given["mask"]

    def forward(model, batch):
        means = (logp * mask).sum(1) / mask.sum(1)
        chosen = -(logp * mask)[:PAIRS].sum() / mask[:PAIRS].sum()  # CrossEntropyLoss: a mean over tokens
        zeros = torch.zeros(1)
        return *means.chunk(2), zeros, zeros, chosen

    trainer = made(ORPOTrainer, beta=beta, concatenated_forward=forward)
    loss, metrics = trainer.get_batch_loss_metrics(None, {})
    return differentiated(loss, logp) | {"beta": beta, "logged": metrics}


def kahneman_tversky(given: dict, beta: float, mismatched_reference: torch.Tensor) -> dict:
    logp, mask = given["logp"].clone().requires_grad_(), given["mask"]
    options = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    trainer = made(KTOTrainer, calculate_KL=True, precompute_ref_logps=True, loss_type="kto", beta=beta, **options)
    mismatched = given["mismatched"][:, None]
    inputs = {
        "input_ids": with_prompt(mask),
        "attention_mask": with_prompt(mask),
        "completion_mask": with_prompt(mask),
        "label": given["desirable"],
        "ref_logps": given["reference"],
        "ref_KL_logps": mismatched_reference,
        "KL_input_ids": torch.zeros(len(mask), 2, dtype=torch.long),
        "KL_attention_mask": torch.ones(len(mask), 2),
        "KL_completion_mask": torch.ones(len(mask), 2),
    }
    of_answers, of_mismatched = model_of(logp, mask), model_of(mismatched, torch.ones_like(mismatched))

    def model(**arguments):
        return (of_mismatched if arguments["input_ids"].shape[1] == 2 else of_answers)(**arguments)

    loss = trainer._compute_loss(model, inputs, return_outputs=False)
    reference = mismatched_reference.tolist()
    return (
        differentiated(loss, logp)
        | options
        | {"beta": beta, "mismatched_reference": reference, "logged": logged(trainer)}
    )


def policies(given: dict) -> dict:
    return {
        "grpo": grouped(given, "grpo", low=0.2, high=0.2, beta=0.04),
        "grpo first step": grouped(given, "grpo", low=0.2, high=0.2, beta=0.04, old=False),
        "dr_grpo": grouped(given, "dr_grpo", low=0.2, high=0.2),
        "dapo": grouped(given, "dapo", low=0.2, high=0.28),
        "gspo": grouped(given, "grpo", level="sequence", low=0.03, high=0.04, beta=0.04),
        "rloo": leave_one_out(given, low=0.05, high=0.1),
    }


def grouped(given: dict, loss_type: str, *, low, high, beta=0.0, level="token", old=True) -> dict:
    logp = given["logp"].clone().requires_grad_()
    trainer = made(
        GRPOTrainer,
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=high,
        beta=beta,
        max_completion_length=LENGTH + 1,
        **GRPO,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, given["entropy"], None),
    )
    inputs = prompted(given) | {"num_items_in_batch": given["mask"].sum(), "ref_per_token_logps": given["reference"]}
    if old:
        inputs["old_per_token_logps"] = given["old"]
    found = differentiated(trainer._compute_loss(None, inputs), logp)
    return found | {"clip": [low, high], "beta": beta, "old": old, "logged": logged(trainer)}


def leave_one_out(given: dict, low: float, high: float) -> dict:
    logp = given["logp"].clone().requires_grad_()
    trainer = made(
        RLOOTrainer,
        epsilon_low=low,
        epsilon_high=high,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, given["entropy"], None),
    )
    inputs = prompted(given) | {"old_logps": (given["old"] * given["mask"]).sum(1)}
    found = differentiated(trainer._compute_loss(None, inputs), logp)
    return found | {"clip": [low, high], "beta": 0.0, "old": True, "logged": logged(trainer)}


def prompted(given: dict) -> dict:
    mask = given["mask"]
    prompt = torch.zeros(len(mask), 1, dtype=torch.long)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": given["advantages"],
    }


def advantages(rewards: list) -> dict:
    normalize = {"multi_objective_aggregation": "sum_then_normalize"}
    return {
        "standardized": lines(GRPOTrainer, rewards, scale_rewards="group", **normalize),
        "centered": lines(GRPOTrainer, rewards, scale_rewards="none", **normalize),
        "leave_one_out": lines(RLOOTrainer, rewards, reward_clip_range=None, beta=0.0, normalize_advantages=False),
    }


def lines(trainer: type, rewards: list, **attributes) -> list:
    """Executes the trainer's own lines, from rewards to advantages."""
    source = inspect.getsource(trainer._generate_and_score_completions)
    first = source.index("        unscorable_mask = ")
    last = "        advantages = torch.nan_to_num(advantages, nan=0.0)\n"
    block = textwrap.dedent(source[first : source.index(last) + len(last)])
    flat = torch.tensor(rewards, dtype=torch.float32).reshape(-1, 1)
    names = sys.modules[trainer.__module__].__dict__ | {
        "self": SimpleNamespace(reward_weights=torch.ones(1), **attributes),
        "rewards_per_func": flat,
        "num_generations": len(rewards[0]),
        "device": flat.device,
    }
    exec(block, names)
    return names["advantages"].reshape(np.shape(rewards)).tolist()


def distillation(given: dict) -> dict:
    return {f"bucket {beta}": sparse(given, beta) for beta in (0.0, 0.3, 1.0)} | {
        f"whole {beta}": whole(given, beta) for beta in (0.0, 0.3, 1.0)
    }


def sparse(given: dict, beta: float, softcap=3.0, temperature=1.5) -> dict:
    hidden, table = (given[name].clone().requires_grad_() for name in ("hidden", "table"))
    ids = given["ids"]
    teacher = torch.log_softmax(given["teacher"], -1).gather(-1, ids)
    known = torch.ones_like(ids, dtype=torch.bool)
    known[0, -1] = False  # a place without a token
    loss, *_ = async_distillation_trainer._jsd_loss_chunk(
        hidden, table, None, 1.0, softcap, ids, teacher, known, beta, temperature, True, None, 0
    )
    return differentiated(loss, hidden, table) | {
        "beta": beta,
        "softcap": softcap,
        "temperature": temperature,
        "teacher": teacher.masked_fill(~known, -torch.inf).tolist(),
    }


def whole(given: dict, beta: float, temperature=1.5) -> dict:
    """Of the whole vocabulary: every token is one of the teacher's likeliest."""
    hidden, table = (given[name].clone().requires_grad_() for name in ("hidden", "table"))
    loss = GKDTrainer.generalized_jsd_loss(
        (hidden @ table.T)[None], given["teacher"][None], beta=beta, temperature=temperature, reduction="sum"
    )
    teacher = torch.log_softmax(given["teacher"] / temperature, -1)
    return differentiated(loss, hidden, table) | {
        "beta": beta,
        "softcap": 0.0,
        "temperature": temperature,
        "teacher": teacher.tolist(),
    }


if __name__ == "__main__":
    main()
