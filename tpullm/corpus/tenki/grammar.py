"""Which sentence follows which in a tenki document.

A sentence is drawn in two steps. The first is its outline, given the document so far: a kind of sentence and its focus,
which is a thing or a weather. The second is its wording (`wording.py`), given the outline and the mode of the document
(polite or plain, past or not). Both are finite distributions, and the text of a sentence determines its outline, so
probabilities multiply and entropies add (chain rule).
"""

import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from tpullm.corpus.tenki import vocabulary as w

Outcome = TypeVar("Outcome", bound=Hashable)


class Kind(Enum):
    """The kinds of sentence, each with an example."""

    WEATHER = "今日はいい天気ですね。"
    WEATHER_THEN = "その日は雨でした。"
    BECAUSE = "今日は雨なので、傘をさします。"
    SO = "だから、傘をさします。"
    ACTION_DATED = "昨日、友達と公園で本を読みました。"
    ACTION = "友達と公園で本を読みました。"
    ACTION_LINKED = "それから、友達と公園で本を読みました。"
    LIKING = "私はリンゴを食べるのが好きです。"
    FEELING = "本を読むのは楽しかったです。"
    COMMENT_THAT = "その本はとても面白いです。"
    COMMENT = "本はとても面白いです。"
    CLOSING = "楽しい一日でした。"


class Mode(NamedTuple):
    """The style and the tense of a whole document."""

    polite: bool
    past: bool


class Outline(NamedTuple):
    """What a sentence says: its kind, and the thing, weather or (for the closing sentence) topic that it is about."""

    kind: Kind
    focus: str


class Context(NamedTuple):
    """All that the next sentence of a document depends on. The text so far determines it.

    `last` is None before the first sentence. `sentences` counts the sentences so far.
    """

    mode: Mode
    sentences: int = 0
    weather_told: bool = False
    last: Outline | None = None


@dataclass(frozen=True)
class Distribution(Generic[Outcome]):
    """A finite distribution. Sampling is one binary search."""

    probability: Mapping[Outcome, float]

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(self.probability)

    @cached_property
    def _cumulative(self) -> list[float]:
        return list(accumulate(self.probability.values()))

    def pick(self, uniform: float) -> Outcome:
        """The outcome at `uniform` in [0, 1) of the cumulative distribution."""
        place = bisect(self._cumulative, uniform * self._cumulative[-1])
        return self.outcomes[min(place, len(self.outcomes) - 1)]

    @cached_property
    def entropy(self) -> float:
        """In nats."""
        return -math.fsum(p * math.log(p) for p in self.probability.values())


_MODES = {(True, False): 0.32, (True, True): 0.28, (False, False): 0.18, (False, True): 0.22}
MODES = Distribution({Mode(*mode): probability for mode, probability in _MODES.items()})
ACTIONS = (Kind.ACTION_DATED, Kind.ACTION, Kind.ACTION_LINKED)

_FIRST_KIND = {
    True: {Kind.WEATHER: 0.25, Kind.BECAUSE: 0.15, Kind.ACTION_DATED: 0.60},
    False: {Kind.WEATHER: 0.38, Kind.BECAUSE: 0.12, Kind.ACTION_DATED: 0.27, Kind.LIKING: 0.23},
}
# The next sentence about the same thing. A new thing gets the rest of the probability.
_FOLLOW_UP = {
    True: {kind: {Kind.COMMENT_THAT: 0.45, Kind.FEELING: 0.15} for kind in (*ACTIONS, Kind.BECAUSE, Kind.SO)}
    | {Kind.COMMENT_THAT: {Kind.FEELING: 0.2}},
    False: {kind: {Kind.COMMENT_THAT: 0.45, Kind.LIKING: 0.15} for kind in (*ACTIONS, Kind.BECAUSE, Kind.SO)}
    | {Kind.LIKING: {Kind.COMMENT: 0.4}},
}
_NEW_KIND = {
    True: {Kind.ACTION_LINKED: 0.7, Kind.ACTION: 0.3},
    False: {Kind.ACTION_LINKED: 0.55, Kind.ACTION: 0.2, Kind.LIKING: 0.25},
}
_NEW_KIND_AFTER_WEATHER = {True: {Kind.ACTION: 1.0}, False: {Kind.ACTION: 0.75, Kind.LIKING: 0.25}}
_CLOTHES_AFTER_WEATHER = 0.45


