"""The peer of `tuning.py`: trl's trainers with peft's LoRA, in bfloat16 where it is faster, on all cores."""

import json
import resource
import sys
import time

from tuning import ANSWERS, FIRST, LENGTH, PROMPTS, RANK, RATE, ROWS, STEPS, TOKENS

sys.path.pop(0)  # files in this folder have names that libraries look for, such as `data`

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402


class Clock(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, *_, **__):
        """After the optimizer."""
        self.ends.append(time.perf_counter())


def main(folder: str, kind: str, size: str) -> None:
    """Train, and print tokens/s and MiB as the last line."""
    rows = [json.loads(line) for line in open(f"{folder}/{kind}.jsonl", encoding="utf-8")]
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.bfloat16)
    lora = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    steps, clock = FIRST + STEPS[size], Clock()
    common = {
        "output_dir": f"{folder}/peer",
        "max_steps": steps,
        "learning_rate": RATE,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    common_trainer = {"model": model, "processing_class": tokenizer, "peft_config": lora, "callbacks": [clock]}
    seen: list[int] = []
    if kind == "sft":
        arguments = SFTConfig(**common, per_device_train_batch_size=ROWS[size], max_length=LENGTH)
        trainer = SFTTrainer(args=arguments, train_dataset=Dataset.from_list(rows), **common_trainer)
    elif kind == "dpo":
        # A row of ours holds about as many pairs as fit: so many tokens are in a batch of pairs here too.
        pairs = max(1, ROWS[size] * LENGTH // 256)
        arguments = DPOConfig(**common, per_device_train_batch_size=pairs, max_length=LENGTH)
        trainer = DPOTrainer(args=arguments, train_dataset=Dataset.from_list(rows), **common_trainer)
    else:
        arguments = GRPOConfig(
            **common,
            per_device_train_batch_size=PROMPTS[size] * ANSWERS,
            num_generations=ANSWERS,
            max_completion_length=TOKENS,
            beta=0.0,
        )

        def reward(completions, completion_ids, **_):
            seen.append(sum(map(len, completion_ids)))
            return [max(0.0, 1 - max(0, len(text) - 20) / 101) for text in completions]

        prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])

        def text_of(completions, **more):
            return reward([each[0]["content"] for each in completions], **more)

        trainer = GRPOTrainer(args=arguments, reward_funcs=text_of, train_dataset=prompts, **common_trainer)
    if kind != "grpo":
        collate = trainer.data_collator

        def counted(features):
            batch = collate(features)
            seen.append(len(features) if kind == "dpo" else int(batch["attention_mask"].sum()))
            return batch

        trainer.data_collator = counted
    trainer.train()
    seconds = clock.ends[-1] - clock.ends[FIRST - 1]
    tokens = sum(seen[FIRST : FIRST + STEPS[size]])
    print(json.dumps({"speed": tokens / seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
