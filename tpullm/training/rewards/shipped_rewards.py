"""The table of the rewards: a name, what makes it, its meaning in one line, and examples that are its test.

Each scores from 0 to 1. An answer without a visible character scores 0 with all of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from tpullm.training.rewards import form
from tpullm.training.rewards.code_tests import CodeTests
from tpullm.training.rewards.form import polite
from tpullm.training.rewards.reasoning import ReasoningGym
from tpullm.training.rewards.right_number import number
from tpullm.training.rewards.scorer import Each, Scorer


@dataclasses.dataclass(frozen=True)
class Sample:
    """An answer and its score, with these parameters of the reward and fields of the example."""

    answer: str
    score: float
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ShippedReward:
    """A reward.

    Attributes:
        make: from its parameters, which are those of this function, to the reward; `count_tokens` is no parameter.
        meaning: what it scores.
        samples: what it gives.
        in_processes: whether it works in processes of its own.
    """

    make: Callable[..., Scorer]
    meaning: str
    samples: tuple[Sample, ...] = ()
    in_processes: bool = False


_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[^0-9]+$"}, "temperature": {"type": "number"}},
    "required": ["city"],
    "additionalProperties": False,
}
_SHORT = {"least": 2, "most": 5}
_ADD = {"tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}

REWARDS = {
    "polite": ShippedReward(
        lambda: Each(polite),
        "the share of the sentences that end with です, ます or ください",
        (
            Sample("今日は晴れです。明日は雨が降ります。", 1),
            Sample("今日は晴れです。明日は雨だ。", 0.5),
            Sample("寒いですか？窓を閉めましょうか。", 1),
            Sample("たぶん雨でしょう。昨日は降りませんでした。", 1),
            Sample("傘を持ってください。", 1),
            Sample("ありがとうございます。", 1),
            Sample("ありがとう。", 0),
            Sample("はい。行きますよ！", 1),
            Sample("うん。行くよ。", 0),
            Sample("母は「早く行け。雨だ。」と言いました。", 1),
            Sample("母は「行きます」と言った。", 0),
            Sample("「おはようございます。」", 1),
            Sample("次の二つです：\n- りんご\n- みかん\n", 0),
            Sample("次の二つがあります。\n- りんご\n- みかん\n", 1),
            Sample("- 走る。\n- 歩きます。", 0.5),
            Sample("It is sunny today.", 0),
        ),
    ),
    "one_sentence": ShippedReward(
        form.one_sentence,
        "1 for one sentence, 1/n for n of them",
        (
            Sample("今日は晴れです。", 1),
            Sample("今日は晴れです", 1),
            Sample("今日は晴れです。明日は雨です。", 0.5),
            Sample("「雨だ。帰ろう。」と言った。", 1),
            Sample("え！？本当ですか？", 0.5),
            Sample("Dr. Smith paid 3.50 dollars.", 1),
            Sample("It rains. Take an umbrella! Really?", 1 / 3),
            Sample("雨です。😊", 1),
            Sample("- りんご\n- みかん", 0.5),
        ),
    ),
    "length": ShippedReward(
        form.length,
        "1 from `least` to `most` characters, words or tokens, then down to 0 at `edge` + 1 outside",
        (
            Sample("雨です", 1, _SHORT),
            Sample("雨でしょうか", 0, _SHORT),
            Sample("雨でしょうか", 0.5, _SHORT | {"edge": 1}),
            Sample("雨", 0, _SHORT),
            Sample(" 雨です。\n", 1, _SHORT),
            Sample("It may rain today", 1, _SHORT | {"unit": "words"}),
            Sample("今日は雨が降りそうです。", 0.75, _SHORT | {"unit": "words", "edge": 7}),
        ),
    ),
    "language": ShippedReward(
        form.language,
        "1 if the answer can be in `language`, by its script and a model of languages",
        (
            Sample("今日は晴れです。", 1, {"language": "ja"}),
            Sample("It is sunny today.", 0, {"language": "ja"}),
            Sample("今天天气很好。", 0, {"language": "ja"}),
            Sample("It is sunny today.", 1, {"language": "en"}),
            Sample("Die Sonne scheint und das Wetter ist gut, nicht wahr?", 0, {"language": "en"}),
            Sample("12345", 0, {"language": "en"}),
        ),
    ),
    "json_schema": ShippedReward(
        form.json_schema,
        "1 if the answer, or its one fenced block, is JSON that satisfies `schema`",
        (
            Sample('{"city": "東京", "temperature": 21.5}', 1, {"schema": _CITY}),
            Sample('```json\n{"city": "Kyoto"}\n```', 1, {"schema": _CITY}),
            Sample('{"temperature": 21.5}', 0, {"schema": _CITY}),
            Sample('{"city": "東京1"}', 0, {"schema": _CITY}),
            Sample('{"city": "東京", "temperature": NaN}', 0, {"schema": _CITY}),
            Sample('はい。{"city": "東京"}', 0, {"schema": _CITY}),
        ),
    ),
    "matches": ShippedReward(
        form.matches,
        "1 if the regular expression matches the answer: the `whole`, or a part",
        (
            Sample("2026-11-27\n", 1, {"pattern": r"\d{4}-\d\d-\d\d"}),
            Sample("It is 2026-11-27.", 0, {"pattern": r"\d{4}-\d\d-\d\d"}),
            Sample("It is 2026-11-27.", 1, {"pattern": r"\d{4}-\d\d-\d\d", "whole": False}),
            Sample("雨です。", 1, {"pattern": r"\p{Han}+です。"}),
        ),
    ),
    "number": ShippedReward(
        number,
        "1 if the number of the answer is that of the field, within `tolerance`",
        (
            Sample("3 + 4 = 7", 1, {}, {"answer": 7}),
            Sample("答えは１，２３４です。５分かかりました。", 1, {}, {"answer": "1234"}),
            Sample("The answer is 12, not 13.", 1, {}, {"answer": 12}),
            Sample("So it is \\boxed{\\frac{1}{2}}, as 2 > 1.", 1, {}, {"answer": 0.5}),
            Sample("答えは三百二十一です。", 1, {}, {"answer": 321}),
            Sample("全部で1万2千円です。", 1, {}, {"answer": 12_000}),
            Sample("二〇二六年", 1, {}, {"answer": 2026}),
            Sample("マイナス三点五度", 1, {}, {"answer": -3.5}),
            Sample("It is -5.", 1, {}, {"answer": "#### -5"}),
            Sample("about 3.14", 0, {}, {"answer": 3.14159}),
            Sample("about 3.14", 1, {"tolerance": 0.01}, {"answer": 3.14159}),
            Sample("わかりません。", 0, {}, {"answer": 1}),
        ),
    ),
    "mentions": ShippedReward(
        form.mentions,
        "the share of the texts of the field that are in the answer",
        (
            Sample("リンゴを食べました。", 1, {}, {"mentions": "リンゴを食べ"}),
            Sample("リンゴです。", 0.5, {}, {"mentions": ["リンゴ", "食べ"]}),
            Sample("An apple, in KYOTO.", 1, {"field": "words"}, {"words": ["apple", "Kyoto"]}),
            Sample("はい。", 0, {}, {"mentions": ["リンゴ"]}),
        ),
    ),
    "code": ShippedReward(
        CodeTests,
        "the share of the field `tests` that the program of the answer passes",
        (
            Sample("def add(a, b):\n    return a + b", 1, {}, _ADD),
            Sample("はい。\n```python\ndef add(a, b):\n    return a + b\n```\n以上です。", 1, {}, _ADD),
            Sample("def add(a, b):\n    return 3", 0.5, {}, _ADD),
            Sample("def add(a, b): return", 0, {}, _ADD),
            Sample("def add(a, b:", 0, {}, _ADD),
            Sample("    return a + b", 1, {}, _ADD | {"before": "def add(a, b):\n"}),
        ),
        in_processes=True,
    ),
    "reasoning_gym": ShippedReward(
        ReasoningGym,
        "the score of the package reasoning-gym for its own tasks",
        in_processes=True,
    ),
    "no_repetition": ShippedReward(
        form.no_repetition,
        "1 if at most `allowed` of the runs of `size` characters occurred before, then down to 0",
        (
            Sample("今日は晴れです。", 1),
            Sample("雨です。" * 20, 4 / 73 / 0.9),
            Sample("The cat sat on the mat and looked at the rain.", 1),
            Sample("あ" * 108, 1 / 101 / 0.9),
            Sample("ababab", 0.4, {"size": 2, "allowed": 0}),
        ),
    ),
    "no_phrases": ShippedReward(
        form.no_phrases,
        "1 if none of `phrases` is in the answer",
        (
            Sample("雨です。", 1, {"phrases": ["AIとして", "as an AI"]}),
            Sample("ＡＩとして答えます。", 0, {"phrases": ["AIとして", "as an AI"]}),
            Sample("As an AI, I cannot say.", 0, {"phrases": ["AIとして", "as an AI"]}),
        ),
    ),
}
