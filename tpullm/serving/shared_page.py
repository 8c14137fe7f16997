"""A page with the model in it, which runs in the browser: its numbers, its tokenizer and its chat template as data.

Numbers are 16-bit integers with a scale for each output of a matrix. The scripts `shared_*.js` compute with them.
"""

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tpullm.recipe.schema import ModelConfig
from tpullm.serving.page import as_data, page
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.byte_pairs import PATTERN
from tpullm.tokenizer.sentence_pieces import SPACE

SCRIPTS = ("shared_tokenizer.js", "shared_model.js", "shared_blank.js", "shared_asking.js")
LARGEST = 20_000_000  # parameters: a file of 53 MB, and about 30 tokens a second
_LARGEST_CODE = 2**15 - 1
# What may differ between the models that `shared_model.js` computes. All else is as `ModelConfig` has it by default.
_SIZES = ("layers", "width", "heads", "kv_heads", "head_width", "mlp_width", "vocabulary_size", "context_length")
_OPTIONS = ("rope_theta", "norm_epsilon", "norm_unit_offset", "qk_norm", "scale_embeddings", "tied_embeddings")


def shared_page(
    name: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    text: Mapping[str, np.ndarray],
    chat: Mapping[str, np.ndarray] | None,
    questions: Sequence[str] = (),
) -> str:
    """The HTML.

    Args:
        name: of the model.
        config: of both stages.
        text, chat: the parameters of the stage that reads and continues texts, and of the one that answers, by their
            flat names, `[L, ...]` in layers. None: the model does not talk. They may be the same object.
        questions: which it is known to answer; the chat begins with them.

    Raises:
        UserError: the page can't do what this tokenizer or its chat template does.
    """
    stages = {"text": _page_arrays(text, config)}
    if chat is not None and chat is not text:
        stages["chat"] = _page_arrays(chat, config)
    described = {
        "name": name,
        "config": {key: getattr(config, key) for key in (*_SIZES, *_OPTIONS)},
        "arrays": {name: array.shape for name, array in stages["text"].items()},
        "tokenizer": _described_tokenizer(tokenizer, name),
        "begin": tokenizer.begin,
        "stops": tokenizer.stop_ids,
        "chat": None if chat is None else _chat_pieces(tokenizer, name),
        "questions": list(questions),
    }
    data = {"shared": as_data(described)}
    data |= {f"weights-{stage}": base64.b64encode(_packed(arrays)).decode() for stage, arrays in stages.items()}
    data["identity"] = hashlib.sha256("".join(data.values()).encode()).hexdigest()
    return page(SCRIPTS, "", data, is_file=True)[0]


def check_config(config: ModelConfig, parameters: int, name: str) -> None:
    """Refuse a model that the page can't compute, or that is too large for one; `UserError` with `name`."""
    if parameters > LARGEST:
        raise UserError(
            f"{name}: has {parameters:,} parameters, and a page holds {LARGEST:,} at most; `tpullm serve` answers a "
            "browser with a model of any size, `tpullm export --format gguf` writes it for programs"
        )
    free, usual = {*_SIZES, *_OPTIONS, *ModelConfig.of_training(), "experts_per_token"}, ModelConfig()
    alike = dataclasses.replace(config, windows=() if set(config.windows) <= {0} else config.windows)
    for field in dataclasses.fields(ModelConfig):
        value = getattr(alike, field.name)
        if field.name not in free and value != getattr(usual, field.name) or value == "all":
            raise UserError(
                f"{name}: its {field.name} is {value}, which the page does not compute; use `tpullm serve`, or "
                "`tpullm export`"
            )


