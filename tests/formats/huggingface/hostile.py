"""Hostile model folders: a good one, spoiled in one way or in several, all chosen by a seed.

What one reader refuses by itself is in test_hostile_configs.py, and in tests/tokenizer for templates and steps.
"""

import contextlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from tests.formats.huggingface.published import CHATML, change, write

Spoil = Callable[[Path, random.Random], object]
ODD_VALUES = [None, True, -1, 0, 1.5, 1e999, float("nan"), "x", "", [], {}, [[]], {"a": 1}]
ODD_VALUES += [10**9, 2**63, 10**400, -(10**12)]
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
# What else a config may say, and engines read.
SETTINGS = (
    "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "vocab_size max_position_embeddings rms_norm_eps hidden_act tie_word_embeddings rope_parameters rope_scaling "
    "rope_theta eos_token_id bos_token_id attention_bias sliding_window layer_types dtype torch_dtype "
    "original_max_position_embeddings partial_rotary_factor num_experts num_local_experts num_experts_per_tok "
    "query_pre_attn_scalar sliding_window_pattern max_window_layers use_sliding_window quantization_config auto_map"
).split()
SIZES = [key for key in SETTINGS if key.startswith(("num_", "hidden_size", "interm", "vocab", "head_dim", "max_pos"))]
FAMILIES = "llama mistral qwen2 qwen3 olmo2 olmo3 smollm3 phi3 gemma gemma2 gemma3_text mixtral qwen3_moe".split()
FAMILIES += ["gpt_oss", "gpt2", "rwkv"]
TOKENS = "eos_token pad_token bos_token chat_template tokenizer_class legacy added_tokens_decoder".split()


def config(**changes) -> Spoil:
    return lambda folder, _: change(folder / "config.json", **changes)


def odd(file: str, changes: Callable[[random.Random], dict]) -> Spoil:
    """Other values in a JSON file, named without its `.json`."""
    return lambda folder, chance: change(folder / f"{file}.json", **changes(chance))


def some_odd(keys: list[str], values: list, most: int) -> Callable[[random.Random], dict]:
    return lambda chance: {chance.choice(keys): chance.choice(values) for _ in range(chance.randint(1, most))}


def odd_family(chance: random.Random) -> dict:
    return {"model_type": chance.choice(FAMILIES)} | some_odd(SETTINGS, ODD_VALUES, 4)(chance)


def odd_rope(chance: random.Random) -> dict:
    kinds = ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "", None, 7, "x" * 10**6]
    keys = "factor low_freq_factor high_freq_factor original_max_position_embeddings beta_fast short_factor long_factor"
    rope = {"rope_type": chance.choice(kinds)} | {key: chance.choice(ODD_VALUES) for key in keys.split()}
    return {chance.choice(["rope_parameters", "rope_scaling"]): rope}


def cut(folder: Path, chance: random.Random) -> None:
    path = chance.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    data = bytearray(path.read_bytes()[: 1 << 22])
    for _ in range(chance.randint(0, 5)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])])


def any_place(kind: str) -> Spoil:
    """No file in the place of a file."""
    names = [*FILES, "model.safetensors", "chat_template.jinja", "model.safetensors.index.json", "other.safetensors"]

    def spoil(folder: Path, chance: random.Random) -> None:
        path = folder / chance.choice(names)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "hollow":
            path.touch()
            os.truncate(path, 1 << 40)
        else:
            links = {"device": "/dev/zero", "link": "/etc/hostname", "nowhere": "nothing", "loop": path.name}
            path.symlink_to(links[kind])

    return spoil


def template(*sources) -> Spoil:
    return odd("tokenizer_config", lambda chance: {"chat_template": chance.choice(sources)})


def tokenizer(**parts) -> Spoil:
    return odd("tokenizer", lambda chance: parts)


def pattern(regex: str) -> Spoil:
    return tokenizer(pre_tokenizer=SPLIT | {"pattern": {"Regex": regex}})


def many_added_tokens(_: random.Random) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {"added_tokens": [{"id": 400 + number, "content": f"<{number}>", **flags} for number in range(200_000)]}


def described(changes: Callable[[dict, random.Random], object]) -> Spoil:
    def spoil(folder: Path, chance: random.Random) -> None:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        changes(found, chance)
        write(folder / "tokenizer.json", found)

    return spoil


def odd_tokenizer(found: dict, chance: random.Random) -> None:
    found[chance.choice(list(found))] = chance.choice(ODD_VALUES)
    found["model"][chance.choice(list(found["model"]))] = chance.choice(ODD_VALUES)


def nested_steps(_: random.Random) -> dict:
    step = {"type": "NFC"}
    for _ in range(400):
        step = {"type": "Sequence", "normalizers": [step]}
    return {"normalizer": step}


def header(changes: Callable[[dict, random.Random], object]) -> Spoil:
    """Another header of the weights, before the same data."""

    def spoil(folder: Path, chance: random.Random) -> None:
        data = (folder / "model.safetensors").read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        said = json.loads(data[8:end])
        text = json.dumps(changes(said, chance) or said).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[end:])

    return spoil


def one_tensor(**values) -> Spoil:
    return header(lambda said, chance: said[chance.choice(sorted(set(said) - {"__metadata__"}))].update(values))