def topic_of(focus: str) -> str:
    """The topic of a thing. Every other focus is a weather."""
    return w.THINGS[focus].topic if focus in w.THINGS else "weather"


@cache
def _things_of_topic(topic: str, without: str | None = None) -> dict[str, float]:
    shares = {name: thing.share for name, thing in w.THINGS.items() if thing.topic == topic and name != without}
    total = math.fsum(shares.values())
    return {name: share / total for name, share in shares.items()}


def outline(context: Context) -> Distribution[Outline]:
    """The distribution of the next outline, given that the next sentence does not close the document."""
    return _next_outline(context.mode.past, context.weather_told, context.last)


def _first_outlines(past: bool) -> dict[Outline, float]:
    result = {}
    for kind, probability in _FIRST_KIND[past].items():
        if kind is Kind.WEATHER:
            foci = w.WEATHERS
        elif kind is Kind.BECAUSE:
            foci = clothes()
        else:
            topics = w.FIRST_LIKED_TOPIC if kind is Kind.LIKING else w.FIRST_TOPIC
            foci = {name: p * share for topic, p in topics.items() for name, share in _things_of_topic(topic).items()}
        result |= {Outline(kind, focus): probability * share for focus, share in foci.items()}
    return result


@cache
def _next_outline(past: bool, weather_told: bool, last: Outline | None) -> Distribution[Outline]:
    if last is None:
        return Distribution(_first_outlines(past))
    topic, result = topic_of(last.focus), {}
    if topic == "weather":
        for name, share in w.CLOTHES_FOR[last.focus].items():
            result[Outline(Kind.SO, name)] = _CLOTHES_AFTER_WEATHER * share
    for kind, probability in _FOLLOW_UP[past].get(last.kind, {}).items():
        result[Outline(kind, last.focus)] = probability
    left = 1.0 - math.fsum(result.values())
    if not weather_told:
        kind = Kind.WEATHER_THEN if past else Kind.WEATHER
        result |= {Outline(kind, name): left * w.WEATHER_LATER * p for name, p in w.WEATHERS.items()}
        left *= 1.0 - w.WEATHER_LATER
    kinds = (_NEW_KIND_AFTER_WEATHER if topic == "weather" else _NEW_KIND)[past]
    for next_topic, probability in w.NEXT_TOPIC[topic].items():
        for name, share in _things_of_topic(next_topic, without=last.focus).items():
            for kind, kind_probability in kinds.items():
                result[Outline(kind, name)] = left * probability * share * kind_probability
    return Distribution(result)


def advance(context: Context, said: Outline) -> Context:
    """The context after one more sentence."""
    told = context.weather_told or said.kind in (Kind.WEATHER, Kind.WEATHER_THEN, Kind.BECAUSE)
    return Context(context.mode, context.sentences + 1, told, said)


def closing_probability(context: Context) -> float:
    """The probability that the next sentence closes the document. It is then about the last topic."""
    return w.CLOSING_AT[context.sentences + 1]


def closing(context: Context) -> Outline:
    """The outline of the closing sentence, which the last topic decides."""
    assert context.last is not None, "a document does not start with its closing"
    return Outline(Kind.CLOSING, topic_of(context.last.focus))


@cache
def clothes() -> dict[str, float]:
    """The probability of each piece of clothing as the answer to the weather, over all weathers."""
    result: dict[str, float] = defaultdict(float)
    for weather, probability in w.WEATHERS.items():
        for name, share in w.CLOTHES_FOR[weather].items():
            result[name] += probability * share
    return dict(result)
