"""A model beside programs of others: a small one, or the folder TPULLM_MODEL; others in the Python TPULLM_PEER."""

import json
import os
import subprocess
import sys

import pytest
import real_weights

from tests.conftest import ROOT
from tpullm.cli import main

PEER = os.environ.get("TPULLM_PEER", sys.executable)


def test_items_are_compared_by_choice_and_text():
    own = [[[-1.0, False], [-2.0, False]], [[-1.0, True]], [-3.0], ["a"]]
    peer = [[[-1.5, False], [-1.25, False]], [[-1.0, True]], [-3.0], ["b"]]
    found = {"items": 4, "same": 2, "largest difference": 0.75, "margin where they differ": 0.25}
    assert real_weights.same_items(own, peer) == found


def test_a_text_that_differs_says_where_and_by_how_much():
    own = [[[[1, -0.5], [2, -1.0]]], [[[1, -0.5], [2, -1.5]]]]
    peer = [[[[1, 7.0], [2, 6.0]]], [[[2, 7.0], [1, 6.75]]]]
    assert real_weights.same_texts(own, peer) == {"same texts": 1, "place, behind in ours, in theirs": [[0, 1.0, 0.25]]}


@pytest.fixture(scope="module")
def model(tiny_run, tmp_path_factory):
    if given := os.environ.get("TPULLM_MODEL"):
        return given
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main.main(["export", str(tiny_run), str(folder), "--licence", "Apache-2.0"]) == 0
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "prose.txt"
    sources = sorted((ROOT / "docs" / "en").glob("*.md"))
    file.write_text("\n".join(source.read_text(encoding="utf-8") for source in sources), encoding="utf-8")
    return file


def beside(packages, what, *words):
    """The lines of the script; the test is skipped if the peer's Python lacks one of the packages."""
    if subprocess.run([PEER, "-c", f"import {packages}"], capture_output=True).returncode:
        pytest.skip(f"{PEER} (TPULLM_PEER) has no {packages}")
    command = [sys.executable, ROOT / "benchmarks" / "real_weights.py", what, *words, "--peer", PEER, "--length", "64"]
    done = subprocess.run([*map(str, command), "--types", "float32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_item_is_that_of_hf(model, text):
    found = beside("torch, lm_eval", "tasks", model, "--text", text, "--items", "20")
    tasks = {row["task"]: row for row in found if "task" in row}
    assert len(tasks) == 5 and all(row["largest difference"] < 2e-3 for row in tasks.values())
    assert all(row["same"] == row["items"] or row["margin where they differ"] < 1e-4 for row in tasks.values())


@pytest.mark.slow
def test_continued_pretraining_has_the_losses_of_transformers(model, text):
    *_, last = beside("torch, transformers", "pretraining", model, "--text", text)
    assert len(last["losses"]) == 10
    assert all(own == pytest.approx(other, abs=1e-4) for own, other in last["losses"])


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["f32", "q8_0"])
def test_a_file_has_the_texts_of_llama_cpp(weights, model, text, tmp_path):
    words = ["export", str(model), str(tmp_path / "out"), "--format", "gguf", "--weights", weights]
    assert main.main([*words, "--licence", "Apache-2.0"]) == 0
    (file,) = (tmp_path / "out").glob("*.gguf")
    (row,) = beside("llama_cpp", "files", file, "--text", text)
    ours = row["float32"]
    assert ours["perplexity"] == pytest.approx(row["llama.cpp"], rel=1e-4 if weights == "f32" else 1e-2)
    assert weights != "f32" or ours["same texts"] == 10
