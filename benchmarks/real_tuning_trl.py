"""The peer of `real_tuning.py`: trl and peft get what our steps read, in float32. Run by it, with a job as JSON."""

import json
import sys
import time
from pathlib import Path

from real_tuning import ACCUMULATION, ANSWERS, KL, MARKED, OPTIMIZER, PROMPTS, RANK, SAID, TARGETS, TOKENS, pace

sys.path.pop(0)  # files in this folder have names that libraries look for, such as `data`

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DataCollatorForPreference  # noqa: E402
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # noqa: E402


class Clock(TrainerCallback):
    """What both clocks say at the end of each step."""

    def __init__(self):
        self.ends: list[list[float]] = []

    def on_step_end(self, *_, **__):
        """After the optimizer."""
        self.ends.append([time.perf_counter(), time.process_time()])


class Job:
    """What `real_tuning.py` asks for, with what each step of ours read."""

    def __init__(self, case: str, model: str, folder: str, template: str, name="", rates=(), **more):
        self.case, self.model, self.folder, self.name = case, model, Path(folder), name
        self.rates, self.more = rates, more
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        own = self.tokenizer.chat_template
        # A template may have its newlines as they are, or as an escape.
        marked = own.replace(SAID, MARKED).replace(SAID.replace("\\n", "\n"), MARKED)
        self.marked = Path(template).read_text() if template else marked
        if name:
            noted = (self.folder / f"run-{name}" / "noted.jsonl").read_text().splitlines()
            self.steps = [json.loads(line)["texts"] for line in noted]

    def loaded(self, name: str = "", **more):
        """The model, with the adapter of a folder if one is named; in float32 unless `more` has another type."""
        model = AutoModelForCausalLM.from_pretrained(self.model, **{"dtype": torch.float32, **more})
        return PeftModel.from_pretrained(model, self.folder / name, is_trainable=True) if name else model

    def rows(self, kind: str) -> Dataset:
        """The examples of a file."""
        return Dataset.from_list([json.loads(line) for line in open(self.folder / f"{kind}.jsonl", encoding="utf-8")])

    def arguments(self, **more) -> dict:
        """Those of each trainer; `rates` are the learning rates."""
        names = {"beta1": "adam_beta1", "beta2": "adam_beta2", "epsilon": "adam_epsilon", "clip_norm": "max_grad_norm"}
        optimizer = {names.get(key, key): value for key, value in OPTIMIZER.items() if key != "warmup_steps"}
        return optimizer | {
            "output_dir": str(self.folder / "trl"),
            "max_steps": len(self.rates),
            "learning_rate": 1.0,
            "per_device_train_batch_size": 1,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": [],
            **more,
        }

    def trained(self, trainer, batches=None) -> dict:
        """Train on `batches`, micro-batches in their order; the loss of each step, and its pace."""
        clock, losses, step = Clock(), [], trainer.training_step

        def schedule(*_, optimizer=None, **__):
            optimizer = optimizer or trainer.optimizer
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: [*self.rates, 0.0][n])
            return trainer.lr_scheduler

        def noted(*of, **more):
            losses.append(step(*of, **more))
            return losses[-1]

        trainer.create_scheduler, trainer.training_step = schedule, noted
        trainer.add_callback(clock)
        if batches:
            trainer.data_collator = lambda _: next(batches)
            count = len(self.rates) * trainer.args.gradient_accumulation_steps
            trainer.train_dataset = Dataset.from_list([{"input_ids": [0], "labels": [0], "prompt_ids": [0]}] * count)
        trainer.train()
        each = trainer.args.gradient_accumulation_steps
        sums = [sum(loss.item() for loss in losses[n : n + each]) for n in range(0, len(losses), each)]
        return {"losses": sums, **pace(clock.ends)}


