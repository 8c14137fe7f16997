"""What is Japanese text only: the share of kana, ruby as Aozora Bunko writes it."""

import re

import numpy as np

from tpullm.corpus.language_detection import code_points

# Swallow (Okazaki et al. 2024): a text with less hiragana is a list of nouns, one with more katakana a catalogue.
LEAST_HIRAGANA, MOST_KATAKANA, LEAST_JAPANESE = 0.2, 0.5, 0.5
HIRAGANA, KATAKANA = (0x3041, 0x309F), (0x30A0, 0x30FF)
OTHERS = ((0x3000, 0x303F), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x323AF))

# 吾輩《わがはい》, ｜其《その》, and notes of who typed it: ［＃ここから２字下げ］. Each search ends at the next mark.
READING = "《[ぁ-ゖァ-ヺーゝゞヽヾ・　 ]{1,40}》"
MARKED_RUBY = re.compile(rf"[｜|]([^《》｜|\n]{{1,40}}){READING}")
RUBY = re.compile(rf"(?<=[^\s《》]){READING}")
NOTE = re.compile(r"［＃[^［］\n]{0,200}］")


def odd_script(text: str) -> str:
    """Why a text is no Japanese prose by its script; "" if it is."""
    points = code_points(text)
    total = max(len(points) - sum(map(text.count, " \n　\t")), 1)
    hiragana, katakana = (_count(points, block) for block in (HIRAGANA, KATAKANA))
    if hiragana + katakana + sum(_count(points, block) for block in OTHERS) < LEAST_JAPANESE * total:
        return "too little Japanese"
    if katakana > MOST_KATAKANA * total:
        return "mostly katakana"
    return "too little hiragana" if hiragana < LEAST_HIRAGANA * total else ""


def without_ruby(text: str) -> str:
    """`text` without the readings over its ideographs, and without the notes of Aozora Bunko. Time is linear."""
    if "《" in text:
        text = RUBY.sub("", MARKED_RUBY.sub(r"\1", text))
    return NOTE.sub("", text) if "［＃" in text else text


def _count(points: np.ndarray, block: tuple[int, int]) -> int:
    return int(np.count_nonzero((points >= block[0]) & (points <= block[1])))
