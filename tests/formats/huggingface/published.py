"""A whole directory as its authors would publish it: a small Llama, a byte-level tokenizer, ChatML."""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.formats.huggingface.small import LLAMA, published

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "今日はいい天気ですね。",
    "猫が好きです。犬も好きです。",
    "The cat sat on the mat.",
    "元気ですか？ はい、元気です。",
]
START, END, TURN = "<|endoftext|>", "<|im_end|>", "<|im_start|>"


@functools.cache
def _trained() -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    made.train_from_iterator(TEXT * 20, trainers.BpeTrainer(vocab_size=317, **options))
    made.add_special_tokens([AddedToken(token, special=True) for token in (START, TURN, END)])
    return made.to_str()


def tokenizer(path: Path) -> Tokenizer:
    """A byte-level BPE of 320 tokens, written to `path`."""
    made = Tokenizer.from_str(_trained())
    made.save(str(path))
    return made


def directory(folder: Path, layers: int = 3) -> Path:
    folder.mkdir(parents=True)
    made = tokenizer(folder / "tokenizer.json")
    end, size = made.token_to_id(END), made.get_vocab_size()
    ids = {"vocab_size": size, "eos_token_id": end, "bos_token_id": made.token_to_id(START)}
    keys = LLAMA | ids | {"num_hidden_layers": layers}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32", **keys}
    write(folder / "config.json", config)
    write(folder / "generation_config.json", {"eos_token_id": [end, made.token_to_id(START)]})
    tokens = {"eos_token": END, "pad_token": START, "tokenizer_class": "PreTrainedTokenizerFast"}
    write(folder / "tokenizer_config.json", tokens | {"chat_template": CHATML})
    save_file(published(config)[2], folder / "model.safetensors")
    return folder


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def change(path: Path, **changes) -> None:
    """Other values in a JSON file; None removes a key."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    write(path, {key: item for key, item in value.items() if item is not None})


def change_tensor(folder: Path, name: str, value) -> None:
    found = load_file(folder / "model.safetensors")
    found[name] = np.asarray(value(found[name]))
    save_file(found, folder / "model.safetensors")
