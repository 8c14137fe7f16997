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
_VERBS = ("五段", "上一段", "下一段", "カ行変格", "サ行変格", "助動詞-レル")  # what conjugates as a verb begins so
_HONORIFIC = ("ござる", "なさる", "くださる", "下さる", "おっしゃる", "いらっしゃる")  # ございます
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
    ends with a noun is not polite, and neither is one whose end no verb has (飲んです, 撮っました): a model that only
    appends です would be rewarded for it. If nothing is judged, the score is 0.
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
    return [bool(words) and _is_polite(words[-1]) and _is_a_form(words[:-1], words[-1])]


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


def _is_a_form(before: Sequence[Any], word: Any) -> bool:
    """Whether です or ます may stand behind the words before it."""
    if _kind(word) != "助動詞":
        return True
    if word.dictionary_form() == "ます":
        return bool(before) and _is_verb(before[-1]) and _is_before_masu(before[-1])
    if not before:
        return True
    last = before[-1]
    if _conjugated(last) == "助動詞-タ":  # 高かったです, and not 飲んだです
        return word.surface().startswith("でしょ") or not _is_verb_or_polite(before[-2:-1])
    if _kind(last) == "助詞" and last.surface() == "ん":  # 飲むんです, and not 飲みんです
        return any(_form(earlier).startswith("連体形") for earlier in before[-2:-1])
    if _is_verb_or_polite([last]) or last.dictionary_form() == "だ":
        if before[-2:-1] and _kind(before[-2]) == "接頭辞":  # お帰りです
            return True
        return word.surface().startswith("でしょ") and _form(last).startswith(("終止形", "連体形"))  # 行くでしょう
    return _kind(last) != "名詞" or not any(_is_object(word) for word in before[-2:-1])  # 酒を飲みでした


def _is_object(word: Any) -> bool:
    """Whether it is the を after an object, which needs a verb."""
    return _kind(word) == "助詞" and word.surface() == "を"


def _is_before_masu(verb: Any) -> bool:
    forms = ("連用形-一般", "連用形-イ音便") if verb.dictionary_form() in _HONORIFIC else ("連用形-一般",)
    return _form(verb) in forms


def _is_verb_or_polite(words: Sequence[Any]) -> bool:
    return any(_is_verb(word) or word.dictionary_form() in ("です", "ます") for word in words)


def _is_verb(word: Any) -> bool:
    return _conjugated(word).startswith(_VERBS)


def _conjugated(word: Any) -> str:
    """How a morpheme is conjugated."""
    return word.part_of_speech()[4]


def _form(word: Any) -> str:
    """Which form of its conjugation a morpheme has."""
    return word.part_of_speech()[5]
