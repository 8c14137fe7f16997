"""What tests a model of tenki: blanks to fill and objects to swap, and the true distributions over the words there.

Without JAX, so that a notebook's pictures start quickly.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.distribution import NEVER, closing_sentences, derivation, sentences
from tpullm.corpus.tenki.grammar import MODES
from tpullm.system.errors import UserError

# Each asks for another piece of knowledge. In several of them only the text on the right decides.
BLANKS = (
    "今日はとても【?】天気ですね。",
    "今日は【?】なので、傘をさします。",
    "今日は【?】ので、セーターを着ます。",
    "昨日は暑かったので、【?】をかぶりました。",
    "私は【?】を読むのが好きです。",
    "私は【?】を飲むのが好きです。",
    "私はリンゴを【?】のが好きです。",
    "私はリンゴ【?】食べるのが好きです。",
    "昨日、リンゴを食べました。その【?】はとても甘かったです。",
    "毎日、コーヒーを飲む。そのコーヒーはとても【?】。",
    "昨日、友達と【?】で本を読んだ。",
    "明日、会社で手紙を書きます。その手紙は大切【?】。",
)


@dataclass(frozen=True)
class Swap:
    """A counterfactual: when `object` in the prefix becomes `other_object`, the next word must change too."""

    prefix: str
    object: str
    other_object: str
    other_prefix: str
    verb: str
    other_verb: str


def swaps() -> list[Swap]:
    """All ordered pairs of objects that take different verbs: 私はリンゴを(食べる) → 私は本を(読む)."""
    verbs = {name: thing.verb.dictionary for name, thing in w.THINGS.items()}
    pairs = itertools.permutations(verbs, 2)
    different = [(name, other) for name, other in pairs if verbs[name] != verbs[other]]
    return [Swap(f"私は{one}を", one, two, f"私は{two}を", verbs[one], verbs[two]) for one, two in different]


BLANK = "【?】"
_BLANK_MARK = re.compile(r"【[?？]】")


@cache
def words() -> tuple[str, ...]:
    """All words of the language, sorted, without punctuation marks."""
    closings = [s for mode in MODES.outcomes for topic in w.NEXT_TOPIC for s in closing_sentences(topic, mode).values()]
    found = {word for sentence in [*sentences(), *closings] for word in sentence.words}
    return tuple(sorted(found - {"、", "。"}))


def blank(text: str) -> dict[str, float]:
    """The exact distribution over the word at 【?】 given the text on both sides, likeliest first.

    The text is whole sentences that begin a document, and 【?】 replaces one word of them. Raises UserError if there is
    not exactly one blank, or if no word fits.
    """
    marks = list(_BLANK_MARK.finditer(text))
    if len(marks) != 1:
        raise UserError(f"blank: {len(marks)} times {BLANK} in {text!r}: write it exactly once, for one word")
    at, right = marks[0].start(), text[marks[0].end() :]
    found = {}
    for word in words():
        total, parsed, _ = derivation(text[:at] + word + right)
        tokens = [token for sentence in parsed for token in sentence.words]
        # The word may be a part of another one, or of two.
        if total > NEVER and (at, word) in zip(itertools.accumulate(map(len, tokens), initial=0), tokens, strict=False):
            found[word] = total
    if not found:
        raise UserError(f"blank: no word of tenki fits {text!r}: use whole sentences of its language, 。 included")
    weights = {word: math.exp(total - max(found.values())) for word, total in found.items()}
    total = math.fsum(weights.values())
    return {word: weight / total for word, weight in sorted(weights.items(), key=lambda item: -item[1])}


def total_variation(model: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Half the sum of the absolute differences over all words of either: 0 is equal, 1 has no word in common."""
    return sum(abs(model.get(word, 0.0) - truth.get(word, 0.0)) for word in {**truth, **model}) / 2
