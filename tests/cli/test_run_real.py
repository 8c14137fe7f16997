"""`tpullm run real` with a tiny model in place of the published one: from a package to a file for other programs."""

import json
import re
from pathlib import Path

import gguf
import pytest

from tests.formats.huggingface.published import change, directory
from tests.run.test_pypi import index, wheel  # noqa: F401
from tpullm.cli.main import main
from tpullm.recipe import parsing
from tpullm.run import manifest
from tpullm.training.metrics import read_rows

TRAIN = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "log_every": 1, "measure.every": 4, "measure.limit": 4}
SMALL = ["evaluate.questions=8", *(f"finetune.docstrings.train.{key}={value}" for key, value in TRAIN.items())]
SMALL += ["finetune.docstrings.train.sequence_length=512", "finetune.docstrings.train.measure.sample_tokens=4"]


def call(*arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code


@pytest.mark.ci
def test_the_second_main_job_from_a_package_to_a_file_for_others(tmp_path, index, capsys):  # noqa: F811
    change(directory(tmp_path / "published", layers=1) / "config.json", max_position_embeddings=1024)
    call("import", tmp_path / "published", "--run", tmp_path / "first")
    call("export", tmp_path / "first", tmp_path / "tiny", "--format", "gguf", "--weights", "f32")
    wheel(index, "tiny", (tmp_path / "tiny" / "tiny-f32.gguf").read_bytes())
    run, options = tmp_path / "run", [f"--{word}" for word in ("base=pypi:tiny==1.0", *SMALL)]
    capsys.readouterr()
    call("run", "real", "--run", run, *options)
    said = capsys.readouterr().err
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert results["base"]["questions"] == results["tuned"]["questions"] == 8
    assert set(results["rules"]) > {"one sentence", "all of these", "words in common"}
    learned = results["learned"]["docstrings"]
    rows = read_rows(run / "docstrings" / "metrics.jsonl")
    losses = [row["eval_bits_per_byte"]["conversations"] for row in rows if "eval_bits_per_byte" in row]
    assert (learned["before"], learned["after"]) == (losses[0], losses[-1]) and losses[0] > losses[-1]
    measured = [row for row in rows if "measured" in row]
    assert [row["step"] for row in measured] == [0, 4]
    assert all({"everyday"} == row["tasks"].keys() and len(row["samples"]) == 3 for row in measured)
    made = run / "export"
    assert {path.name for path in made.iterdir()} == {"real-q8_0.gguf", "Modelfile", manifest.FILE}
    assert gguf.GGUFReader(made / "real-q8_0.gguf").get_field("general.license").contents() == "Apache-2.0"
    page = (run / "report.html").read_text()
    assert "From a published model to a tuned one" in page and "ollama create real" in page and "everyday" in page
    commands = re.findall(r"^(here|Ollama|LM Studio|llama.cpp): .*", said, re.MULTILINE)
    assert commands == ["here", "Ollama", "LM Studio", "llama.cpp"]

    times = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name in (manifest.FILE, "real-q8_0.gguf")}
    (index / "tiny-1.0-py3-none-any.whl").unlink()  # nothing is downloaded again
    call("run", "real", "--run", run, *options)
    again = capsys.readouterr().err
    assert again.count("finished, skipped") == 4 and "ollama create real" in again
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_the_recipe_measures_what_it_never_teaches():
    """The questions that the log shows are held out, whatever the Python; the hashes of their names say so."""
    from tpullm.corpus.question import number_by_hash

    stage = parsing.of_command_line(["real"]).finetune["docstrings"]
    for prompt in stage.train.measure.prompts:
        assert number_by_hash(f"held out {prompt.split('`')[1]}") < stage.held_out_fraction


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("export.gguf=[q9]", "export.gguf: q9 is no type of weights; use f32"),
        ("base=pypi:tiny", "NAME==VERSION"),
        ("name=a/b", "name: a/b can't name the files of export.gguf"),
    ],
)
def test_what_the_end_could_not_do_is_refused_before_anything_is_made(tmp_path, capsys, option, why):
    call("run", "real", "--run", tmp_path / "run", f"--{option}", code=2)
    assert why in capsys.readouterr().err
    assert [path for path in Path(tmp_path / "run").rglob("*.gguf")] == []
