"""`tpullm evaluate MODEL --tasks ...`: what it prints and writes, on a mesh, on two hosts; its errors."""

import importlib.util
import json
import shutil
import sys

import pytest

from tests.evaluation import local_tasks, problems
from tests.formats.huggingface.published import change, directory
from tests.training.several_hosts import finish, start
from tpullm.cli import main
from tpullm.run import manifest
from tpullm.system import log, storage

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="`lm-eval` is not installed")
CHOICES = ["晴れ", "雨", "雪です"]
ROWS = [
    *({"question": f"今日は何時{n}分？", "choices": CHOICES, "answer": n % 3} for n in range(9)),
    {"question": "The cat sat on what?", "answer": ["mat", "the mat"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = directory(tmp_path_factory.mktemp("models") / "small", layers=1)
    change(folder / "config.json", max_position_embeddings=512)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "weather.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return file


def evaluated(capsys, *words):
    code = main.main(["evaluate", *map(str, words), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


@pytest.fixture(scope="module")
def alone(model, questions, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    assert main.main(["evaluate", str(model), "--tasks", str(questions), "--shots", "2", "--out", str(out)]) == 0
    return storage.read_json(out / "results.json"), out


@pytest.mark.ci
def test_what_is_written_repeats_the_measurement(alone, model, questions, capsys):
    results, out = alone
    assert results["model"]["name"] == str(model) and len(results["model"]["parameters"]) == 64
    found = results["tasks"]["weather"]
    asked = {"shots": 2, "seed": 0, "limit": 0, "chat": False}
    assert found["settings"] == asked | {"form": "japanese", "tokens": 64}
    assert found["prompt"].count("### 応答") == 3 and len(found["version"]) == 16
    rows = [json.loads(line) for line in (out / "weather.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 8 == found["written"]["count"]
    right = [row["likeliest"]["pmi"] in row["answers"] for row in rows if "likeliest" in row]
    assert found["likelihood"]["pmi"]["right"] == sum(right) and found["likelihood"]["pmi"]["count"] == len(right)
    words = [model, "--tasks", questions, "--shots", 2, "--out", out]
    again = evaluated(capsys, *words)
    assert again["counts"]["kept"] == again["counts"]["requests"] == results["counts"]["requests"] > 0
    assert again["tasks"] == results["tasks"]
    more = evaluated(capsys, *words, "--seed", 1)
    assert more["counts"]["kept"] < more["counts"]["requests"]
    assert main.main(["evaluate", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    for words in ("weather", "likeliest per byte", "by guessing", "33.3%", "its characters (F1)"):
        assert words in printed


@pytest.mark.parametrize(
    "mesh",
    [pytest.param("{fsdp: 2, tensor: 2}", marks=pytest.mark.ci), pytest.param("{sequence: 4}", marks=pytest.mark.slow)],
)
def test_a_mesh_and_two_hosts_give_the_same(alone, model, questions, tmp_path, mesh):
    """Answers within the roundings of other shapes; each choice, each text and so each figure are the same."""
    words = ["--tasks", questions, "--shots", 2, "--out", tmp_path, "--mesh", mesh]
    ended = finish(start(2, "tpullm", "evaluate", model, *words, devices=4))
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2] + ended[-1][2]
    assert ["weather" in out for _, out, _ in ended] == [True, False]
    found = storage.read_json(tmp_path / "results.json")
    assert found["tasks"] == alone[0]["tasks"]
    assert found["model"] == alone[0]["model"]  # the hash of the parameters too
    assert (tmp_path / "weather.jsonl").read_text("utf-8") == (alone[1] / "weather.jsonl").read_text("utf-8")
    lines = [(folder / "answers.jsonl").read_text().splitlines() for folder in (tmp_path, alone[1])]
    one, other = ({line["key"]: line["answer"] for line in map(json.loads, own)} for own in lines)
    assert len(one) == 32 and one.keys() <= other.keys()  # PMI asks 18 times what it asked before
    for key, answer in one.items():
        # Sums of up to 10 log-probabilities in float32.
        same = pytest.approx(other[key][0], abs=1e-4) if isinstance(answer[0], float) else other[key][0]
        assert answer[0] == same and answer[1:] == other[key][1:]


def refused(capsys, *words):
    assert main.main(["evaluate", *map(str, words)]) == 2
    log.speak_as("")
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert not any("tpullm" in other for other in before)  # bars of the harness, if tqdm was imported before it
    return line


def test_wrong_words(model, questions, tmp_path, capsys, monkeypatch):
    wrong = tmp_path / "own.jsonl"
    wrong.write_text('{"question": "q", "choices": ["a", "b"], "answer": "c"}\n')
    assert f"{wrong}: line 1: 'answer' is 'c' and no choice" in refused(capsys, model, "--tasks", wrong)
    assert "--tasks: names no task" in refused(capsys, model, "--tasks", ",")
    assert "two tasks are called weather" in refused(capsys, model, "--tasks", f"{questions},{questions}")
    assert "--shots: -1 is below 0" in refused(capsys, model, "--tasks", questions, "--shots", -1)
    assert "no such file or folder" in refused(capsys, tmp_path / "gone", "--tasks", questions)
    reserved = tmp_path / "results.jsonl"
    reserved.write_text('{"question": "q", "answer": "a"}\n')
    assert "results: is the name of a file of results" in refused(capsys, model, "--tasks", reserved)
    before = questions.read_bytes()
    line = refused(capsys, model, "--tasks", questions, "--out", questions.parent)
    assert f"--out: {questions.parent}: results would replace {questions}; name another folder" in line
    assert questions.read_bytes() == before
    assert "--samples: 2 at temperature 0 are the same" in refused(capsys, model, "--tasks", questions, "--samples", 2)
    line = refused(capsys, model, "--tasks", questions, "--samples", 2, "--temperature", 1)
    assert "--samples, --temperature: no task is one of programming; leave them out" in line
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    line = refused(capsys, model, "--tasks", "hellaswag")
    assert "--tasks: hellaswag: tasks of the harness need the package: pip install 'tpullm[lm-eval]'" in line


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="programs can't be kept apart here")
def test_problems_of_programming(model, tmp_path, capsys):
    file, out = problems.write(tmp_path / "own.jsonl", problems.ROWS), tmp_path / "out"
    words = (model, "--tasks", file, "--limit", 2, "--samples", 2, "--temperature", 0.7, "--out", out)
    own = evaluated(capsys, *words)["tasks"]["own"]
    assert own["pass_at_k"]["pass@1"]["count"] == 2 and sum(own["verdicts"].values()) == 4
    rows = [json.loads(line) for line in (out / "own.jsonl").read_text("utf-8").splitlines()]
    assert [row["problem"] for row in rows] == ["own/1"] * 2 + ["own/2"] * 2
    assert len({row["written"] for row in rows}) > 1
    assert main.main(["evaluate", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "pass@1" in printed and "programs: error" in printed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return local_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.mark.ci
@needs_harness
def test_tasks_beside_a_file_of_questions(model, questions, files, tmp_path, capsys):
    tasks = f"{files['choice']},{files['whole_texts']},{questions},{files['written']}"
    words = (model, "--tasks", tasks, "--limit", 3, "--out", tmp_path)
    found = evaluated(capsys, *words)["tasks"]
    assert list(found) == ["weather", "local_choice", "local_whole_texts", "local_written"]
    choice = found["local_choice"]
    assert choice["version"] == "3" and choice["settings"]["questions"] == {"original": 6, "effective": 3}
    low, high = choice["metrics"]["acc"]["interval"]
    assert low <= choice["metrics"]["acc"]["value"] <= high and choice["metrics"]["acc"]["count"] == 3
    assert found["local_whole_texts"]["metrics"]["byte_perplexity"]["interval"] is None
    assert choice["prompt"] == local_tasks.QUESTIONS[0][0]
    again = evaluated(capsys, *words)
    assert again["tasks"] == found and again["counts"]["kept"] == again["counts"]["requests"] > 20


@pytest.mark.ci
@needs_harness
def test_shots_and_a_conversation(model, files, tmp_path, capsys):
    words = (model, "--tasks", files["choice"], "--out", tmp_path, "--limit", 2)
    plain = evaluated(capsys, *words)["tasks"]["local_choice"]
    told = evaluated(capsys, *words, "--shots", 1, "--chat", "--seed", 5)["tasks"]["local_choice"]
    assert told["settings"]["shots"] == 1 and told["settings"]["form"] == "chat" and told["settings"]["seed"] == 5
    assert told["prompt"].count("<|im_start|>") == 4 and "<|im_start|>" not in plain["prompt"]


@pytest.mark.ci
@needs_harness
def test_tasks_that_are_not_known_without_a_question_or_with_a_mistake(model, files, tmp_path, capsys):
    line = refused(capsys, model, "--tasks", "helaswag")
    assert "helaswag: the harness has no such task, did you mean hellaswag?" in line
    assert "gone.yaml: no such file" in refused(capsys, model, "--tasks", tmp_path / "gone.yaml")
    (tmp_path / "questions.jsonl").write_text("")
    text = open(files["choice"], encoding="utf-8").read()
    folder, file = files["choice"].rpartition("/")[0], tmp_path / "broken.yaml"
    for broken in (text.replace(folder, str(tmp_path)), text.replace("{{question}}", "{{question")):
        file.write_text(broken, encoding="utf-8")
        line = refused(capsys, model, "--tasks", file, "--out", tmp_path / "out")
        assert f"--tasks: {file}: the harness can't load or run them (" in line


@pytest.mark.ci
def test_the_results_of_a_run_stay_in_it_and_are_in_its_report_and_its_model_card(tiny_run, questions, tmp_path):
    """Those of another file of questions come beside them; a stage that is made again has none."""
    run, other = tmp_path / "run", tmp_path / "other.jsonl"
    shutil.copytree(tiny_run, run)
    other.write_text(json.dumps(ROWS[-1]) + "\n", encoding="utf-8")
    for file in (questions, other):
        assert main.main(["evaluate", str(run), "--tasks", str(file), "--limit", "2"]) == 0
    (folder,) = (run / "measured").iterdir()
    assert folder.name.startswith("talk-")
    assert set(manifest.tasks(run, "talk")) == {"weather", "other"} and not manifest.tasks(run, "pretrain")
    assert main.main(["report", "--run", str(run)]) == 0
    assert "tpullm evaluate RUN/talk --tasks weather.jsonl --limit 2 --chat" in (run / "report.html").read_text("utf-8")
    assert main.main(["export", str(run), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| weather | writes the right answer |" in card and "tpullm evaluate out --tasks other.jsonl" in card
