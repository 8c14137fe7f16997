"""A model on problems of programming: what it is asked, which program is run, and what is kept."""

from contextlib import closing
from types import SimpleNamespace

import pytest

from tests.evaluation.conftest import Guesses
from tests.evaluation.problems import MBPP, ROWS, write
from tpullm.evaluation.measured_model import KeptAnswers, Writing, written_text
from tpullm.evaluation.problem_files import read_problems
from tpullm.evaluation.programming_task import STOPS, check_sampling, choose_problems, measure_programs, program_of
from tpullm.evaluation.tasks import Asking
from tpullm.system.errors import UserError
from tpullm.system.process import confinement
from tpullm.system.process.isolated import Isolated

pytestmark = pytest.mark.skipif(not confinement.can_be_filtered(), reason="programs can't be kept apart here")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return read_problems(write(tmp_path_factory.mktemp("problems") / "own.jsonl", ROWS))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return read_problems(write(tmp_path_factory.mktemp("tasks") / "mbpp.jsonl", MBPP))


SAYS = [
    *("    return x + 1\n", "    return x\n", "    return x + 2"),
    *("    import os; os._exit(0)", "    return (", "    0"),
]


def test_programs_run_with_their_tests(wide, file):
    model = Guesses(wide, SAYS)
    found = measure_programs(model, file, Asking(seed=3, samples=2, temperature=0.8))
    assert [row["verdict"] for row in found["questions"]] == ["passed", "failed", "passed", "error", "error", "failed"]
    assert found["verdicts"] == {"passed": 2, "failed": 2, "error": 2, "memory": 0, "time": 0}
    assert found["pass_at_k"]["pass@1"]["share"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    row = found["questions"][1]
    assert row["program"] == ROWS[0]["prompt"] + SAYS[1] and (row["problem"], row["sample"]) == ("own/1", 1)
    kept = {"samples": 2, "temperature": 0.8, "top_p": 0.95, "seed": 3, "seconds": 3, "memory_mib": 1024}
    assert found["settings"].items() >= kept.items() and found["settings"]["stops"] == list(STOPS["continued"])
    assert found["prompt"] == ROWS[0]["prompt"]


def test_a_second_evaluation_runs_nothing(wide, file, tmp_path, monkeypatch):
    with closing(KeptAnswers(tmp_path)) as answers:
        first = measure_programs(Guesses(wide, SAYS, answers), file, Asking())
    monkeypatch.setattr(Isolated, "map", lambda *_: pytest.fail("runs again"))
    with closing(KeptAnswers(tmp_path)) as answers:
        assert measure_programs(Guesses(wide, SAYS, answers), file, Asking()) == first


def test_each_sample_has_its_seed(wide, file):

    model, seeds = Guesses(wide, ["    pass"] * 9), []
    for seed in (0, 1):
        measure_programs(model, file, Asking(seed=seed, samples=3, temperature=0.5))
        seeds.append([request.seed for request in model.asked])
        assert all(request.sampling.temperature == 0.5 and request.sampling.min_p == 0 for request in model.asked)
    assert seeds[0][:3] == seeds[0][3:6] and len({*seeds[0], *seeds[1]}) == 6


def test_a_task_with_tests_and_examples(wide, tasks):
    model = Guesses(wide, [row["code"] for row in MBPP])
    found = measure_programs(model, tasks, Asking(shots=1, seed=1))
    asked, (example,) = choose_problems(tasks, Asking(shots=1, seed=1))
    assert len(asked) == 3 and example not in asked and len(found["questions"]) == 3
    prompt = found["prompt"]
    assert prompt.count("[BEGIN]\n") == 2 and prompt.count("[DONE]\n") == 1 and f"{example.solution}\n[DONE]" in prompt
    assert prompt.endswith("\n".join(asked[0].shown) + "\n[BEGIN]\n") and model.asked[0].stops == ("[DONE]",)
    right = [row["code"] == problem.solution for row, problem in zip(MBPP, asked, strict=False)]
    assert [row["verdict"] == "passed" for row in found["questions"]] == right


def test_in_a_conversation_the_block_is_the_program(wide, file, tmp_path):
    whole = "Here:\n```python\ndef add_1(x):\n    return math.floor(x) + 1\n```\nDone."
    model = Guesses(wide, [whole, "```\n    return x + 2\n```", "I can't."])
    found = measure_programs(model, file, Asking(chat=True))
    assert [row["verdict"] for row in found["questions"]] == ["passed", "passed", "error"]
    assert found["settings"]["form"] == "chat" and model.asked[0].stops == ()
    assert "Complete this function" in found["prompt"] and ROWS[0]["prompt"].rstrip() in found["prompt"]
    assert program_of(file.problems[0], whole, True).startswith(ROWS[0]["prompt"])
    # A Japanese problem is asked in Japanese.
    row = {**ROWS[0], "prompt": ROWS[0]["prompt"].replace("Add 1 to x.", "xに1を足します。")}
    japanese = read_problems(write(tmp_path / "ja.jsonl", [row]))
    found = measure_programs(Guesses(wide, ["    return x + 1"]), japanese, Asking(chat=True))
    assert "次の関数を完成させてください" in found["prompt"] and found["verdicts"]["passed"] == 1


@pytest.mark.parametrize("by_bytes", [True, False])
def test_the_spaces_of_the_first_line_stay(wide, by_bytes):
    """Also of a tokenizer that takes one away, as those made with SentencePiece do."""
    ids, tokenizer = wide.tokenizer.encode("    return x\ndef g"), wide.tokenizer
    takes = SimpleNamespace(bytes_of=tokenizer.bytes_of, decode=lambda ids: tokenizer.decode(ids)[1:])
    writing = Writing((1,), 9, STOPS["continued"], by_bytes=by_bytes)
    assert written_text(SimpleNamespace(tokenizer=takes), ids, writing) == " " * (3 + by_bytes) + "return x"


def test_samples_temperatures_and_shots_that_can_not_be(file, tasks):
    for samples, temperature, line in (
        (0, 0.0, "--samples: 0 is below 1"),
        (5, 0.0, "--samples: 5 at temperature 0 are the same; add --temperature 0.8"),
        (1, -1.0, "--temperature: -1.0: use 0"),
        (1, float("nan"), "--temperature: nan: use 0"),
    ):
        with pytest.raises(UserError, match=line):
            check_sampling(Asking(samples=samples, temperature=temperature))
    with pytest.raises(UserError, match="--shots: 1, and own has programs to continue; leave the option out"):
        choose_problems(file, Asking(shots=1))
    with pytest.raises(UserError, match="--shots: 4, and mbpp has 4 problems; take fewer"):
        choose_problems(tasks, Asking(shots=4))
    assert len(choose_problems(file, Asking(limit=2))[0]) == 2
