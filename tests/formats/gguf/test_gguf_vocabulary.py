"""The tokens of a GGUF file are those of the tokenizer, for the tokenizer of llama.cpp that splits alike."""

import json

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from tests.formats.gguf.small_gguf import tokenizer
from tests.formats.huggingface.published import TEXT, write
from tpullm.formats.gguf import pre_tokenizers, vocabulary
from tpullm.formats.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from tpullm.recipe.schema import TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import trainer
from tpullm.tokenizer.published import PublishedTokenizer

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA_3 += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT_4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")


def trained(folder, kind):
    config = TokenizerConfig(vocabulary_size=400, model_type=kind)
    return trainer.train([("ja", text) for text in TEXT * 3], config, folder / "tokenizer.model")


def of_pairs(folder):
    """A tokenizer as of Llama 2: pairs of characters, bytes for others, a space before a text."""
    special = ["<unk>", "<s>", "</s>"]
    texts = [text.replace(" ", "\u2581") for text in TEXT]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    options = {"special_tokens": [*special, *of_bytes], "show_progress": False}
    made.train_from_iterator(texts * 20, trainers.BpeTrainer(vocab_size=400, **options))
    described = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    made = Tokenizer.from_str(json.dumps(described))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    write(folder / "config.json", {"eos_token_id": 2})
    write(folder / "tokenizer_config.json", {"bos_token": "<s>"})
    return PublishedTokenizer(folder)


def changed(folder, change, make=tokenizer):
    """A tokenizer, by default the byte-level one, with something else in its file."""
    make(folder)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    change(described)
    write(path, described)
    return PublishedTokenizer(folder)


def splitting(pattern, ignore_merges=False):
    def change(described):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, last]}
        described["model"]["ignore_merges"] = ignore_merges

    return change


def test_ours_is_scaled_until_an_unknown_character_scores_as_in_sentencepiece(tmp_path):
    made = trained(tmp_path, "unigram")
    found = vocabulary.of_tokenizer(made)
    assert found.model == "plamo2"
    pieces = ModelProto.FromString(made.serialized()).pieces
    raw = {token: piece.score for token, piece in enumerate(pieces) if piece.type == piece.NORMAL}
    of_64th = {round(found.scores[token] * 10**4) / (score * 64) for token, score in raw.items() if score}
    assert len(of_64th) == 1 and (unit := of_64th.pop()) == int(unit)  # sums stay exact in whole numbers
    assert -(10**7) <= (min(raw.values()) - 10) * 64 * unit < -0.99 * 10**7  # 10 below the worst piece
    pieces = dict(zip(found.texts, found.kinds, strict=True))
    assert pieces["<pad>"] == pieces["<|user|>"] == CONTROL and pieces["<unk>"] == UNKNOWN and pieces["<0x41>"] == BYTE
    assert all(made.bytes_of(n).decode() == found.texts[n] for n, kind in enumerate(found.kinds) if kind == NORMAL)


def test_ours_of_characters_keeps_its_scores(tmp_path):
    made = trained(tmp_path, "char")
    found = vocabulary.of_tokenizer(made)
    assert found.model == "llama" and not found.has_first_space
    ids = made.encode("元気ですか？ は")
    assert [found.texts[n] for n in ids] == [made.piece(n).replace(" ", "\u2581") for n in ids]
    raw = [piece.score for piece in ModelProto.FromString(made.serialized()).pieces]
    assert [found.scores[n] for n in ids] == [raw[n] for n in ids]


def test_ours_of_byte_pairs_is_split_by_the_pattern_of_qwen(tmp_path):
    made = trained(tmp_path, "bpe")
    found = vocabulary.of_tokenizer(made)
    assert (found.model, found.split, found.has_first_space) == ("gpt2", "qwen2", False)
    assert found.texts == list(json.loads(made.serialized())["model"]["vocab"])
    assert found.kinds == [NORMAL if made.bytes_of(n) else CONTROL for n in range(made.vocabulary_size)]
    joined = [merge.replace(" ", "") for merge in found.merges]
    assert joined == found.texts[trainer.fixed_tokens(TokenizerConfig(model_type="bpe")) :] and len(joined) > 9


