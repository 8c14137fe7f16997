"""The wording of a tenki sentence, given its outline and the mode of its document."""

from functools import cache

from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.grammar import Distribution, Kind, Mode, Outline, clothes

Part = str | dict[str, float]


def _word_sequences(*parts: Part) -> dict[tuple[str, ...], float]:
    """All sequences of words that the parts can make. A part is a fixed template or a choice of templates."""
    result: dict[tuple[str, ...], float] = {(): 1.0}
    for part in parts:
        choices = {part: 1.0} if isinstance(part, str) else part
        result = {
            words + tuple(template.split()): probability * share
            for words, probability in result.items()
            for template, share in choices.items()
        }
    return result


def verb_form(verb: w.Verb, mode: Mode) -> str:
    """食べ ます, 食べ まし た, 食べる, 食べ た."""
    if mode.polite:
        return f"{verb.stem} まし た" if mode.past else f"{verb.stem} ます"
    return verb.past if mode.past else verb.dictionary


def copula(mode: Mode) -> str:
    """です, でし た, だ, だっ た."""
    if mode.polite:
        return "でし た" if mode.past else "です"
    return "だっ た" if mode.past else "だ"


def adjective_form(word: str, mode: Mode) -> str:
    """寒い です, 寒かっ た です, 寒い, 寒かっ た; 静か です, 静か でし た, 静か だ, 静か だっ た."""
    past = w.ADJECTIVES[word]
    if past is None:
        return f"{word} {copula(mode)}"
    form = past if mode.past else word
    return f"{form} です" if mode.polite else form


def _adjective_forms(choices: dict[str, float], mode: Mode) -> dict[str, float]:
    return {adjective_form(word, mode): probability for word, probability in choices.items()}


def _weather_as_reason(weather: str, past: bool) -> str:
    """The weather as a reason: 寒い ので, 寒かっ た ので, 天気 が いい ので, 雨 な ので, 雨 だっ た ので."""
    if weather in w.ADJECTIVES:
        form = adjective_form(weather, Mode(polite=False, past=past))
        return f"天気 が {form} ので" if weather in ("いい", "悪い", "ひどい") else f"{form} ので"
    return f"{weather} だっ た ので" if past else f"{weather} な ので"


def _weather_wordings(weather: str, mode: Mode, day: str) -> dict[tuple[str, ...], float]:
    """「今日はとても寒い天気ですね。」 A remark on today ends in ね; a report of the past does not."""
    end = f"{copula(mode)} 。" if mode.past else f"{copula(mode)} ね 。"
    parts = (w.VERY_WEATHER, weather, "天気") if weather in w.ADJECTIVES else (weather,)
    return _word_sequences(f"{day} は", *parts, end)


def _reason_wordings(thing: str, mode: Mode) -> dict[tuple[str, ...], float]:
    joint = {weather: p * w.CLOTHES_FOR[weather].get(thing, 0.0) for weather, p in w.WEATHERS.items()}
    reasons = {_weather_as_reason(weather, mode.past): p / clothes()[thing] for weather, p in joint.items() if p}
    day = "昨日 は" if mode.past else "今日 は"
    return _word_sequences(day, reasons, "、", thing, "を", verb_form(w.THINGS[thing].verb, mode), "。")


def _action_wordings(opening: Part, thing: str, mode: Mode) -> dict[tuple[str, ...], float]:
    topic, verb = w.THINGS[thing].topic, verb_form(w.THINGS[thing].verb, mode)
    return _word_sequences(opening, w.COMPANIONS[topic], w.PLACES[topic], f"{thing} を {verb} 。")


def _comment_wordings(opening: str, thing: str, mode: Mode) -> dict[tuple[str, ...], float]:
    return _word_sequences(opening, f"{thing} は", w.VERY, _adjective_forms(w.THINGS[thing].adjectives, mode), "。")


def _liking_wordings(thing: str, mode: Mode) -> dict[tuple[str, ...], float]:
    verb = w.THINGS[thing].verb.dictionary
    return _word_sequences(w.SUBJECTS, f"は {thing} を {verb} の が", _adjective_forms(w.LIKES, mode), "。")


def _feeling_wordings(thing: str, mode: Mode) -> dict[tuple[str, ...], float]:
    verb, feelings = w.THINGS[thing].verb.dictionary, w.FEELINGS[w.THINGS[thing].topic]
    return _word_sequences(f"{thing} を {verb} の は", _adjective_forms(feelings, mode), "。")


def _closing_wordings(topic: str, mode: Mode) -> dict[tuple[str, ...], float]:
    if mode.past:
        return _word_sequences(w.VERY, w.DAYS[True][topic], f"一日 {copula(mode)} 。")
    strive, days = w.STRIVES[topic], _adjective_forms(w.DAYS[False][topic], mode)
    return _word_sequences({f"明日 も {verb_form(w.STRIVE, mode)} 。": strive}) | {
        words: (1.0 - strive) * p for words, p in _word_sequences("毎日 が", w.VERY, days, "。").items()
    }


@cache
def wording(said: Outline, mode: Mode) -> Distribution[tuple[str, ...]]:
    """The distribution over the words of a sentence, punctuation marks included."""
    kind, focus = said
    makers = {
        Kind.WEATHER: lambda: _weather_wordings(focus, mode, "昨日" if mode.past else "今日"),
        Kind.WEATHER_THEN: lambda: _weather_wordings(focus, mode, "その 日"),
        Kind.BECAUSE: lambda: _reason_wordings(focus, mode),
        Kind.SO: lambda: _word_sequences("だから 、", f"{focus} を {verb_form(w.THINGS[focus].verb, mode)} 。"),
        Kind.ACTION_DATED: lambda: _action_wordings(w.TIMES[mode.past], focus, mode),
        Kind.ACTION: lambda: _action_wordings("", focus, mode),
        Kind.ACTION_LINKED: lambda: _action_wordings(w.LINKS, focus, mode),
        Kind.LIKING: lambda: _liking_wordings(focus, mode),
        Kind.FEELING: lambda: _feeling_wordings(focus, mode),
        Kind.COMMENT_THAT: lambda: _comment_wordings("その", focus, mode),
        Kind.COMMENT: lambda: _comment_wordings("", focus, mode),
        Kind.CLOSING: lambda: _closing_wordings(focus, mode),
    }
    return Distribution(makers[kind]())