def _page_arrays(params: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Every parameter by its name on the page: a matrix is `[outputs, inputs]`, the scale of a norm `[width]`."""
    found = {}
    for name, array in params.items():
        in_layers, (*_, owner, leaf) = name.startswith("layers."), ("", *name.split("."))
        for layer, one in enumerate(array if in_layers else [array]):
            one = np.asarray(one, np.float32)
            if leaf == "scale":
                one = one + np.float32(config.norm_unit_offset)
            elif in_layers:  # `[inputs, outputs]`, of which one is the width
                one = one.reshape(-1, config.width) if owner in ("out", "down") else one.reshape(config.width, -1)
                one = one.T
            found[f"{layer}.{owner}" if in_layers else owner or leaf] = one
    return found


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Norms and the scales of matrices as float32, then the codes of all matrices as int16; little endian."""
    floats, codes = [], []
    for array in arrays.values():
        if array.ndim == 1:
            floats.append(array)
            continue
        scales = np.maximum(np.abs(array).max(axis=1), 1e-30) / _LARGEST_CODE
        floats.append(scales)
        codes.append(np.rint(array / scales[:, None]).ravel())
    return b"".join(np.concatenate(of).astype(kind).tobytes() for of, kind in ((floats, "<f4"), (codes, "<i2")))


def _described_tokenizer(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """The text of each token, or its bytes if it has none; scores of pieces, or none for pairs of bytes."""
    model = tokenizer.serialized()
    named = _scored_pieces(json.loads(model)) if model.startswith(b"{") else _sentence_pieces(model)
    if named is None:
        raise UserError(
            f"{name}: the page can't split text as its tokenizer does, only as those of `tpullm tokenize` do; use "
            "`tpullm serve`"
        )
    tokens: list[str | list[int]] = []
    for token in range(tokenizer.vocabulary_size):
        held = tokenizer.bytes_of(token)
        is_byte = token < len(named) and len(held) == 1 and named[token][0] == f"<0x{held[0]:02X}>"
        try:
            tokens.append(list(held) if is_byte or not held else held.decode())
        except UnicodeDecodeError:
            tokens.append(list(held))
    special = {token: tokenizer.piece(token) for token, held in enumerate(tokens) if not held}
    return {"tokens": tokens, "scores": [score for _, score in named] or None, "special": special}


def _sentence_pieces(model: bytes) -> list[tuple[str, float]]:
    from sentencepiece import sentencepiece_model_pb2

    return [(piece.piece, piece.score) for piece in sentencepiece_model_pb2.ModelProto.FromString(model).pieces]


def _scored_pieces(described: dict) -> list[tuple[str, float]] | None:
    """Of the files of `tokenizer/exported.py`: the pieces with their scores, nothing for pairs of bytes; None: it is
    another tokenizer.
    """
    model, steps = described["model"], [described.get("normalizer") or {}, described.get("pre_tokenizer") or {}]
    changes, cuts = (step.get(key, []) for step, key in zip(steps, ("normalizers", "pretokenizers"), strict=True))
    patterns = [cut.get("pattern") for cut in cuts]
    if model.get("type", "BPE") == "BPE":
        ids = [model["vocab"]["".join(pair)] for pair in model["merges"]]
        of_bytes = [(cut["type"], cut.get("add_prefix_space"), cut.get("use_regex")) for cut in cuts[1:]]
        is_ours = patterns[:1] == [{"Regex": PATTERN}] and of_bytes == [("ByteLevel", False, False)]
        # The page joins the neighbours whose bytes are the token of the lowest id (`tokenizer/byte_pairs.py`).
        return [] if is_ours and not steps[0] and ids == sorted(set(ids)) else None
    replaced = [(change.get("pattern"), change.get("content")) for change in changes[:2]]
    wanted = [({"String": SPACE}, f"{SPACE}0"), ({"String": " "}, f"{SPACE}1")]
    is_ours = model["type"] == "Unigram" and patterns == [{"String": " "}, {"String": "\n"}] and replaced == wanted
    return [(piece, score) for piece, score in model["vocab"]] if is_ours else None


def _chat_pieces(tokenizer: Tokenizer, name: str) -> dict[str, list[int]]:
    """The ids around what is said: `first`, a question, `answer`, an answer, `question`, a question, `asks`.

    Raises:
        UserError: the template shows a conversation otherwise than as these pieces.
    """

    def talk(*said: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(said)]

    keys, marks = ("first", "answer", "question", "asks"), ("\ue000", "\ue001", "\ue002")
    parts = re.split("|".join(marks), tokenizer.prompt_text(talk(*marks)))
    pieces = {key: tokenizer.encode_marked(part) for key, part in zip(keys, parts, strict=False)}

    def assembled(said: tuple[str, ...]) -> list[int]:
        before = [pieces[("question", "answer")[n % 2] if n else "first"] for n in range(len(said))]
        turns = [[*ids, *tokenizer.encode(content)] for ids, content in zip(before, said, strict=True)]
        return [token for turn in (*turns, pieces["asks"]) for token in turn]

    trials = (("a",), (" 本 \n", "\nb ", "c"), ("1", "2", "3", "4", "5"))
    if len(parts) != len(keys) or any(
        assembled(said) != tokenizer.chat_template(talk(*said), add_generation_prompt=True)[0] for said in trials
    ):
        raise UserError(
            f"{name}: its chat template can't be shown turn by turn, as a page would; use `tpullm serve`, or share a "
            "stage that continues texts"
        )
    return pieces
