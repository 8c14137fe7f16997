"""Each reward gives what its samples say; the pages have the same table; a wrong setting is one line."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.pages import ROOT
from tpullm.system.errors import UserError
from tpullm.training.rewards.reward_set import Rewards, parameters_of
from tpullm.training.rewards.shipped_rewards import REWARDS, Sample

SAMPLES = [(name, sample) for name, reward in REWARDS.items() for sample in reward.samples]
TEXTUAL = [name for name, reward in REWARDS.items() if not reward.in_processes]
NEEDED = {
    "length": {"most": 40},
    "language": {"language": "ja"},
    "json_schema": {"schema": {"type": "object"}},
    "matches": {"pattern": ".*"},
    "no_phrases": {"phrases": ["雨"]},
}


def score(name, answer, fields=None, **parameters):
    with Rewards([{"name": name, **parameters}]) as rewards:
        return rewards.score([answer], [[]], [fields or {"answer": 1, "tests": ["pass"]}])[name][0]


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=lambda value: getattr(value, "answer", value))
def test_a_sample(name, sample: Sample):
    found = score(name, sample.answer, sample.fields, **sample.parameters)
    assert math.isclose(found, sample.score, abs_tol=1e-12)  # the order of a division


def test_every_reward_has_samples():
    assert [name for name, reward in REWARDS.items() if len(reward.samples) < 3] == ["reasoning_gym"]


@pytest.mark.parametrize("name", TEXTUAL)
@pytest.mark.parametrize("answer", ["", " \n\t", "\u3000"])
def test_an_answer_without_a_visible_character_scores_0(name, answer):
    assert score(name, answer, **NEEDED.get(name, {})) == 0


@example("\ud800")
@given(
    st.text(
        alphabet=st.sampled_from('雨です。ますかaあ「」（）()!.,-0１九千/\\{}[]"\n 笑=答:#') | st.characters(),
        max_size=60,
    )
)
def test_any_text_scores_from_0_to_1_and_the_same_twice(answer):
    settings = [{"name": name, **NEEDED.get(name, {})} for name in TEXTUAL]
    rewards = Rewards(settings)
    first, second = (rewards.score([answer, answer], [[]] * 2, [{"answer": 1, "mentions": "雨"}] * 2) for _ in range(2))
    for name in TEXTUAL:
        assert 0 <= first[name][0] <= 1 and (first[name] == second[name]).all() and first[name][0] == first[name][1]


def parameters_shown(name):
    """The parameters of a reward, as the tables of both pages show them."""
    shown = []
    for key, parameter in parameters_of(name).items():
        default = parameter.default
        text = str(default).lower() if isinstance(default, bool) else str(default)
        shown.append(f"`{key}`" if default in (parameter.empty, "") else f"`{key}` {text}")
    return ", ".join(shown) or "-"


def test_the_pages_have_the_table():
    rows = [f"| `{name}` | {parameters_shown(name)} | {reward.meaning} |" for name, reward in REWARDS.items()]
    english, japanese = (
        re.findall(
            r"^\| `.*",
            (ROOT / "docs" / language / "rewards.md").read_text("utf-8").partition(f"\n## {heading}\n")[2],
            re.MULTILINE,
        )
        for language, heading in (("en", "The rewards"), ("ja", "用意されている報酬"))
    )
    assert english == rows
    assert [row.rpartition(" | ")[0] for row in japanese] == [row.rpartition(" | ")[0] for row in rows]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"name": "polit"}, "reward polit: no reward has this name; the nearest is polite"),
        ({"name": "zzz"}, "reward zzz: no reward has this name; there are polite, one_sentence, length"),
        ({"name": 3}, "reward 3: no reward has this name"),
        ({}, r"rewards: \{\}: give each a `name` or a `function`"),
        ("polite", "rewards: polite: give each a `name` or a `function`"),
        ({"name": "polite", "function": "a.py:b"}, "rewards: .*: give each a `name` or a `function`"),
        ({"name": "polite", "least": 3}, "reward polite: unknown parameter least; it has none"),
        ({"name": "length", "mots": 3}, "reward length: unknown parameter mots; the nearest is most"),
        ({"name": "length", "zzz": 3}, "reward length: unknown parameter zzz; it has least, most, unit, edge"),
        ({"name": "length", "most": "3"}, "reward length: most: 3 is not a whole number"),
        ({"name": "length", "most": True}, "reward length: most: True is not a whole number"),
        ({"name": "length", "most": 2.5}, "reward length: most: 2.5 is not a whole number"),
        ({"name": "length", "most": 3, "least": 4}, "reward length: least 4, most 3, edge 0: give 0 <= least <= most"),
        ({"name": "length", "most": 3, "edge": -1}, "reward length: least 0, most 3, edge -1"),
        ({"name": "length", "most": 3, "unit": "bytes"}, "reward length: unit: bytes is none of characters, words"),
        ({"name": "length", "most": 3, "unit": "tokens"}, "reward length: unit: tokens needs a tokenizer"),
        ({"name": "length", "count_tokens": len}, "reward length: unknown parameter count_tokens"),
        ({"name": "language"}, "reward language: language is missing; give a text"),
        ({"name": "language", "language": "jp"}, "reward language: language: jp cannot be detected; did you mean ja"),
        ({"name": "no_phrases", "phrases": "雨"}, "reward no_phrases: phrases: 雨 is not a list of texts"),
        ({"name": "no_phrases", "phrases": [1]}, r"reward no_phrases: phrases: \[1\] is not a list of texts"),
        ({"name": "no_phrases", "phrases": []}, "reward no_phrases: phrases: give at least one"),
        ({"name": "no_phrases", "phrases": ["a", " "]}, "reward no_phrases: phrases: give at least one, and none that"),
        ({"name": "no_repetition", "size": 0}, "reward no_repetition: size 0, allowed 0.1: give a size"),
        ({"name": "no_repetition", "allowed": 1}, "reward no_repetition: size 8, allowed 1: give a size"),
        ({"name": "matches", "pattern": "(a"}, r"reward matches: pattern: \(a is no regular expression \(missing \)"),
        ({"name": "json_schema", "schema": {"type": "objekt"}}, r"reward json_schema: schema: \$.type: 'objekt'"),
        (
            {"name": "json_schema", "schema": {"anyOf": [{"$ref": "http://a/b"}]}},
            r"reward json_schema: schema: \$ref http",
        ),
        ({"name": "number", "tolerance": -1}, "reward number: tolerance: -1 is below 0"),
        ({"name": "code", "seconds": 0}, "reward code: seconds 0, memory_mib 256: give at least 1 second"),
        ({"name": "code", "memory_mib": 8}, "reward code: seconds 1, memory_mib 8: give at least 1 second and 16 MiB"),
        ({"name": "polite", "weight": "much"}, "reward polite: weight: much is not a number"),
        ({"name": "polite", "weight": math.inf}, "reward polite: weight: inf is not a number"),
        ({"name": "polite", "label": "a", "weight": True}, "reward a: weight: True is not a number"),
    ],
)
def test_a_wrong_setting_is_one_line(setting, told):
    with pytest.raises(UserError, match=f"^{told}"):
        Rewards([setting])


def test_no_reward_and_two_of_one_name_are_refused():
    with pytest.raises(UserError, match="^rewards: there is none"):
        Rewards([])
    with pytest.raises(UserError, match="^rewards: two are named polite; give one of them a `label`"):
        Rewards([{"name": "polite"}, {"name": "polite"}])


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("number", {"tests": []}, r"there is no field `answer` \(it has tests\); add it"),
        ("number", {}, r"there is no field `answer` \(it has none\)"),
        ("number", {"answer": "none"}, "field `answer`: 'none' has no number"),
        ("code", {}, "there is no field `tests`"),
        ("code", {"tests": []}, "field `tests` is no list of texts"),
        ("code", {"tests": "assert f()"}, "field `tests` is no list of texts"),
        ("code", {"tests": [1]}, "field `tests` is no list of texts"),
    ],
)
def test_an_example_without_what_a_reward_needs_is_named(name, fields, told):
    good = {"answer": 1, "tests": ["pass"]}
    prompts = [[], [{"role": "user", "content": "1たす1は？"}]]
    with Rewards([{"name": name}]) as rewards, pytest.raises(UserError) as error:
        rewards.score(["1", "2"], prompts, [good, fields])
    assert re.match(rf'reward {name}: example 1 \("1たす1は？"\): {told}', str(error.value))
