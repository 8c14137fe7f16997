"""Each reward gives the scores of its samples; the pages list the parameters; a wrong setting is one line."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.pages import ROOT
from tpullm.system.errors import UserError
from tpullm.training.rewards.reward_set import REWARDS, Rewards, reward_parameters

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[^0-9]+$"}, "temperature": {"type": "number"}},
    "required": ["city"],
    "additionalProperties": False,
}
SHORT = {"least": 2, "most": 5}
ADD = {"tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}

SAMPLES = {
    "polite": (
        ("今日は晴れです。明日は雨だ。", 0.5),
        ("次の二つです：\n- りんご\n- みかん\n", 0),
        ("次の二つがあります。\n- りんご\n- みかん\n", 1),
        ("It is sunny today.", 0),
    ),
    "one_sentence": (
        ("今日は晴れです。", 1),
        ("今日は晴れです。明日は雨です。", 0.5),
        ("It rains. Take an umbrella! Really?", 1 / 3),
    ),
    "length": (
        ("雨です", 1, SHORT),
        ("雨でしょうか", 0, SHORT),
        ("雨でしょうか", 0.5, SHORT | {"edge": 1}),
        ("雨", 0, SHORT),
        (" 雨です。\n", 1, SHORT),
        ("It may rain today", 1, SHORT | {"unit": "words"}),
        ("今日は雨が降りそうです。", 0.75, SHORT | {"unit": "words", "edge": 7}),
    ),
    "language": (
        ("今日は晴れです。", 1, {"language": "ja"}),
        ("It is sunny today.", 0, {"language": "ja"}),
        ("今天天气很好。", 0, {"language": "ja"}),
        ("It is sunny today.", 1, {"language": "en"}),
        ("Die Sonne scheint und das Wetter ist gut, nicht wahr?", 0, {"language": "en"}),
        ("12345", 0, {"language": "en"}),
    ),
    "json_schema": (
        ('{"city": "東京", "temperature": 21.5}', 1, {"schema": CITY}),
        ('```json\n{"city": "Kyoto"}\n```', 1, {"schema": CITY}),
        ('{"temperature": 21.5}', 0, {"schema": CITY}),
        ('{"city": "東京1"}', 0, {"schema": CITY}),
        ('{"city": "東京", "temperature": NaN}', 0, {"schema": CITY}),
        ('はい。{"city": "東京"}', 0, {"schema": CITY}),
    ),
    "matches": (
        ("2026-11-27\n", 1, {"pattern": r"\d{4}-\d\d-\d\d"}),
        ("It is 2026-11-27.", 0, {"pattern": r"\d{4}-\d\d-\d\d"}),
        ("It is 2026-11-27.", 1, {"pattern": r"\d{4}-\d\d-\d\d", "whole": False}),
        ("雨です。", 1, {"pattern": r"\p{Han}+です。"}),
    ),
    "number": (
        ("It is -5.", 1, {}, {"answer": "#### -5"}),
        ("about 3.14", 0, {}, {"answer": 3.14159}),
        ("about 3.14", 1, {"tolerance": 0.01}, {"answer": 3.14159}),
        ("わかりません。", 0, {}, {"answer": 1}),
    ),
    "mentions": (
        ("リンゴを食べました。", 1, {}, {"mentions": "リンゴを食べ"}),
        ("リンゴです。", 0.5, {}, {"mentions": ["リンゴ", "食べ"]}),
        ("An apple, in KYOTO.", 1, {"field": "words"}, {"words": ["apple", "Kyoto"]}),
        ("はい。", 0, {}, {"mentions": ["リンゴ"]}),
    ),
    "code": (
        ("def add(a, b):\n    return a + b", 1, {}, ADD),
        ("はい。\n```python\ndef add(a, b):\n    return a + b\n```\n以上です。", 1, {}, ADD),
        ("def add(a, b):\n    return 3", 0.5, {}, ADD),
        ("def add(a, b): return", 0, {}, ADD),
        ("def add(a, b:", 0, {}, ADD),
        ("    return a + b", 1, {}, ADD | {"before": "def add(a, b):\n"}),
    ),
    "no_repetition": (
        ("今日は晴れです。", 1),
        ("The cat sat on the mat and looked at the rain.", 1),
        ("あ" * 108, 1 / 101 / 0.9),
        ("ababab", 0.4, {"size": 2, "allowed": 0}),
    ),
    "no_phrases": (
        ("雨です。", 1, {"phrases": ["AIとして", "as an AI"]}),
        ("ＡＩとして答えます。", 0, {"phrases": ["AIとして", "as an AI"]}),
        ("As an AI, I cannot say.", 0, {"phrases": ["AIとして", "as an AI"]}),
    ),
}
TEXTUAL = [name for name in REWARDS if name not in ("code", "reasoning_gym")]
NEEDED = {"length": {"most": 40}, "language": {"language": "ja"}, "json_schema": {"schema": {"type": "object"}}}
NEEDED |= {"matches": {"pattern": ".*"}, "no_phrases": {"phrases": ["雨"]}}


def score(name, answer, fields=None, **parameters):
    with Rewards([{"name": name, **parameters}]) as rewards:
        return rewards.score([answer], [[]], [fields or {"answer": 1, "tests": ["pass"]}])[name][0]


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name):
    for answer, expected, *more in SAMPLES[name]:
        parameters, fields = (*more, {}, {})[:2]
        found = score(name, answer, fields, **parameters)
        assert math.isclose(found, expected, abs_tol=1e-12), answer  # the order of a division


def test_every_reward_has_samples():
    assert REWARDS.keys() - SAMPLES.keys() == {"reasoning_gym"} and min(map(len, SAMPLES.values())) >= 3


@pytest.mark.parametrize("name", TEXTUAL)
def test_an_answer_without_a_visible_character_scores_0(name):
    assert [score(name, answer, **NEEDED.get(name, {})) for answer in ("", " \n\t", "\u3000")] == [0, 0, 0]


CHARACTERS = st.sampled_from('雨です。ますかaあ「」（）()!.,-0１九千/\\{}[]"\n 笑=答:#') | st.characters()


@example("\ud800")
@given(st.text(alphabet=CHARACTERS, max_size=60))
def test_any_text_scores_from_0_to_1_and_the_same_twice(answer):
    settings = [{"name": name, **NEEDED.get(name, {})} for name in TEXTUAL]
    rewards = Rewards(settings)
    first, second = (rewards.score([answer, answer], [[]] * 2, [{"answer": 1, "mentions": "雨"}] * 2) for _ in range(2))
    for name in TEXTUAL:
        assert 0 <= first[name][0] <= 1 and (first[name] == second[name]).all() and first[name][0] == first[name][1]


def parameters_shown(name):
    """The parameters of a reward, as the tables of both pages show them."""
    shown = []
    for key, parameter in reward_parameters(name).items():
        default = parameter.default
        text = str(default).lower() if isinstance(default, bool) else str(default)
        shown.append(f"`{key}`" if default in (parameter.empty, "") else f"`{key}` {text}")
    return ", ".join(shown) or "-"


def test_the_pages_have_the_rewards_and_their_parameters():
    rows = [f"| `{name}` | {parameters_shown(name)}" for name in REWARDS]
    for language, heading in (("en", "The rewards"), ("ja", "用意されている報酬")):
        page = (ROOT / "docs" / language / "rewards.md").read_text("utf-8").partition(f"\n## {heading}\n")[2]
        assert [row.rpartition(" | ")[0] for row in re.findall(r"^\| `.*", page, re.MULTILINE)] == rows


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), "rewards: there is none"),
        (({"name": "polite"}, {"name": "polite"}), "rewards: two are named polite; give one of them a `label`"),
        ({"name": "polit"}, "reward polit: no reward has this name; the nearest is polite"),
        ({"name": "zzz"}, "reward zzz: no reward has this name; there are polite, one_sentence, length"),
        ({}, r"rewards: \{\}: give each a `name` or a `function`"),
        ({"name": "polite", "function": "a.py:b"}, "rewards: .*: give each a `name` or a `function`"),
        ({"name": "polite", "least": 3}, "reward polite: unknown parameter least; there are none"),
        ({"name": "length", "mots": 3}, "reward length: unknown parameter mots; the nearest is most"),
        ({"name": "length", "zzz": 3}, "reward length: unknown parameter zzz; there are least, most, unit, edge"),
        ({"name": "length", "most": "3"}, "reward length: most: 3 is not a whole number"),
        ({"name": "length", "most": True}, "reward length: most: True is not a whole number"),
        ({"name": "length", "most": 3, "least": 4}, "reward length: least 4, most 3, edge 0: give 0 <= least <= most"),
        ({"name": "length", "most": 3, "unit": "bytes"}, "reward length: unit: bytes is none of characters, words"),
        ({"name": "length", "most": 3, "unit": "tokens"}, "reward length: unit: tokens needs a tokenizer"),
        ({"name": "length", "count_tokens": len}, "reward length: unknown parameter count_tokens"),
        ({"name": "language"}, "reward language: language is missing; give a text"),
        ({"name": "language", "language": "jp"}, "reward language: language: jp cannot be detected; did you mean ja"),
        ({"name": "no_phrases", "phrases": "雨"}, "reward no_phrases: phrases: 雨 is not a list of texts"),
        ({"name": "no_phrases", "phrases": [1]}, r"reward no_phrases: phrases: \[1\] is not a list of texts"),
        ({"name": "no_phrases", "phrases": ["a", " "]}, "reward no_phrases: phrases: give at least one, and none that"),
        ({"name": "no_repetition", "size": 0}, "reward no_repetition: size 0, allowed 0.1: give a size"),
        ({"name": "no_repetition", "allowed": 1}, "reward no_repetition: size 8, allowed 1: give a size"),
        ({"name": "matches", "pattern": "(a"}, r"reward matches: pattern: \(a is no regular expression \(missing \)"),
        ({"name": "json_schema", "schema": {"type": "objekt"}}, r"reward json_schema: schema: \$.type: 'objekt'"),
        ({"name": "json_schema", "schema": {"anyOf": [{"$ref": "http://a"}]}}, r"reward json_schema: schema: \$ref h"),
        ({"name": "number", "tolerance": -1}, "reward number: tolerance: -1 is below 0"),
        ({"name": "code", "seconds": 0}, "reward code: seconds 0, memory_mib 256: give at least 1 second"),
        ({"name": "code", "memory_mib": 8}, "reward code: seconds 1, memory_mib 8: give at least 1 second and 16 MiB"),
        ({"name": "polite", "weight": "much"}, "reward polite: weight: much is not a number"),
        ({"name": "polite", "weight": math.inf}, "reward polite: weight: inf is not a number"),
        ({"name": "polite", "label": "a", "weight": True}, "reward a: weight: True is not a number"),
    ],
)
def test_a_wrong_setting_is_one_line(settings, told):
    with pytest.raises(UserError, match=f"^{told}"):
        Rewards([settings] if isinstance(settings, dict) else settings)


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("number", {"tests": []}, r"there is no field `answer` \(it has tests\); add it"),
        ("number", {"answer": "none"}, "field `answer`: 'none' has no number"),
        ("code", {}, "there is no field `tests`"),
        ("code", {"tests": []}, "field `tests` is no list of texts"),
        ("code", {"tests": [1]}, "field `tests` is no list of texts"),
    ],
)
def test_an_example_without_what_a_reward_needs_is_named(name, fields, told):
    good = {"answer": 1, "tests": ["pass"]}
    prompts = [[], [{"role": "user", "content": "1たす1は？"}]]
    with Rewards([{"name": name}]) as rewards, pytest.raises(UserError) as error:
        rewards.score(["1", "2"], prompts, [good, fields])
    assert re.match(rf'reward {name}: example 1 \("1たす1は？"\): {told}', str(error.value))