def overlap(said: dict, chance: random.Random) -> None:
    one, other = chance.sample(sorted(set(said) - {"__metadata__"}), 2)
    said[one]["data_offsets"] = said[other]["data_offsets"]


def index(weight_map: dict) -> Spoil:
    return lambda folder, _: write(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def linked_shard(folder: Path, chance: random.Random) -> None:
    """A good file of weights outside, and a link or a name that leads there."""
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    if chance.random() < 0.5:
        index({"model.norm.weight": f"../{outside.name}"})(folder, chance)


LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}" + "{% endfor %}" * 3
GROWS = "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
TOO_MANY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
ODD_IDS = [2**32 - 1, 2**31, 10**7, -1, 2**64, "x", 1.5, None]
TWICE = b'{"eos_token_id": 1, "eos_token_id": [2, 3], "eos_token_id": {}}'
KINDS: dict[str, Spoil] = {
    "nothing": lambda folder, chance: None,
    "a template that loops": template(LOOP, CHATML + LOOP, "{% for i in range(10**12) %}{% endfor %}"),
    "a template that fills memory": template("{{ 'a' * 3000000000 }}", "{{ '%2000000000d' % 1 }}"),
    "a template that grows": template(GROWS),
    "a template that calls itself": template("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"),
    "a template that talks": template("{{ raise_exception('\x1b[2J\n' * 100000) }}", "\x1b[2J{{ 1 / 0 }}"),
    "a template of powers": template("{{ 9**9**9 }}", "{{ (10**4000) ~ '' }}", "{{ messages | tojson(indent=10**9) }}"),
    "a template of no text": template(7, [1], [{"name": "default"}], {"a": 1}),
    "many added tokens": odd("tokenizer", many_added_tokens),
    "an odd vocabulary": described(lambda found, chance: found["model"]["vocab"].update(new=chance.choice(ODD_IDS))),
    "an odd tokenizer": described(odd_tokenizer),
    "nested steps": odd("tokenizer", nested_steps),
    "a pattern that is none": pattern("(" * 1000),
    "a pattern that is slow": pattern("(a+a+)+$|(a*)*b"),
    "a broken table": tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "a billion layers": config(num_hidden_layers=10**9),
    "millions of experts": config(model_type="mixtral", num_local_experts=4000, num_hidden_layers=4000),
    "a layer for all": config(model_type="qwen3", layer_types=["full_attention"] * 10**5, use_sliding_window=True),
    "an odd size": odd("config", some_odd(SIZES, [10**6, 10**9, 2**31, 2**40, 2**62, 2**64], 1)),
    "odd settings": odd("config", some_odd(SETTINGS, ODD_VALUES, 4)),
    "an odd family": odd("config", odd_family),
    "odd RoPE": odd("config", odd_rope),
    "odd tokens": odd("tokenizer_config", some_odd(TOKENS, ODD_VALUES, 2)),
    "odd ends": odd("generation_config", some_odd(["eos_token_id"], [*ODD_VALUES, [[1]], [{}], ["a"], [2**40]], 1)),
    "values": lambda folder, chance: (folder / chance.choice(FILES)).write_bytes(b"[" + b"{}," * (15 << 20) + b"1]"),
    "keys twice": lambda folder, _: (folder / "generation_config.json").write_bytes(TWICE),
    "a cut": cut,
    "a pipe": any_place("pipe"),
    "a folder": any_place("folder"),
    "a device": any_place("device"),
    "a link": any_place("link"),
    "a link to nothing": any_place("nowhere"),
    "a link to itself": any_place("loop"),
    "never written": any_place("hollow"),
    "overlapping tensors": header(overlap),
    "a tensor out of the file": one_tensor(data_offsets=[0, 10**15]),
    "a shape that overflows": one_tensor(shape=[2**32, 2**32]),
    "a shape of many dimensions": one_tensor(shape=[1] * 10**5),
    "another type": one_tensor(dtype="I64"),
    "an odd shape": header(lambda said, chance: said[sorted(said)[0]].update(shape=chance.choice(ODD_VALUES))),
    "a header of no object": header(lambda said, chance: [said]),
    "a million tensors": header(lambda said, chance: said | dict.fromkeys(map(str, range(10**6)), TOO_MANY)),
    "a name that talks": header(lambda said, chance: {"\x1b[2J\n" * 1000 + name: said[name] for name in said}),
    "a giant index": index({f"model.layers.{n}.x": "model.safetensors" for n in range(10**6)}),
    "an index of other tensors": index(dict.fromkeys(("model.norm.weight", "x"), "model.safetensors")),
    "a shard elsewhere": linked_shard,
}

PLACES = ("a pipe", "a folder", "a device", "a link", "a link to nothing", "a link to itself", "never written")


def make(good: Path, folder: Path, seed: int) -> list[str]:
    """A folder of a seed; the kinds of its faults. The first kind goes through all of them, so few seeds see each."""
    chance, kinds = random.Random(seed), list(KINDS)
    chosen = [kinds[seed % len(kinds)], *chance.sample(kinds, chance.choice([0, 0, 0, 1, 2]))]
    shutil.copytree(good, folder)
    for kind in sorted(chosen, key=PLACES.__contains__):  # what is no file can't be spoiled: reading a pipe never ends
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError, IndexError):
            KINDS[kind](folder, chance)  # of two faults in one file the second may find nothing to spoil
    return chosen
