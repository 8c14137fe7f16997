"""Tries a published tokenizer, in a child with limits, before this program loads it.

What a tokenizer does with other texts than those of the trial is bounded by `growth`: each of its steps may make a text
longer, and 36 steps that double it make a word into gigabytes.
"""

import base64
import math
import struct
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError
from tpullm.tokenizer.json_files import read_json
from tpullm.tokenizer.published import PublishedTokenizer

# Times, in bytes: a page of 100 kB becomes 0.4 GB at most. The bound is 1,152 for tpullm's own export, which grows 4
# times in fact, as a pattern counts as if it matched between any two letters; it is 4 for Llama 2's kind.
MOST_GROWTH = 4_000
TEXTS = (
    "今日はいい天気ですね。\n\n猫が好きです。 The cat sat on the mat, didn't it? 1234567890",
    "\u2581<0x41></s><|im_start|>user\tがＡﬁé\u0301한국어 العربية 👩‍👩‍👧 \u3000\r\n" + " " * 300,
    "".join(map(chr, range(32, 127))) * 2 + "a" * 5_000,
)


def check(folder: str) -> None:
    """Load the tokenizer in `folder`, and read and write texts with it. What `PublishedTokenizer` has a child do."""
    described = read_json(Path(folder) / "tokenizer.json")
    steps = [described.get(name) for name in ("normalizer", "pre_tokenizer")]
    for times in (text_growth(steps), text_growth(described.get("decoder"))):
        if times > MOST_GROWTH:
            raise UserError(
                f"{folder}/tokenizer.json: its steps may make a text {times:.3g} times as long; it is broken or "
                "hostile, do not use it"
            )
    tokenizer = PublishedTokenizer(Path(folder), is_tried=True)
    longest = max(map(len, map(tokenizer.bytes_of, range(tokenizer.vocabulary_size))), default=0)
    if longest > 10_000:  # known are 128 spaces
        raise UserError(f"{folder}/tokenizer.json: a token stands for {longest:,} bytes; it is broken or hostile")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        tokenizer.document(text)


def text_growth(step: Any) -> float:
    """How many times as many bytes a step of a tokenizer may make of a text, at most; at least 1.

    Args:
        step: a normalizer, pre-tokenizer or decoder as `tokenizer.json` describes it, a list of them, or none.
    """
    if isinstance(step, list):
        return min(math.prod(map(text_growth, step)), 1e300)
    if not isinstance(step, dict):
        return 1.0
    inner = [step.get(name) for name in ("normalizers", "pretokenizers", "decoders")]
    return max(1.0, _growth_of_one_step(step)) * text_growth([part for part in inner if part])


def _growth_of_one_step(step: dict) -> float:
    """The growth of one step without those in it. A step that is not named keeps the length."""
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), len(str(step.get("content")).encode())
        text = pattern.get("String") if isinstance(pattern, dict) else None
        # A regular expression may match nothing, between any two letters.
        return content / max(1, len(text.encode())) if isinstance(text, str) else 1.0 + content
    if kind == "Precompiled":
        # SentencePiece's table: the size of a trie in bytes, the trie, then the replacements, which end in 0.
        data = base64.b64decode(str(step.get("precompiled_charsmap")))
        (size,) = struct.unpack_from("<I", data)
        return float(max(map(len, data[4 + size :].split(b"\0"))))
    if kind in ("NFKC", "NFKD"):
        return 11.0  # U+FDFA, the longest (Unicode Standard Annex 15)
    if kind in ("NFC", "NFD", "BertNormalizer", "Lowercase"):
        return 3.0
    # A letter for each byte; a space before each piece, which may be one letter.
    return 2.0 if kind in ("ByteLevel", "Metaspace", "WordPiece") else 1.0
