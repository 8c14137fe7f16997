"""Tasks of reasoning-gym: the same for the same seed, scored by the package, whose place a small one takes here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tpullm.data.examples import reasoning_tasks
from tpullm.data.examples.reasoning_tasks import dataset, package, tasks
from tpullm.system.errors import UserError
from tpullm.training.rewards.reward_set import Rewards

REAL = importlib.util.find_spec("reasoning_gym") is not None


@pytest.fixture
def small_package(monkeypatch):
    """A package of that name with one family; children import it too."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("stands_for")))
    installed = taken_out()
    yield
    taken_out()
    sys.modules.update(installed)


def taken_out():
    """The modules of the package, which are imported no more."""
    reasoning_tasks.package.cache_clear()
    names = [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]
    return {name: sys.modules.pop(name) for name in names}


def test_tasks_are_prompts_with_fields_of_json(small_package):
    made = tasks(seven := "reasoning_gym:doubling?size=3&seed=7&largest=9")
    assert made == tasks(seven) != tasks(seven.replace("seed=7", "seed=8"))
    assert [task.messages[0]["role"] for task in made] == ["user"] * 3
    assert json.loads(json.dumps(made[1].fields)) == made[1].fields
    task = {"name": "doubling", "seed": 7, "size": 3, "parameters": {"largest": 9}, "index": 1}
    assert made[1].fields["reasoning_gym"] == task


def test_answers_are_scored_by_the_package(small_package):
    made = tasks("reasoning_gym:doubling?size=5&seed=7&largest=9")
    right = made[0].fields["answer"]
    answers = [right, f" {right}\n", "-1", "hang", "raise", "", f"はい。答え：{right}"]
    with Rewards([{"name": "reasoning_gym", "seconds": 1}]) as own:
        scores = own.score(answers, [made[0].messages] * 7, [made[0].fields] * 7)
    assert list(scores["reasoning_gym"]) == [1, 1, 0.25, 0, 0, 0, 0.25]


def test_what_an_answer_evaluates_reaches_nothing(small_package):
    """The stand-in evaluates answers that begin with `=`, as families of the package do."""
    (task,) = tasks("reasoning_gym:doubling?size=1&seed=7")
    right = task.fields["answer"]
    fair = [f"=int({right})", f"={right} + 0 * max(1, 2) * len([1, 'a'])", f"=({right}.0)"]
    forged = [
        "=__import__('os')._exit(0)",
        f"=[__import__('os').write(6, b'1.0'), {right}][1]",
        f"=print({right}) or {right}",
        f"=({right}).real",
        f"=(lambda: {right})()",
        f"=[int][0]({right})",
        f"={right} if open else 0",
        f"=sum({right} for _ in [1])",
        f"=eval('{right}')",
        f"=ｅｖａｌ('{right}')",
        f"=__builtins__ and {right}",
    ]
    with Rewards([{"name": "reasoning_gym"}]) as own:
        found = own.score([*fair, *forged], [[]] * 14, [task.fields] * 14)
    assert list(found["reasoning_gym"]) == [1] * 3 + [0] * 11


def test_an_answer_may_stand_after_a_text(small_package):
    (task,) = tasks("reasoning_gym:doubling?size=1&seed=7")
    right = task.fields["answer"]
    answers = [right, f"答え：-1\n答え： {right}", f"答え：{right}答え：-1"]
    with Rewards([{"name": "reasoning_gym", "after": "答え："}]) as own:
        assert list(own.score(answers, [[]] * 3, [task.fields] * 3)["reasoning_gym"]) == [1, 1, 0.25]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("doublign", "reasoning_gym:doublign: .* no such family; the nearest is doubling"),
        ("zzz", "reasoning_gym:zzz: reasoning-gym has no such family$"),
        ("doubling?top=3", "reasoning_gym:doubling: unknown parameter top; it has larg"),
        ("doubling?largest=0", "reasoning_gym:doubling: largest must be positive; corr"),
    ],
)
def test_what_the_package_does_not_have_is_one_line(small_package, what, told):
    with pytest.raises(UserError, match=f"^{told}"):
        tasks(f"reasoning_gym:{what}")


@pytest.mark.parametrize(
    ("fields", "told"), [({}, "there is no field `reasoning_gym`"), ({"reasoning_gym": 3}, "is no task")]
)
def test_an_example_that_is_no_task_is_named(small_package, fields, told):
    error = pytest.raises(UserError, match=f"^reward reasoning_gym: example 0.*{told}")
    with Rewards([{"name": "reasoning_gym"}]) as own, error:
        own.score(["1"], [[]], [fields])


@pytest.mark.skipif(REAL, reason="the package is installed")
def test_without_the_package_one_line_says_how_to_install_it():
    reasoning_tasks.package.cache_clear()
    with pytest.raises(UserError, match=r"needs the package: pip install 'tpullm\[reasoning-gym\]'"):
        Rewards([{"name": "reasoning_gym"}])


@pytest.mark.skipif(not REAL, reason="needs the extra reasoning-gym")
def test_right_answers_of_the_real_package_score_1():
    names = ("chain_sum", "letter_counting", "spell_backward")
    made = [task for name in names for task in tasks(f"reasoning_gym:{name}?size=4&seed=1")]
    assert set(names) <= set(sorted(package().factory.DATASETS)) and len(dataset("chain_sum", 1, 4, {})) == 4
    with Rewards([{"name": "reasoning_gym"}]) as own:
        right = own.score([task.fields["answer"] for task in made], [[]] * 12, [task.fields for task in made])
        wrong = own.score(["nonsense"] * 12, [[]] * 12, [task.fields for task in made])
    assert list(right["reasoning_gym"]) == [1] * 12 and max(wrong["reasoning_gym"]) < 0.5
