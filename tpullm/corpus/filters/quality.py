"""The rules of quality that a source may name: each gives the reason why a text is dropped, and the text it leaves."""

from collections.abc import Callable, Sequence

from tpullm.corpus.filters import (
    address_lists,
    gopher,
    japanese_text,
    listed_words,
    quality_classifier,
    repetition,
    web_rules,
    words,
)
from tpullm.errors import UserError
from tpullm.recipe.schema import CorpusConfig

CLASSIFIER = "classifier"
# Of a longer text only the beginning is counted by words: those of a page of 64 MB would take 1 GB. Gopher's rule drops
# texts of over 100,000 words in any case.
BEGINNING = 1_000_000


def _gopher(text: str, language: str) -> str:
    found, limit = words.of(text), gopher.limits(language)
    return gopher.low_quality(text, found, limit) or gopher.repetitive(text, found, limit)


# Rules that drop texts and change none.
RULES: dict[str, Callable[[str, str], str]] = {
    "repetition": lambda text, language: "too repetitive" if repetition.is_repetitive(text) else "",
    "gopher": _gopher,
    "fineweb": web_rules.fineweb,
    "kana": lambda text, language: japanese_text.odd_script(text) if language == "ja" else "",
    "adult": lambda text, language: "adult words" if listed_words.is_adult(text) else "",
    "advertising": lambda text, language: "advertising" if listed_words.is_advertising(text) else "",
}


def judge(text: str, language: str, url: str, rules: Sequence[str], config: CorpusConfig) -> tuple[str, str]:
    """Why the first rule that `text` breaks drops it ("" if none does), and the text after the rules.

    Args:
        text: a readable text.
        language: its language; "" if it is not known.
        url: where it was published; "" if it is not known.
        rules: names of rules, in the order in which they are applied.
        config: the settings of the classifier.
    """
    for rule in rules:
        if rule == "c4":
            reason, text = web_rules.c4(text, language)
        elif rule == "address":
            reason = "listed address" if address_lists.is_listed(url) else ""
        elif rule == CLASSIFIER:
            score = quality_classifier.learned(config.classifier).score(text[:BEGINNING])
            reason = "low score" if score < config.classifier.threshold else ""
        else:
            reason = RULES[rule](text if rule == "repetition" else text[:BEGINNING], language)
        if reason:
            return reason, text
    return "", text


def check(config: CorpusConfig) -> None:
    """Refuse a rule that cannot be applied, and examples for which no source asks; `UserError` names the key."""
    given, used = config.classifier, any(CLASSIFIER in source.rules for source in config.sources)
    if used and not (given.good and given.bad):
        raise UserError("corpus.classifier: good and bad must name examples, since a source has the rule classifier")
    if given.good and not used:
        raise UserError(
            "corpus.classifier: no source has the rule classifier; add it to the rules of a source, or remove good"
        )
    if not 0 <= given.threshold <= 1:
        raise UserError(f"corpus.classifier.threshold is {given.threshold}; give a number from 0 to 1")
