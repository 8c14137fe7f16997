"""The words of tenki and their probabilities, which `vocabulary.yaml` lists: the tables that the grammar reads."""

from importlib import resources
from typing import NamedTuple

import yaml


class Verb(NamedTuple):
    """A verb in the forms that the grammar uses: 読む, 読み(ます), 読ん だ (a template)."""

    dictionary: str
    stem: str
    past: str


class Thing(NamedTuple):
    """An object: its topic, its share of that topic, its one verb, and the adjectives that describe it."""

    topic: str
    share: float
    verb: Verb
    adjectives: dict[str, float]


_TEXT = resources.files(__package__).joinpath("vocabulary.yaml").read_text(encoding="utf-8")
_TABLES = yaml.load(_TEXT, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
_VERBS = {name: Verb(*forms) for name, forms in _TABLES["verbs"].items()}
STRIVE = _VERBS["strive"]
THINGS = {
    name: Thing(topic, share, _VERBS[verb], _TABLES["descriptions"][description])
    for name, (topic, share, verb, description) in _TABLES["things"].items()
}
# The past of each adjective, a template (甘かっ た); None for a na-adjective (静か だ, 静か だっ た).
ADJECTIVES: dict[str, str | None] = {
    "いい": "よかっ た",
    **{word: f"{word[:-1]}かっ た" for word in _TABLES["i_adjectives"].split()},
    **dict.fromkeys(_TABLES["na_adjectives"].split()),
}
WEATHERS, CLOTHES_FOR, WEATHER_LATER = (_TABLES[name] for name in ("weathers", "clothes_for", "weather_later"))
VERY, VERY_WEATHER, LINKS, SUBJECTS = (_TABLES[name] for name in ("very", "very_weather", "links", "subjects"))
NEXT_TOPIC, FIRST_TOPIC = _TABLES["next_topic"], _TABLES["first_topic"]
FIRST_LIKED_TOPIC, LIKES, FEELINGS = (_TABLES[name] for name in ("first_liked_topic", "likes", "feelings"))
PLACES, COMPANIONS, TIMES = (_TABLES[name] for name in ("places", "companions", "times"))
DAYS, STRIVES, CLOSING_AT = (_TABLES[name] for name in ("days", "strives", "closing_at"))
