"""A reward of the user's own: right ones score, and each way to go wrong is one line."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, is_gone
from tests.conftest import wait_until as wait_for
from tpullm.system.errors import UserError
from tpullm.training.rewards import own_function
from tpullm.training.rewards.own_function import OwnFunction
from tpullm.training.rewards.reward_set import Rewards
from tpullm.training.rewards.scorer import Example

FILE = str(Path(__file__).with_name("own_rewards.py"))
PROMPT = [{"role": "user", "content": "a"}]


def scored(name, answers, seconds=60.0, processes=1, fields=None, **parameters):
    own = OwnFunction(f"{FILE}:{name}", seconds, processes, parameters)
    try:
        examples = [Example(n, answer, PROMPT, (fields or [{}] * 9)[n]) for n, answer in enumerate(answers)]
        return own.score(examples)
    finally:
        own.close()


def test_it_scores_with_prompts_fields_and_parameters(capfd):
    length = {"function": f"{FILE}:length", "scale": 0.5, "weight": 2}
    with Rewards([length, {"function": f"{FILE}:see", "label": "seen"}]) as own:
        scores = own.score(["雨です", "雨"], [PROMPT] * 2, [{"wanted": 0.25}, {"wanted": -4}])
    assert {name: list(values) for name, values in scores.items()} == {"length": [1.5, 0.5], "seen": [0.25, -4]}
    assert list(own.total(scores)) == [3.25, -3.0]
    shown = capfd.readouterr()
    assert shown.out == "" and "printed" in shown.err


def test_it_sees_the_whole_batch_in_one_process_that_stays():
    own = OwnFunction(f"{FILE}:process", 60, 1, {})
    examples = [Example(n, "a") for n in range(5)]
    first, second = own.score(examples), own.score(examples)
    own.close()
    assert first == second and len(set(first)) == 1 and is_gone(int(first[0]))
    assert scored("whole", "abc") == [3, 3, 3]


def test_processes_share_a_batch_in_its_order_and_numbers_of_arrays_are_numbers():
    assert len(set(scored("process", "abcde", processes=2))) == 2
    assert scored("whole", "abcde", processes=2) == [3, 3, 3, 2, 2]
    assert scored("length", ["a", "bb", "ccc"], processes=4) == [1, 2, 3]
    assert scored("length", [], processes=2) == []
    assert scored("returns", "abc", what="arrays") == [0, 1, 2]
    assert scored("returns", "abcd", what="mixed") == [1, 2, 0.5, 3]


ALONE = r'example 2 \("a"\): '


@pytest.mark.parametrize(
    ("name", "what", "told"),
    [
        ("at_bad", "raises", ALONE + r"raises ValueError: invalid literal .*'so\\nmany' \(line \d+\); correct it"),
        ("at_bad", "exits", ALONE + r"raises SystemExit: over \(line \d+\); correct it"),
        ("at_bad", "leaves", ALONE + r"ends its process \(exit code 7\); correct it, or raise `seconds`"),
        ("returns", "together", r"raises ZeroDivisionError: .* \(line \d+\); correct it"),
        ("returns", "fewer", ALONE + "returned 0 numbers for 1 answers; return one for each"),
        ("returns", "nan", ALONE + "returned nan; return a finite number"),
        ("returns", "infinite", ALONE + "returned -inf; return a finite number"),
        ("returns", "texts", ALONE + "returned a str; return a number"),
        ("returns", "nothing", r'example 0 \("a"\): returned a NoneType; return a list of 1 numbers'),
        ("returns", "one", r'example 0 \("a"\): returned a float; return a list of 1 numbers'),
    ],
)
def test_each_way_to_go_wrong_is_one_line(name, what, told):
    with pytest.raises(UserError, match=rf"^{FILE}:{name}: {told}$") as error:
        scored(name, ["good", "good", "bad"], what=what)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "what", "answers", "told"),
    [
        ("at_bad", "hangs", ["good", "bad"], r'example 1 \("a"\): takes more than 1 s; correct it, or raise'),
        ("returns", "slow", "abcdefghi", "9 answers: takes more than 1 s; make it faster, raise `seconds`"),
    ],
)
def test_a_hang_is_ended_and_its_example_named_and_what_is_slow_together_is_none(name, what, answers, told):
    began = time.monotonic()
    with pytest.raises(UserError, match=f"{name}: {told}"):
        scored(name, answers, seconds=1, what=what)
    assert time.monotonic() - began < 30


def test_it_works_again_after_an_error():
    own = OwnFunction(f"{FILE}:at_bad", 60, 2, {"what": "leaves"})
    with pytest.raises(UserError, match="ends its process"):
        own.score([Example(0, "good"), Example(1, "bad")])
    assert own.score([Example(0, "good")]) == [0]
    own.close()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("own_rewards.py", "function: own_rewards.py is not FILE.py:FUNCTION"),
        ("a.py:b-c", "function: a.py:b-c is not FILE.py:FUNCTION"),
        ("nowhere.py:f", "function: nowhere.py: no such file"),
        (f"{FILE}:lenght", f"function: {FILE}:lenght: LookupError: no function lenght is in it .it has length, see, "),
        (f"{FILE}:no_function", f"function: {FILE}:no_function: LookupError: no function no_function is in it"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(where, told):
    with pytest.raises(UserError, match=f"^reward .*: {told}"):
        Rewards([{"function": where}])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def f(:", r"SyntaxError: .* \(line 1\); correct it"),
        ("\nimport not_there", r"ModuleNotFoundError: No module named 'not_there' \(line 2\); correct it"),
        ("def f(answers): pass", "TypeError: too many positional arguments; correct it"),
        ("import os; os._exit(3)", r"ends its process \(exit code 3\) while it is imported"),
        ("import time; time.sleep(1000)", "takes more than 1 s while it is imported"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(monkeypatch, tmp_path, text, told):
    if "sleep" in text:  # else a busy machine may need longer for the start of a process
        monkeypatch.setattr(own_function, "START_SECONDS", 1)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"^reward f: function: .*mine.py:f: {told}"):
        Rewards([{"function": f"{tmp_path / 'mine.py'}:f"}])


def test_a_wrong_parameter_is_one_line():
    with pytest.raises(UserError, match="reward length: function: .*: TypeError: got an unexpected keyword argumen"):
        Rewards([{"function": f"{FILE}:length", "scael": 1}])
    for wrong in ({"seconds": "1"}, {"processes": 1.5}, {"seconds": 0}, {"processes": 0}):
        with pytest.raises(UserError, match="^reward length: seconds .*, processes .*: give"):
            Rewards([{"function": f"{FILE}:length", **wrong}])


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_it_ends_with_its_parent():
    program = (
        "import time; from tpullm.training.rewards.own_function import OwnFunction, Example\n"
        f"own = OwnFunction('{FILE}:process', 60, 1, {{}})\n"
        "print(int(own.score([Example(0, 'a')])[0]), flush=True); time.sleep(1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.communicate()
    wait_for(lambda: is_gone(pid))


def test_scores_are_float64_in_the_order_of_the_settings():
    with Rewards([{"function": f"{FILE}:length"}, {"name": "polite"}, {"function": f"{FILE}:whole"}]) as own:
        scores = own.score(["雨です。", "", "雨だ。"], [[]] * 3, [{}] * 3)
    assert list(scores) == list(own.weights) == ["length", "polite", "whole"]
    assert all(values.dtype == np.float64 and values.shape == (3,) for values in scores.values())
    assert list(scores["polite"]) == [1, 0, 0] and list(scores["whole"]) == [3, 3, 3], "one's own sees empty answers"
