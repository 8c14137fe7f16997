"""The reward `polite`: です・ます throughout."""

import re
from collections.abc import Sequence
from typing import Any

from tpullm.rewards.scorer import Example
from tpullm.rewards.sentences import MASK, QUOTES, Sentence, sentences
from tpullm.tokenizer.japanese_words import analyser

# Auxiliaries between です・ます and the end: まし/た, ましょ/う, ませ/ん. Particles (か, ね, から) may stand there too.
_AFTER = ("た", "う", "ん", "ぬ", "ず")
_REQUESTS = ("くださる", "下さる")  # 座ってください
_MARKS = ("補助記号", "空白", "記号")
# Interjections of casual speech. Others (はい, いいえ, こんにちは) go with both and are not judged.
_CASUAL = frozenset("ありがとう ありがと おはよう ごめん うん ううん やあ よう おう ああ へえ ねえ なあ おい".split())
_NEUTRAL = frozenset(
    "どうぞ どうも もちろん なるほど さようなら こんにちは こんばんは おやすみなさい お大事に はい いいえ".split()
)
_TRAILS = re.compile(r"[\sーｰ〜～~wｗ笑♪☆★♡♥❤…‥・、,.。｡．!！?？^_\ue000]+$")


def polite(example: Example) -> float:
    """Share of the sentences in Japanese that end with です, ます or ください, in any form. 1 is: throughout.

    A quote is not judged, unless it is the whole sentence. Neither are headings, lines that end with a colon, items of
    a list without a mark of the end, and はい, いいえ or a greeting alone. ありがとう alone is casual. A sentence that
    ends with a noun is not polite. If nothing is judged, the score is 0.
    """
    judged = judgements(example.answer)
    return sum(judged) / len(judged) if judged else 0.0


def judgements(text: str) -> list[bool]:
    """Whether each sentence that can be judged is polite."""
    found = []
    for sentence in sentences(text):
        found += _judged(sentence)
    return found


def _judged(sentence: Sentence) -> Sequence[bool]:
    if sentence.heading or sentence.item and not sentence.ended or sentence.text.endswith(("：", ":")):
        return []
    if not any(character.isalnum() for character in sentence.masked):  # all of it is a quote
        inside = "".join(character for character in sentence.text if character not in "「」『』“”")
        return judgements(inside)
    spoken = _without_brackets(sentence)
    if not _is_japanese(spoken):
        return []
    return _ends_politely(_TRAILS.sub("", spoken).removesuffix("ので"))  # it has a form of だ


def _without_brackets(sentence: Sentence) -> str:
    """A quote becomes a noun, so that the grammar around it stays; what is in other brackets is left out."""
    text, begin = "", 0
    for found in re.finditer(f"{MASK}+", sentence.masked):
        quoted = sentence.text[found.start()] in QUOTES
        text += sentence.masked[begin : found.start()] + ("それ" if quoted else "")
        begin = found.end()
    return text + sentence.masked[begin:]


def _is_japanese(text: str) -> bool:
    """Whether there is a kana or a kanji."""
    return re.search("[\u3041-\u30fa\u3400-\u9fff]", text) is not None


def _ends_politely(text: str) -> Sequence[bool]:
    """Whether a sentence without its marks is polite; nothing for an interjection that goes with both."""
    words = list(analyser("C")(text))
    said = (word for word in words if _kind(word) not in _MARKS)
    if text in _NEUTRAL or all(_kind(word) == "感動詞" and word.surface() not in _CASUAL for word in said):
        return []
    while words and _may_follow(words[-1]):
        words.pop()
    return [bool(words) and _is_polite(words[-1])]


def _kind(word: Any) -> str:
    """The part of speech of a morpheme."""
    return word.part_of_speech()[0]


def _may_follow(word: Any) -> bool:
    kind = _kind(word)
    return kind == "助詞" or kind in _MARKS or kind == "助動詞" and word.dictionary_form() in _AFTER


def _is_polite(word: Any) -> bool:
    if _kind(word) == "助動詞":
        return word.dictionary_form() in ("です", "ます")
    return word.dictionary_form() in _REQUESTS and word.surface().endswith("い")
