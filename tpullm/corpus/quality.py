"""The rules of quality that a source may name: each gives the reason why a text is dropped, and the text it leaves."""

from collections.abc import Callable, Sequence

from tpullm.corpus import datatrove_rules, gopher, japanese_text, listed_words, repetition, words

Rule = Callable[[str, str], tuple[str, str]]


def _drops(find: Callable[[str, str], str]) -> Rule:
    """A rule that drops texts and changes none."""
    return lambda text, language: (find(text, language), text)


def _gopher(text: str, language: str) -> str:
    found, limit = words.of(text), gopher.limits(language)
    return gopher.low_quality(text, found, limit) or gopher.repetitive(text, found, limit)


RULES: dict[str, Rule] = {
    "repetition": _drops(lambda text, language: "too repetitive" if repetition.is_repetitive(text) else ""),
    "gopher": _drops(_gopher),
    "fineweb": _drops(datatrove_rules.fineweb),
    "c4": datatrove_rules.c4,
    "kana": _drops(lambda text, language: japanese_text.odd_script(text) if language == "ja" else ""),
    "adult": _drops(lambda text, language: "adult words" if listed_words.is_adult(text) else ""),
    "advertising": _drops(lambda text, language: "advertising" if listed_words.is_advertising(text) else ""),
}


def judge(text: str, language: str, rules: Sequence[str]) -> tuple[str, str]:
    """Why the first rule that `text` breaks drops it ("" if none does), and the text after the rules.

    Args:
        text: a readable text.
        language: its language; "" if it is not known.
        rules: names of `RULES`, in the order in which they are applied.
    """
    for rule in rules:
        reason, text = RULES[rule](text, language)
        if reason:
            return reason, text
    return "", text
