"""A Llama of random weights, as a folder in the format of Hugging Face: speed is measured with it.

    python benchmarks/random_model.py FOLDER TEXT ... [--size 12m] [--context 1024]

TEXT is what its byte-level tokenizer learns from. Its likeliest texts never end, so each answer has as many tokens as
were asked for: only tokens that are whole characters have embeddings, which are also the rows of the logits. All others
have the logit 0, and of thousands of random logits the largest is above. The chat template shows tools.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

# width, layers, heads, vocabulary: about 0.4, 12 and 120 million parameters
SIZES = {"tiny": (128, 2, 2, 512), "12m": (384, 6, 6, 4096), "120m": (768, 12, 12, 32000)}
TOOLS = Path(__file__).with_name("tools.jinja")
BOS, EOS, PAD, END = "<s>", "</s>", "<pad>", "<|end|>"
SPECIAL = (PAD, BOS, EOS, END, "<|system|>", "<|user|>", "<|assistant|>")


def make(folder: Path, size: str, text: str, context: int = 1024) -> None:
    """Write the model into a new folder.

    Args:
        size: a key of `SIZES`.
        text: what the tokenizer learns from.
        context: tokens of the longest text.
    """
    folder.mkdir(parents=True)
    tokenizer = trained(text, vocabulary=min(SIZES[size][-1], 4096))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")  # noqa: E731
    write("config.json", config(size, context) | {"bos_token_id": ids[BOS], "pad_token_id": ids[PAD]} | ends(ids))
    write("generation_config.json", ends(ids))
    names = {"bos_token": BOS, "eos_token": END, "pad_token": PAD, "model_max_length": context}
    write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    shutil.copy(TOOLS, folder / "chat_template.jinja")
    save_file(weights(size, whole_tokens(tokenizer)), folder / "model.safetensors", {"format": "pt"})


def trained(text: str, vocabulary: int) -> Tokenizer:
    """A byte-level BPE whose pattern is GPT-2's, which every program knows."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocabulary - len(SPECIAL)
    learning = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(text.splitlines(keepends=True), learning)
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made


def ends(ids: dict[str, int]) -> dict:
    """The end tokens, as config.json and generation_config.json name them."""
    return {"eos_token_id": [ids[END], ids[EOS]]}


def whole_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of tokens that are text by themselves: not special, and no part of a character."""
    ids = range(tokenizer.get_vocab_size())
    special = {tokenizer.token_to_id(name) for name in SPECIAL}
    return np.array([id for id in ids if id not in special and "\ufffd" not in tokenizer.decode([id])])


def config(size: str, context: int) -> dict:
    """config.json without special tokens."""
    width, layers, heads, vocabulary = SIZES[size]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 8 * width // 3 // 32 * 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }


def weights(size: str, used: np.ndarray) -> dict[str, np.ndarray]:
    """Random matrices, by their names in transformers; embeddings of `used` tokens alone."""
    width, layers, _, vocabulary = SIZES[size]
    inner, rng = config(size, 0)["intermediate_size"], np.random.default_rng(0)
    random = lambda *shape: rng.normal(0, 0.02, shape).astype(np.float32)  # noqa: E731
    embedding_VD = np.zeros((vocabulary, width), np.float32)
    embedding_VD[used] = random(len(used), width)
    found = {"model.embed_tokens.weight": embedding_VD, "model.norm.weight": np.ones(width, np.float32)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found |= {f"{at}self_attn.{name}_proj.weight": random(width, width) for name in "qkvo"}
        found |= {f"{at}mlp.{name}_proj.weight": random(inner, width) for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = random(width, inner)
        found |= {f"{at}{name}_layernorm.weight": np.ones(width, np.float32) for name in ("input", "post_attention")}
    return found


def main() -> None:
    """Write a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--size", choices=SIZES, default="12m")
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    text = "\n".join(path.read_text(encoding="utf-8") for path in options.text)
    make(options.folder, options.size, text, options.context)


if __name__ == "__main__":
    main()
