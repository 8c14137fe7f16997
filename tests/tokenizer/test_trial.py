"""A tokenizer is tried in a child, and how much longer it can make any text is bounded."""

import base64
import json
import struct

import pytest
import tokenizers

from tests.formats.huggingface.published import change, directory
from tpullm.recipe.schema import TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited
from tpullm.tokenizer import exported, published, trainer, trial
from tpullm.tokenizer.published import PublishedTokenizer

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DOUBLING = {
    "a replacement": ("normalizer", "normalizers", REPLACE),
    "letters for bytes": ("pre_tokenizer", "pretokenizers", LEVEL),
    "on the way back": ("decoder", "decoders", REPLACE),
}


@pytest.mark.parametrize("kind", DOUBLING)
def test_a_tokenizer_that_doubles_a_text_36_times_is_refused_before_it_is_loaded(kind, tmp_path):
    made, (name, steps, step) = directory(tmp_path / "model"), DOUBLING[kind]
    change(made / "tokenizer.json", **{name: {"type": "Sequence", steps: [step] * 36 + [{"type": "ByteLevel"}]}})
    with pytest.raises(UserError, match=r"its steps may make a text .* times as long; it is broken or hostile, do not"):
        PublishedTokenizer(made)


def charsmap(*texts: bytes) -> str:
    return base64.b64encode(struct.pack("<I", 8) + bytes(8) + b"\0".join(texts) + b"\0").decode()


GROWTH = [
    *((None, 1), (7, 1), ({"type": "NFKC"}, 11), ({"type": "Lowercase"}, 3), ({"type": "Strip"}, 1)),
    ({"type": "Metaspace"}, 2),
    ({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, 3),
    ({"type": "Replace", "pattern": {"String": "ab"}, "content": "abc"}, 1.5),
    ({"type": "Replace", "pattern": {"String": "abc"}, "content": ""}, 1),
    ({"type": "Replace", "pattern": {"String": ""}, "content": "abcd"}, 4),
    ({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "abc"}, 4),
    ({"type": "Replace", "content": "abc"}, 4),
    ({"type": "Precompiled", "precompiled_charsmap": charsmap(b"a", b"x" * 33, b"bb")}, 33),
    ({"type": "Sequence", "normalizers": [REPLACE, {"type": "NFKC"}, REPLACE]}, 44),
    ({"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [LEVEL, LEVEL]}, LEVEL]}, 8),
    ([REPLACE] * 10_000, 1e300),
]


def test_the_growth_of_steps_is_the_product_of_theirs_and_of_our_own_export_as_is_written(tmp_path):
    assert [trial.text_growth(step) for step, _ in GROWTH] == [times for _, times in GROWTH]
    config = TokenizerConfig(model_type="char", vocabulary_size=0)
    made = trainer.train([("en", "any text")], config, tmp_path / "tokenizer.model")
    described = json.loads(exported.fast(made).to_str())
    assert round(trial.text_growth([described["normalizer"], described["pre_tokenizer"]])) == 1152


def test_a_token_too_far_away_or_too_long_is_refused(tmp_path):
    made = directory(tmp_path / "model")
    text = (made / "tokenizer.json").read_text(encoding="utf-8")
    far, long = json.loads(text), json.loads(text)
    far["model"]["vocab"]["new"] = 10_000_000
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    long["added_tokens"].append(flags | {"id": len(long["model"]["vocab"]) + 3, "content": "a" * 10_001})
    for described, message in (
        (far, "has a token 10000000; no known model has more than 4,194,304 tokens"),
        (long, "a token stands for 10,001 bytes; it is broken or hostile"),
    ):
        change(made / "tokenizer.json", **described)
        with pytest.raises(UserError, match=message):
            PublishedTokenizer(made)


def test_the_same_files_are_tried_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "_TRIED", set())
    monkeypatch.setattr(Limited, "call", lambda self, *arguments: calls.append(arguments))
    first, second = directory(tmp_path / "first"), directory(tmp_path / "second")
    for folder in (first, first, second):
        PublishedTokenizer(folder)
    assert len(calls) == 1 and calls[0][1:] == ("tpullm.tokenizer.trial:check", str(first))
    change(second / "tokenizer_config.json", pad_token="<|im_end|>")
    PublishedTokenizer(second)
    assert len(calls) == 2
    PublishedTokenizer(second, is_tried=True)
    assert len(calls) == 2


def test_a_second_process_tries_the_same_files_only_if_another_library_reads_them(tmp_path, monkeypatch):
    """A second process has nothing of the first but the cache folder."""
    made, calls = directory(tmp_path / "model"), []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Limited, "call", lambda self, *arguments: calls.append(arguments))
    for version, count in (("1", 1), ("1", 1), ("2", 2)):
        monkeypatch.setattr(tokenizers, "__version__", version)
        monkeypatch.setattr(published, "_TRIED", set())
        PublishedTokenizer(made)
        assert len(calls) == count


def test_what_fails_is_tried_each_time(tmp_path, monkeypatch):
    made = directory(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    change(made / "tokenizer.json", decoder={"type": "Replace", "pattern": {"Regex": "a"}, "content": "a" * 5_000})
    for _ in range(2):
        with pytest.raises(UserError, match="may make a text"):
            PublishedTokenizer(made)