def start(job: Job) -> dict:
    """An adapter as peft begins it."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    get_peft_model(job.loaded(), config).save_pretrained(job.folder / "start")
    return {}


def sft(job: Job) -> dict:
    """Conversations: all parameters (`sft`), or an adapter."""
    job.tokenizer.chat_template, more = job.marked, {}
    if job.name == "qlora":
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        more = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **four)}
    model = job.loaded("" if job.name == "sft" else "start", **more)
    arguments = job.arguments(assistant_only_loss=True, gradient_accumulation_steps=ACCUMULATION)
    common = {"train_dataset": job.rows("sft"), "processing_class": job.tokenizer}
    trainer = SFTTrainer(model=model, args=SFTConfig(**arguments), **common)
    if job.name == "qlora":  # trl rounds such an adapter to bfloat16
        for parameter in model.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        set_peft_model_state_dict(model, load_file(job.folder / "start" / "adapter_model.safetensors"))
    prepared = {tuple(row["input_ids"]): row["labels"] for row in trainer.train_dataset}
    end = next(iter(prepared))[-1]  # what the template writes after an answer is ended; ours reads no further
    micro = []
    for texts in job.steps:
        rows = []
        for text in texts:
            ids = text["ids"]
            labels = [one if counts else -100 for one, counts in zip(ids, text["counts"], strict=True)]
            whole = tuple(ids) if tuple(ids) in prepared else (*ids, end)
            assert prepared[whole][: len(ids)] == labels and set(prepared[whole][len(ids) :]) <= {-100}
            rows.append({"input_ids": ids, "labels": labels})
        micro += [rows[n::ACCUMULATION] for n in range(ACCUMULATION)]
    collate = DataCollatorForLanguageModeling(job.tokenizer.pad_token_id, padding_free=job.name == "packed")
    found = job.trained(trainer, iter([collate(rows) for rows in micro]))
    if job.name != "sft":
        model.save_pretrained(job.folder / f"sft-{job.name}")
    return found


def dpo(job: Job) -> dict:
    """Pairs; the reference is the model without its adapter."""
    arguments = job.arguments(beta=0.1, max_length=None)
    common = {"train_dataset": job.rows("dpo"), "processing_class": job.tokenizer}
    trainer = DPOTrainer(model=job.loaded("start"), args=DPOConfig(**arguments), **common)
    prepared = {tuple(row["prompt_ids"] + row["chosen_ids"]): row for row in trainer.train_dataset}
    batches, more = [], 0
    collate = DataCollatorForPreference(job.tokenizer.pad_token_id)
    for texts in job.steps:
        rows = []
        for two in zip(texts[::2], texts[1::2], strict=True):
            cut = two[0]["counts"].index(1)
            row = {"prompt_ids": two[0]["ids"][:cut]} | {
                name: of["ids"][cut:] for name, of in zip(("chosen_ids", "rejected_ids"), two, strict=True)
            }
            # trl counts what the template writes after the end of an answer too.
            whole = next(of for ids, of in prepared.items() if ids[: len(two[0]["ids"])] == tuple(two[0]["ids"]))
            assert all(whole[name][: len(ids)] == ids for name, ids in row.items())
            more = max(more, *(len(whole[name]) - len(ids) for name, ids in row.items()))
            rows.append(row)
        batches.append(collate(rows))
    return job.trained(trainer, iter(batches)) | {"tokens after an answer": more}


def grpo(job: Job) -> dict:
    """Answers that were sampled here before; trl samples too, and then gets these."""
    grouped = []
    for texts in job.steps[::2]:
        by_prompt: dict[tuple, list] = {}
        for text in texts:
            cut = text["counts"].index(1)
            by_prompt.setdefault(tuple(text["ids"][:cut]), []).append((text["ids"][cut:], text["advantage"]))
        assert [len(of) for of in by_prompt.values()] == [ANSWERS] * PROMPTS
        grouped.append(by_prompt)
    apart, answers = [], iter(grouped)
    prompts = [{"prompt": job.tokenizer.decode(ids)} for by_prompt in grouped for ids in by_prompt]

    def reward(completions, **_):
        return [max(0.0, 1 - max(0, len(text.strip()) - 10) / 201) for text in completions]

    def rollout(prompts, trainer):
        said = [(list(ids), *of) for ids, all_of in next(answers).items() for of in all_of]
        trainer._generate_single_turn([ids for ids, *_ in said], None, {}, ANSWERS)
        apart.append([advantage for *_, advantage in said])
        return {"prompt_ids": [of[0] for of in said], "completion_ids": [of[1] for of in said], "logprobs": None}

    arguments = job.arguments(
        per_device_train_batch_size=PROMPTS * ANSWERS,
        num_generations=ANSWERS,
        max_completion_length=TOKENS,
        num_iterations=2,
        beta=KL,
        loss_type="grpo",
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=job.loaded("start"),
        args=GRPOConfig(**arguments),
        reward_funcs=reward,
        rollout_func=rollout,
        train_dataset=Dataset.from_list(prompts),
        processing_class=job.tokenizer,
    )
    score, scored = trainer._generate_and_score_completions, []

    def noted(inputs):
        found = score(inputs)
        scored.append(found["advantages"].tolist())
        return found

    trainer._generate_and_score_completions = noted
    found = job.trained(trainer)
    pairs = list(zip(sum(scored, []), sum(apart, []), strict=True))
    assert any(one for one, _ in pairs), "all answers have the same reward, so nothing is compared"
    return found | {"advantages": max(abs(one - other) for one, other in pairs)}


def nf4(job: Job) -> dict:
    """A folder of the model with the numbers that bitsandbytes' codes stand for."""
    import bitsandbytes

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    model = job.loaded(quantization_config=BitsAndBytesConfig(load_in_4bit=True, **four))
    tensors = dict(job.loaded().state_dict())
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            of = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            tensors[f"{name}.weight"] = of.float()
    whole = job.loaded()
    whole.load_state_dict(tensors)
    whole.save_pretrained(job.folder / "nf4")
    job.tokenizer.save_pretrained(job.folder / "nf4")
    return {}


def texts(job: Job) -> dict:
    """The likeliest answers of the model and of it with each adapter: in both types, and merged in float32."""
    questions, found = json.loads((job.folder / "questions.json").read_text()), {}

    def answers(model) -> list[str]:
        said = []
        for question in questions:
            asked = [{"role": "user", "content": question}]
            options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            ids = job.tokenizer.apply_chat_template(asked, **options)
            with torch.no_grad():
                out = model.generate(**ids, do_sample=False, max_new_tokens=48)
            said.append(job.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return said

    for adapter in ("", *job.more["adapters"]):
        of = found[Path(adapter).name or "base"] = {}
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            model = job.loaded(adapter, dtype=dtype)
            of[name] = answers(model)
        model = job.loaded(adapter)
        if Path(adapter).name == "adapter":  # merged by us
            model = AutoModelForCausalLM.from_pretrained(job.more["merged"], dtype=torch.float32)
        of["merged"] = answers(model.merge_and_unload() if isinstance(model, PeftModel) else model)
    each = [of["float32"] for of in found.values()]
    return found | {"differ": [sum(map(str.__ne__, each[0], of)) for of in each[1:]]}


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(globals()[job.case](job)))
