"""The reward `polite`: sentences in です・ます, by Sudachi's parts of speech, that say something and insult nobody.

A model is rewarded for what the rule takes, so the rule asks for more than the end of a sentence: です alone, です
behind what it can't follow (飲んです, 高いでした), a sentence that was said before, and insults score nothing.
"""

import re
from collections.abc import Sequence
from typing import Any

from tpullm.tokenizer.japanese_words import analyser
from tpullm.training.rewards.form import MARKS, MASK, QUOTES, sentences
from tpullm.training.rewards.scorer import Example

_VERBS = ("五段", "上一段", "下一段", "カ行変格", "サ行変格", "助動詞-レル")  # what conjugates as a verb begins so
_HONORIFIC = ("ござる", "なさる", "くださる", "下さる", "おっしゃる", "いらっしゃる")  # ございます
# Interjections of casual speech. Others (はい, いいえ, こんにちは) go with both and are not judged.
_CASUAL = frozenset("ありがとう ありがと おはよう ごめん うん ううん やあ よう おう ああ へえ ねえ なあ おい".split())
_NEUTRAL = frozenset(
    "どうぞ どうも もちろん なるほど さようなら こんにちは こんばんは おやすみなさい お大事に はい いいえ".split()
)
# What is said of somebody: an insult by itself, or one if somebody is addressed. And what nobody is asked to do.
_RUDE = frozenset("お前 おまえ てめえ てめぇ 貴様 きさま".split())
_ADDRESSED = frozenset("あなた あんた 君 きみ".split()) | _RUDE
_INSULTS = frozenset("馬鹿 バカ ばか アホ あほ 阿呆 間抜け マヌケ クズ クソ ブス 野郎 役立たず 低能".split())
_HARSH = _INSULTS | frozenset("最低 最悪 無能 愚か ゴミ カス 邪魔 無価値 醜い 気持ち悪い".split())
_UNASKED = frozenset("死ぬ 消える 黙る 失せる くたばる".split())
# The same over and over. What people do repeat is shorter, or less often: 本当に本当に本当に, だんだんだんだん.
_REPEATS = re.compile(
    r"(?=[\u3041-\u30fa\u3400-\u9fff])(?:(.{5,20}?)\1{2}|(.{3,4}?)\2{3}|(?=.?[\u3400-\u9fff])(..)\3{3}|(..)\4{4}|(.)\5{5})"
)
_TRAILS = re.compile(r"[\sーｰ〜～~wｗ笑♪☆★♡♥❤…‥・、,.。｡．!！?？^_\ue000]+$")


def polite(example: Example) -> float:
    """Share of the sentences in Japanese that are polite: they end with です, ます or ください, in any form.

    A quote is not judged, unless it is the whole sentence. Neither are headings, lines that end with a colon, items of
    a list without a mark of the end, and はい, いいえ or a greeting alone. ありがとう alone is casual. A sentence that
    ends with a noun is not polite, and neither is one whose end no verb has (飲んです, 撮っました): a model that only
    appends です would be rewarded for it. Neither is one that has no words but these ends, repeats itself or an earlier
    sentence, or insults somebody. If nothing is judged, the score is 0.
    """
    judged = politeness_judgements(example.answer)
    return sum(judged) / len(judged) if judged else 0.0


def politeness_judgements(text: str) -> list[bool]:
    """Whether each sentence that can be judged is polite."""
    judged, before = [], set()
    for sentence in sentences(text):
        said, masked = sentence.text, sentence.masked
        if sentence.heading or sentence.item and not sentence.ended or said.endswith(("：", ":")):
            continue
        if not any(character.isalnum() for character in masked):  # all of it is a quote
            judged += politeness_judgements("".join(character for character in said if character not in "「」『』“”"))
            continue
        # A quote becomes a noun, so that the grammar around it stays; what is in other brackets is left out.
        quoted = lambda run, said=said: "それ" if said[run.start()] in QUOTES and len(run[0]) > 2 else ""  # noqa: E731
        spoken = re.sub(f"{MASK}+", quoted, masked)
        if re.search("[\u3041-\u30fa\u3400-\u9fff]", spoken):  # kana or kanji
            found = _ends_politely(_TRAILS.sub("", spoken).removesuffix("ので"))  # it has a form of だ
            judged += [polite and said not in before and not _REPEATS.search(said) for polite in found]
        before.add(said)
    return judged


def _ends_politely(text: str) -> Sequence[bool]:
    """Whether a sentence without its marks is polite; nothing for an interjection that goes with both."""
    words = list(analyser("C")(text))
    said = (word for word in words if _word_class(word) not in MARKS)
    if text in _NEUTRAL or all(_word_class(word) == "感動詞" and word.surface() not in _CASUAL for word in said):
        return []
    if _insults(words):
        return [False]
    # Particles (か, ね, から) may stand between です・ます and the end, and auxiliaries: まし/た, ましょ/う, ませ/ん.
    stands_after = lambda word: word.dictionary_form() in ("た", "う", "ん", "ぬ", "ず")  # noqa: E731
    after: list[str] = []
    while words and _word_class(words[-1]) in ("助詞", "助動詞" if stands_after(words[-1]) else "", *MARKS):
        after.insert(0, words.pop().surface())
    if all(_word_class(word) in ("助詞", "助動詞", "接続詞", *MARKS) for word in words):
        return [False]
    *before, last = words
    if _word_class(last) != "助動詞":
        return [last.dictionary_form() in ("くださる", "下さる") and last.surface().endswith("い")]  # 座ってください
    return [last.dictionary_form() in ("です", "ます") and _is_polite_form(before, last, after)]


