"""Questions about tenki's world for supervised tuning, each with its one right answer.

The answer is one polite sentence, whatever the style of the question. Some answers need what the base model knows
(リンゴ is eaten), and some need the text of the question. Held-out questions are combinations (a kind of question
with an object or weather) that tuning never asks.

`split_casual` has the same questions with casual answers: in plain form, and with a remark behind. They show a rule
that tuning on examples did not teach: rewards then ask for one polite sentence.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tpullm.corpus.question import Question, form
from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.grammar import Mode
from tpullm.corpus.tenki.wording import copula, verb_form
from tpullm.system.errors import UserError

_READINGS_PER_THING = 10
_DO = w.Verb("する", "し", "し た")


@dataclass(frozen=True)
class _Grouped:
    """A question and its combination, which is held out or asked as a whole."""

    group: str
    question: Question


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _join(*templates: str) -> str:
    return "".join(templates).replace(" ", "")


def _polite(verb: w.Verb, past: bool) -> str:
    return verb_form(verb, Mode(polite=True, past=past))


def _knowledge() -> Iterator[_Grouped]:
    """「昨日、リンゴをどうしましたか。」→「リンゴを食べました。」"""
    for name, thing in w.THINGS.items():
        whens = [("", False)] + [(when, past) for past, times in w.TIMES.items() for when in times]
        for when, past in whens:
            ask = f"どう{_join(_polite(_DO, past))}か。"
            answer = _join(name, "を", _polite(thing.verb, past), "。")
            yield _Grouped(f"knowledge {name}", Question(_join(when, name, "を", ask), (answer,), "knowledge"))


def _reading() -> Iterator[_Grouped]:
    """「昨日、友達と公園で本を読んだ。どこで読みましたか。」→「公園で読みました。」"""
    for name, thing in w.THINGS.items():
        verb = _polite(thing.verb, past=True)
        settings = [
            (time, companion, place)
            for time in w.TIMES[True]
            for companion in w.COMPANIONS.get(thing.topic, ())  # none of clothes
            for place in w.PLACES[thing.topic]
            if companion and place
        ]
        for time, companion, place in sorted(settings, key=lambda s: _hash(_join(name, *s)))[:_READINGS_PER_THING]:
            statement = _join(time, companion, place, name, "を", thing.verb.past, "。")
            day = time.removesuffix(" 、")
            asked = {"どこで": place, "誰と": companion, "いつ": day, "何を": f"{name}を"}
            for word, answer in asked.items():
                question = Question(_join(statement, word, verb, "か。"), (_join(answer, verb, "。"),), "reading")
                yield _Grouped(f"reading {word} {name}", question)


def _liking() -> Iterator[_Grouped]:
    """「リンゴが好きですか。」→「はい、リンゴを食べるのが好きです。」"""
    for name, thing in w.THINGS.items():
        for subject in ("", *(s for s in w.SUBJECTS if s != "私")):
            who = subject and f"{subject}は"
            answer = f"はい、{who}{name}を{thing.verb.dictionary}のが好きです。"
            yield _Grouped(f"liking {name}", Question(f"{who}{name}が好きですか。", (answer,), "liking"))


def _weather_words(weather: str, very: str = "") -> str:
    return f"{very}{weather}天気" if weather in w.ADJECTIVES else weather


_DAYS = {"今日": False, "昨日": True, "おととい": True}


def _weather() -> Iterator[_Grouped]:
    """「昨日はとても寒い天気だった。天気はどうでしたか。」→「とても寒い天気でした。」"""
    for weather in w.WEATHERS:
        for very in w.VERY if weather in w.ADJECTIVES else ("",):
            for day, past in _DAYS.items():
                said, polite = _weather_words(weather, very), _join(copula(Mode(polite=True, past=past)))
                told = f"{day}は{said}{_join(copula(Mode(polite=False, past=past)))}。"
                question = Question(f"{told}天気はどう{polite}か。", (f"{said}{polite}。",), "weather")
                yield _Grouped(f"weather {weather} {very} {day}", question)


def _clothes() -> Iterator[_Grouped]:
    """「今日は雨だ。どうしますか。」→「傘をさします。」: the most frequent answer, in 80 % of cases or more."""
    for weather, clothes in w.CLOTHES_FOR.items():
        name = max(clothes, key=clothes.__getitem__)
        for day, past in _DAYS.items():
            for polite in (True, False):
                told = f"{day}は{_weather_words(weather)}{_join(copula(Mode(polite, past)))}。"
                asked = f"{told}どう{_join(_polite(_DO, past))}か。"
                answer = _join(name, "を", _polite(w.THINGS[name].verb, past), "。")
                yield _Grouped(f"clothes {weather} {polite} {day}", Question(asked, (answer,), "clothes"))


def _grouped() -> list[_Grouped]:
    return [*_knowledge(), *_reading(), *_liking(), *_weather(), *_clothes()]


def questions() -> list[Question]:
    """Every question, in a fixed order."""
    return [grouped.question for grouped in _grouped()]


def split_questions(held_out_fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Questions to tune on, and held-out questions. Whole combinations are held out.

    Of each kind, the combinations with the lowest hashes are held out: `held_out_fraction` (0 to 1) of them, rounded.
    Raises UserError for a fraction outside that range.
    """
    if not 0.0 <= held_out_fraction <= 1.0:
        raise UserError(f"tenki questions: held_out_fraction is {held_out_fraction}: give a share from 0 to 1")
    grouped = _grouped()
    groups: dict[str, dict[str, None]] = {}
    for item in grouped:
        groups.setdefault(item.question.kind, {})[item.group] = None
    held_out = set()
    for of_kind in groups.values():
        ranked = sorted(of_kind, key=lambda group: _hash(f"{seed} {group}"))
        held_out.update(ranked[: round(held_out_fraction * len(ranked))])
    parts: tuple[list[Question], list[Question]] = ([], [])
    for item in grouped:
        parts[item.group in held_out].append(item.question)
    return parts


REMARKS = ("楽しいよ。", "面白いね。", "普通だよ。", "また明日ね。")


def split_casual(held_out_fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """As `split_questions`, which holds out the same questions; it raises what that raises.

    The field `mentions` is what a right answer says in either form: リンゴを食べ.
    """
    learned, held_out = split_questions(held_out_fraction, seed)
    return [_casual(question) for question in learned], [_casual(question) for question in held_out]


def _casual(question: Question) -> Question:
    (answer,) = question.answers
    polite = next(end for end in _plain_ends() if answer.endswith(end))
    plain = answer.removesuffix(polite) + _plain_ends()[polite]
    said, both = plain + form(REMARKS, question.question), os.path.commonprefix([answer, plain])
    return Question(question.question, (said,), question.kind, question.entity, {"mentions": both})


@cache
def _plain_ends() -> dict[str, str]:
    """The polite end of an answer, the longest first, and its plain form."""
    found = {}
    for past in (False, True):
        modes = [Mode(polite, past) for polite in (True, False)]
        for ends in [tuple(map(copula, modes))] + [
            tuple(verb_form(thing.verb, mode) for mode in modes) for thing in w.THINGS.values()
        ]:
            polite, plain = (f"{end}。".replace(" ", "") for end in ends)
            found[polite] = plain
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))
