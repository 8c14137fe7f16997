"""Questions about tenki's world for supervised tuning, each with its one right answer.

The answer is one polite sentence, whatever the style of the question. Some answers need what the base model knows
(リンゴ is eaten), and some need the text of the question. Held-out questions are combinations (a kind of question
with an object or weather) that tuning never asks.

`split_casual` has the same questions with casual answers: in plain form, and with a remark behind. They show a rule
that tuning on examples did not teach: rewards then ask for one polite sentence.
"""

import itertools
import os
from collections.abc import Iterator
from functools import cache

from tpullm.corpus.question import Question, form_by_hash, number_by_hash
from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.conversation_set import unknown_questions
from tpullm.corpus.tenki.grammar import Mode
from tpullm.corpus.tenki.wording import copula, verb_form
from tpullm.system.errors import UserError

_DO = w.Verb("する", "し", "し た")
_DAYS = {"今日": False, "昨日": True, "おととい": True}
SETTINGS = 20  # of each thing, which questions about a sentence are asked of
REMARKS = ("楽しいよ。", "面白いね。", "普通だよ。", "また明日ね。")


def _tenki_question(kind: str, entity: str, question: str, answer: str) -> Question:
    """A question, whose entity is its combination; templates lose their spaces."""
    return Question(question.replace(" ", ""), (answer.replace(" ", ""),), kind, f"{kind} {entity}")


def _polite_verb(verb: w.Verb, past: bool) -> str:
    return verb_form(verb, Mode(polite=True, past=past))


def _weather_words(weather: str, very: str = "") -> str:
    return f"{very}{weather}天気" if weather in w.ADJECTIVES else weather


def _questions() -> Iterator[Question]:
    """All questions, one kind after the other."""
    # 「昨日、リンゴをどうしましたか。」→「リンゴを食べました。」
    for name, thing in w.THINGS.items():
        for when, past in [("", False), *((when, past) for past, times in w.TIMES.items() for when in times)]:
            asked = f"{when}{name}をどう{_polite_verb(_DO, past)}か。"
            yield _tenki_question("knowledge", name, asked, f"{name}を{_polite_verb(thing.verb, past)}。")
    # 「昨日、友達と公園で本を読んだ。どこで読みましたか。」→「公園で読みました。」
    for name, thing in w.THINGS.items():
        verb = _polite_verb(thing.verb, past=True)
        others = (filter(None, table.get(thing.topic, ())) for table in (w.COMPANIONS, w.PLACES))  # none of clothes
        choices = itertools.product(w.TIMES[True], *others)
        by_hash = sorted(choices, key=lambda setting: number_by_hash("".join([name, *setting]).replace(" ", "")))
        for time, companion, where in by_hash[:SETTINGS]:
            statement = f"{time}{companion}{where}{name}を{thing.verb.past}。"
            asked = {"どこで": where, "誰と": companion, "いつ": time.removesuffix(" 、"), "何を": f"{name}を"}
            for word, answer in asked.items():
                yield _tenki_question("reading", f"{word} {name}", f"{statement}{word}{verb}か。", f"{answer}{verb}。")
    # 「リンゴが好きですか。」→「はい、リンゴを食べるのが好きです。」
    for name, thing in w.THINGS.items():
        for who in ("", *(f"{subject}は" for subject in w.SUBJECTS if subject != "私")):
            answer = f"はい、{who}{name}を{thing.verb.dictionary}のが好きです。"
            yield _tenki_question("liking", name, f"{who}{name}が好きですか。", answer)
    # 「昨日はとても寒い天気だった。天気はどうでしたか。」→「とても寒い天気でした。」
    for weather in w.WEATHERS:
        for very, day, told in itertools.product(w.VERY if weather in w.ADJECTIVES else ("",), _DAYS, (False, True)):
            said, polite = _weather_words(weather, very), copula(Mode(polite=True, past=_DAYS[day]))
            asked = f"{day}は{said}{copula(Mode(polite=told, past=_DAYS[day]))}。天気はどう{polite}か。"
            yield _tenki_question("weather", f"{weather} {very} {day}", asked, f"{said}{polite}。")
    # 「今日は雨だ。どうしますか。」→「傘をさします。」: the most frequent answer, in 80 % of cases or more.
    for weather, clothes in w.CLOTHES_FOR.items():
        name = max(clothes, key=clothes.__getitem__)
        for (day, past), polite in itertools.product(_DAYS.items(), (True, False)):
            told = f"{day}は{_weather_words(weather)}{copula(Mode(polite, past))}。"
            answer = f"{name}を{_polite_verb(w.THINGS[name].verb, past)}。"
            asked = f"{told}どう{_polite_verb(_DO, past)}か。"
            yield _tenki_question("clothes", f"{weather} {polite} {day}", asked, answer)


def split_questions(
    held_out_fraction: float, seed: int, with_unknown: bool = True
) -> tuple[list[Question], list[Question]]:
    """Questions to tune on, and held-out questions, each in a fixed order. Whole combinations are held out.

    Of each kind, the combinations with the lowest hashes are held out: `held_out_fraction` (0 to 1) of them, rounded.
    Raises UserError for a fraction outside that range.
    """
    if not 0.0 <= held_out_fraction <= 1.0:
        raise UserError(f"tenki questions: held_out_fraction is {held_out_fraction}: give a share from 0 to 1")
    parts: tuple[list[Question], list[Question]] = ([], [])
    every = itertools.chain(_questions(), unknown_questions() if with_unknown else ())
    for _, questions in itertools.groupby(every, key=lambda question: question.kind):
        of_kind = list(questions)
        entities = {question.entity for question in of_kind}
        ranked = sorted(entities, key=lambda entity: number_by_hash(f"{seed} {entity}"))
        held_out = set(ranked[: round(held_out_fraction * len(ranked))])
        for question in of_kind:
            parts[question.entity in held_out].append(question)
    return parts


def split_casual(held_out_fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """As `split_questions`, which holds out the same questions, without the unknown ones; it raises what that raises.

    The field `mentions` is what a right answer says in either form: リンゴを食べ.
    """
    learned, held_out = split_questions(held_out_fraction, seed, with_unknown=False)
    return [_casual_question(question) for question in learned], [_casual_question(question) for question in held_out]


def _casual_question(question: Question) -> Question:
    (answer,) = question.answers
    polite = next(end for end in _plain_verb_endings() if answer.endswith(end))
    plain = answer.removesuffix(polite) + _plain_verb_endings()[polite]
    said, both = plain + form_by_hash(REMARKS, question.question), os.path.commonprefix([answer, plain])
    return Question(question.question, (said,), question.kind, question.entity, {"mentions": both})


@cache
def _plain_verb_endings() -> dict[str, str]:
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