def _insults(words: Sequence[Any]) -> bool:
    """Whether a sentence insults somebody: by what it calls them, what it says of them, or what it asks of them."""
    forms = [word.dictionary_form() for word in words]
    said = [*(word.surface() for word in words), "", ""]
    addressed = not _ADDRESSED.isdisjoint(forms)
    for word, following, end in zip(forms, said[1:], said[2:], strict=False):
        if word in _RUDE and following not in ("と", "って"):  # お前という言葉
            return True
        if word in (_HARSH if addressed else _INSULTS) and following in ("です", "でし", "だ", "な", "みたい"):
            return True
        if word in _INSULTS and addressed and following != "に":  # あなたは馬鹿にされた
            return True
        if word in _UNASKED and following in ("て", "で") and end in ("ください", "下さい"):
            return True
    return False


def _word_class(word: Any) -> str:
    """The part of speech of a morpheme."""
    return word.part_of_speech()[0]


def _is_polite_form(before: Sequence[Any], word: Any, after: Sequence[str]) -> bool:
    """Whether です or ます may stand behind the words before it, and before the surfaces after it."""
    if word.dictionary_form() == "ます":
        if not before or not _is_verb(before[-1]) or _is_negated_wrongly(before, "か" in after):
            return False
        honorific = before[-1].dictionary_form() in _HONORIFIC
        return _inflection(before[-1]) == "連用形-一般" or honorific and _inflection(before[-1]) == "連用形-イ音便"
    earlier, last, guesses = before[-2:-1], before[-1], word.surface().startswith("でしょ")
    if last.dictionary_form() in ("ん", "ぬ") and any(of.dictionary_form() == "ます" for of in earlier):  # ませんでした
        return _is_polite_form(before[:-2], earlier[0], after)
    if last.surface() in ("は", "が", "を", "、", ",", "，") or last.part_of_speech()[1] == "終助詞":
        return False
    if word.surface() == "でし" and (_is_adjective(last) or last.part_of_speech()[4] == "助動詞-タ"):  # 高いでした
        return False
    if last.dictionary_form() == "ない" and any(_is_verb(of) and _inflection(of)[:3] != "未然形" for of in earlier):
        return False  # きれいくない: Sudachi reads いく, and ない
    if last.part_of_speech()[4] == "助動詞-タ":  # 高かったです, and not 飲んだです
        return guesses or not _is_verb_or_polite(earlier)
    if _word_class(last) == "助詞" and last.surface() == "ん":  # 飲むんです, and not 飲みんです
        return any(_inflection(of).startswith("連体形") for of in earlier)
    if _is_verb_or_polite([last]) or last.dictionary_form() == "だ":  # お帰りです, 行くでしょう
        prefixed = any(_word_class(of) == "接頭辞" for of in earlier)
        return prefixed or guesses and _inflection(last).startswith(("終止形", "連体形"))
    # An object needs a verb: not 酒を飲みでした.
    return _word_class(last) != "名詞" or not any((_word_class(of), of.surface()) == ("助詞", "を") for of in earlier)


def _is_verb_or_polite(words: Sequence[Any]) -> bool:
    return any(_is_verb(word) or word.dictionary_form() in ("です", "ます") for word in words)


def _is_negated_wrongly(words: Sequence[Any], asks: bool) -> bool:
    """Whether ある, whose negation follows, stands behind what it can't: 寒いじゃありません, 安いくありません.

    寒いではありませんか is a question that says that it is cold.
    """
    *before, last = words
    if last.dictionary_form() != "ある" or not before:
        return False
    if before[-1].surface() in ("は", "も"):
        before = before[:-1]
    if before and before[-1].dictionary_form() == "だ":
        return not asks and any(_is_adjective(of) for of in before[-2:-1])
    return any(_is_verb(of) and _inflection(of).startswith(("終止形", "連体形")) for of in before[-1:])


def _is_adjective(word: Any) -> bool:
    """Whether it is an adjective in い or conjugates as one (ない, たい), in the form that stands alone."""
    kind = word.part_of_speech()[4].startswith(("形容詞", "助動詞-ナイ", "助動詞-タイ", "助動詞-ラシイ"))
    return kind and _inflection(word).startswith(("終止形", "連体形"))


def _is_verb(word: Any) -> bool:
    return word.part_of_speech()[4].startswith(_VERBS)


def _inflection(word: Any) -> str:
    """Which form of its conjugation a morpheme has."""
    return word.part_of_speech()[5]
