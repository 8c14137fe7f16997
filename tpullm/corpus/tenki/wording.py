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
    if kind is Kind.CLOSING:
        return Distribution(_closing_wordings(focus, mode))
    if kind in (Kind.WEATHER, Kind.WEATHER_THEN):
        day = "その 日" if kind is Kind.WEATHER_THEN else "昨日" if mode.past else "今日"
        weather = (w.VERY_WEATHER, focus, "天気") if focus in w.ADJECTIVES else (focus,)
        # A remark on today ends in ね; a report of the past does not.
        end = f"{copula(mode)} 。" if mode.past else f"{copula(mode)} ね 。"
        return Distribution(_word_sequences(f"{day} は", *weather, end))
    topic, verb = w.THINGS[focus].topic, w.THINGS[focus].verb
    does = f"{focus} を {verb_form(verb, mode)} 。"
    match kind:
        case Kind.BECAUSE:
            joint = {weather: p * w.CLOTHES_FOR[weather].get(focus, 0.0) for weather, p in w.WEATHERS.items()}
            chances = {weather: p / clothes()[focus] for weather, p in joint.items() if p}
            reasons = {_weather_as_reason(weather, mode.past): p for weather, p in chances.items()}
            parts = ("昨日 は" if mode.past else "今日 は", reasons, "、", does)
        case Kind.SO:
            parts = ("だから 、", does)
        case Kind.ACTION_DATED | Kind.ACTION | Kind.ACTION_LINKED:
            openings = {Kind.ACTION_DATED: w.TIMES[mode.past], Kind.ACTION: "", Kind.ACTION_LINKED: w.LINKS}
            parts = (openings[kind], w.COMPANIONS[topic], w.PLACES[topic], does)
        case Kind.LIKING:
            parts = (w.SUBJECTS, f"は {focus} を {verb.dictionary} の が", _adjective_forms(w.LIKES, mode), "。")
        case Kind.FEELING:
            parts = (f"{focus} を {verb.dictionary} の は", _adjective_forms(w.FEELINGS[topic], mode), "。")
        case Kind.COMMENT_THAT | Kind.COMMENT:
            adjectives = _adjective_forms(w.THINGS[focus].adjectives, mode)
            parts = ("その" if kind is Kind.COMMENT_THAT else "", f"{focus} は", w.VERY, adjectives, "。")
    return Distribution(_word_sequences(*parts))