def test_a_byte_level_one_has_its_merges_and_the_kinds_of_its_tokens(tmp_path):
    def change(described):
        described["added_tokens"][1]["special"] = False

    made = changed(tmp_path, change)
    found = vocabulary.of_tokenizer(made).of_size(322)
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (found.model, found.split) == ("gpt2", "gpt-2")
    assert list(found.merges) == [" ".join(pair) for pair in described["model"]["merges"]]
    assert found.texts[317:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[PAD320]", "[PAD321]"]
    assert found.kinds[316:] == [NORMAL, CONTROL, USER_DEFINED, CONTROL, UNUSED, UNUSED]
    assert vocabulary.of_tokenizer(made).of_size(318).texts[-1] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("pattern", "ignores", "name"),
    [
        (LLAMA_3, True, "llama-bpe"),
        (LLAMA_3, False, "dbrx"),
        (LLAMA_3.replace("{1,3}", ""), False, "qwen2"),
        (GPT_4O, False, "gpt-4o"),
        (TEKKEN, True, "tekken"),
        (None, False, "smollm"),
    ],
)
def test_a_pattern_has_its_name(tmp_path, pattern, ignores, name):
    def of_digits(described):
        digits = {"type": "Digits", "individual_digits": True}
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, described["pre_tokenizer"]]}

    change = splitting(pattern, ignores) if pattern else of_digits
    assert vocabulary.of_tokenizer(changed(tmp_path, change)).split == name


def test_a_pattern_of_other_tokens_that_no_merges_reach_has_no_name(tmp_path):
    """Of the four that llama.cpp's converter knows apart, `ignore_merges` does not matter."""
    for name, ignores_merges in (("seed-coder", False), ("minicpm5", True)):
        described = pre_tokenizers.PRE_TOKENIZERS[name].described()
        assert pre_tokenizers.name_of(described, ignores_merges) == name
        assert pre_tokenizers.name_of(described, not ignores_merges) is None


def test_pairs_of_characters_are_joined_in_the_order_of_scores(tmp_path):
    found = vocabulary.of_tokenizer(of_pairs(tmp_path / "pairs"))
    assert found.model == "llama" and found.has_first_space and not found.merges
    described = json.loads((tmp_path / "pairs" / "tokenizer.json").read_text(encoding="utf-8"))
    scores = dict(zip(found.texts, found.scores, strict=True))
    order = [scores["".join(pair)] for pair in described["model"]["merges"]]
    assert order == sorted(order, reverse=True) and len(set(order)) > 40
    assert found.kinds[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    bare = changed(tmp_path / "bare", lambda file: _steps(file).pop(0), of_pairs)
    assert not vocabulary.of_tokenizer(bare).has_first_space


def _unigram(described):
    pieces = [[piece, -1.0] for piece in described["model"]["vocab"]]
    described["model"] = {"type": "Unigram", "vocab": pieces, "unk_id": None, "byte_fallback": False}


@pytest.mark.parametrize(
    ("make", "change", "why"),
    [
        (tokenizer, splitting(r"\w+"), "a pattern that splits a text"),
        (tokenizer, _unigram, "a model of type Unigram"),
        (tokenizer, lambda file: file.update(normalizer={"type": "Lowercase"}), "a normalizer of type Lowercase"),
        (tokenizer, lambda file: file["pre_tokenizer"].update(add_prefix_space=True), "a pattern that splits a text"),
        (tokenizer, lambda file: file["pre_tokenizer"].update(use_regex=False), "a pattern that splits a text"),
        (of_pairs, lambda file: _steps(file).append({"type": "Lowercase"}), "a step of type Lowercase"),
        (of_pairs, lambda file: _merges(file).append(_merges(file)[0]), "an order of merges"),
    ],
)
def test_what_llama_cpp_splits_otherwise_is_refused(tmp_path, make, change, why):
    made = changed(tmp_path, change, make)
    with pytest.raises(UserError, match=f"llama.cpp has no tokenizer with {why}.*; use --format huggingface"):
        vocabulary.of_tokenizer(made)


def _steps(described):
    return described["normalizer"]["normalizers"]


def _merges(described):
    return described["model"]["merges"]
