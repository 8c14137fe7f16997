"""EasyDeL's side of `tuning.py`, run by an environment with `easydel` (0.3.0: JAX 0.9) and `pillow`, and without torch.

Its loader of a Hugging Face folder needs torch, so the weights are put into its model here; the numbers are the same.
Settings are those that were fastest of what works on a CPU: bfloat16; attention `sdpa` for SFT; no packing, which ends
with arrays of 257 and 256 tokens; sampling by compiled generation, as eSurge, the default, fails with LoRA (71 leaves
of 155).
"""

import json
import os
import re
import resource
import sys
import tempfile
import time

from tuning import ANSWERS, FIRST, LENGTH, PROMPTS, RANK, RATE, ROWS, STEPS, TOKENS

sys.path.pop(0)  # files in this folder have names that libraries look for, such as `data`
os.environ |= {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "disabled"}

from transformers.utils import import_utils  # noqa: E402

# Without torch, transformers has placeholders that raise ImportError for every attribute. EasyDeL asks seven of them
# for one, with a default, which only an AttributeError leads to.
_asked = re.compile("modeling_(dbrx|glm4v_moe|llama4|phimoe|qwen3_5_moe|qwen3_next|rope_utils)")
_before = import_utils.DummyObject.__getattribute__


def _attribute(cls, key):
    if _asked.fullmatch(type.__getattribute__(cls, "__name__")) and not key.startswith("_"):
        raise AttributeError(key)
    return _before(cls, key)


import_utils.DummyObject.__getattribute__ = _attribute

import easydel as ed  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from datasets import Dataset  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import AutoTokenizer, GenerationConfig  # noqa: E402

SETTINGS = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
head_dim max_position_embeddings rms_norm_eps rope_theta tie_word_embeddings attention_bias pad_token_id bos_token_id
eos_token_id"""


def loaded(folder: str, attention: str):
    """EasyDeL's Qwen3 with the folder's weights, in bfloat16."""
    found = json.load(open(f"{folder}/config.json"))
    settings = {key: found[key] for key in SETTINGS.split()}
    one = {"sharding_axis_dims": (1, 1, 1, 1, 1), "attn_mechanism": attention, "gradient_checkpointing": ""}
    model = ed.Qwen3ForCausalLM(
        config=ed.Qwen3Config(**settings, **one), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    model.config._name_or_path, model.generation_config = folder, GenerationConfig.from_pretrained(folder)
    weights, state = load_file(f"{folder}/model.safetensors"), nnx.state(model, nnx.Param)
    for path, variable in nnx.to_flat_state(state):
        value = weights.pop(".".join(map(str, path[:-1])) + ".weight")
        value = value.T if path[-1] == "kernel" and value.ndim == 2 else value
        assert value.shape == variable[...].shape, path
        variable[...] = jnp.asarray(value, jnp.bfloat16)
    assert not weights, list(weights)
    nnx.update(model, state)
    return model


def main(folder: str, kind: str, size: str) -> None:
    """Train, and print tokens/s and MiB as the last line."""
    rows = [json.loads(line) for line in open(f"{folder}/{kind}.jsonl", encoding="utf-8")]
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
    model = loaded(f"{folder}/model", "sdpa" if kind == "sft" else "vanilla")
    model = model.apply_lora_to_layers(RANK, r"(q|k|v|o|gate|up|down)_proj$")
    steps, seen, ends = FIRST + STEPS[size], [], []
    common = {
        "num_train_epochs": 1,
        "max_training_steps": steps,
        "learning_rate": RATE,
        "use_wandb": False,
        "do_last_save": False,
        "save_optimizer_state": False,
        "save_directory": tempfile.mkdtemp(prefix="easydel-"),
        "log_steps": 1000,
        "report_steps": 1000,
        "report_metrics": False,
        "log_grad_norms": False,
        "weight_distribution_log_steps": 0,
        "resume_if_possible": False,
        "generation_interval": None,
        "progress_bar_type": "json",
        "use_grain": True,
    }

    def clocked(trainer):
        class Clocked(trainer):
            def on_step_end(self, state, metrics, step):
                jax.block_until_ready(metrics.loss)
                ends.append(time.perf_counter())
                return super().on_step_end(state, metrics, step)

            def _preprocess_batch_input(self, state, batch, is_train):
                batch, more = super()._preprocess_batch_input(state=state, batch=batch, is_train=is_train)
                mask = batch.get("completion_mask", batch.get("attention_mask"))
                seen.append(len(batch["prompt_input_ids"]) if kind == "dpo" else int(np.sum(np.asarray(mask) != 0)))
                return batch, more

        return Clocked

    asked = lambda row: [{"role": "user", "content": row["prompt"]}]  # noqa: E731
    eights = lambda size: -(-size // 8) * 8  # noqa: E731
    tokens = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    given = {"model": model, "processing_class": tokenizer, "train_dataset": Dataset.from_list(rows)}
    if kind == "sft":
        arguments = ed.SFTConfig(**common, total_batch_size=ROWS[size], max_length=LENGTH, dataset_text_field=None)
        trainer = clocked(ed.SFTTrainer)(arguments=arguments, formatting_func=lambda row: row, **given)
    elif kind == "dpo":
        # Shapes are fixed: as little padding as the data allows.
        before = eights(max(tokens(row["prompt"]) for row in rows) + 8)
        after = eights(max(tokens(row[side]) for row in rows for side in ("chosen", "rejected")) + 4)
        lengths = {"max_length": before + after, "max_prompt_length": before, "max_completion_length": after}
        arguments = ed.DPOConfig(**common, **lengths, total_batch_size=ROWS[size])
        trainer = clocked(ed.DPOTrainer)(arguments=arguments, **given)
    else:
        tokenizer.padding_side = "left"
        of_chat = {"add_generation_prompt": True, "return_dict": True}
        before = eights(max(len(tokenizer.apply_chat_template(asked(row), **of_chat)["input_ids"]) for row in rows))
        arguments = ed.GRPOConfig(
            **common,
            total_batch_size=PROMPTS[size],
            num_generations=ANSWERS,
            max_prompt_length=before,
            max_completion_length=TOKENS,
            beta=0.0,
            use_esurge_generation=False,
        )

        def reward(prompts, completions, **_):
            texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
            return [max(0.0, 1 - max(0, len(text) - 20) / 101) for text in texts]

        given |= {"train_dataset": Dataset.from_list([{"prompt": asked(row)} for row in rows]), "reward_funcs": reward}
        trainer = clocked(ed.GRPOTrainer)(arguments=arguments, **given)
    trainer.train()
    assert len(ends) == steps, (len(ends), steps)
    speed = sum(seen[FIRST:steps]) / (ends[-1] - ends[FIRST - 1])
    print(json.dumps({"speed": speed, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
