"""`tpullm watch`: it says where the page is, and refuses what can't be."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.conftest import ROOT, interruptible
from tpullm.cli.main import main
from tpullm.recipe import parsing
from tpullm.recipe.schema import Recipe
from tpullm.system import storage


def test_it_shows_a_run_until_ctrl_c(tmp_path):
    storage.write_text(tmp_path / "recipe.yaml", parsing.dump(Recipe(name="learner")))
    storage.write_text(
        tmp_path / "pretrain" / "metrics.jsonl", json.dumps({"step": 1, "tokens": 9, "loss": 3.5}) + "\n"
    )
    command = [sys.executable, "-m", "tpullm", "watch", str(tmp_path), "--port", "0"]
    with interruptible():
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    address = re.search(r"http://\S+", process.stderr.readline())[0]
    page = urllib.request.urlopen(address, timeout=30).read().decode()
    assert "learner" in page and 'id="pretrain"' in page
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "tpullm: watch: stopped; the run goes on\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such run directory"),
        ([".", "--port", "65536"], "--port: 65536 is not from 0 to 65535"),
    ],
)
def test_what_it_refuses(words, message, capsys):
    assert main(["watch", *words]) == 2
    assert capsys.readouterr().err.startswith(f"tpullm: {message}")
