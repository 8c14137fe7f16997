"""Hostile model folders through the real verbs: no hang, no traceback, no more than 1 GiB, and one line each."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.formats.huggingface import hostile
from tests.formats.huggingface.published import directory
from tpullm.cli.main import main
from tpullm.system.process import limited

MOST_BYTES = 1 << 30
GOOD_ENDS = {"doctor": (0, 1, 2, 3), "import": (0, 2)}


@pytest.fixture
def verbs():
    """`verbs(*arguments)`: how a command line ends, in a process of these tests."""
    command = [sys.executable, "-m", "tests.formats.huggingface.test_hostile_folders"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **pipes)

    def run(*arguments) -> dict:
        print(json.dumps(list(map(str, arguments))), file=process.stdin, flush=True)
        return {"verb": arguments[0]} | json.loads(process.stdout.readline())

    yield run
    process.kill()
    process.communicate()


THIRD = pytest.param(range(0, len(hostile.KINDS), 3), marks=pytest.mark.ci, id="every third kind")
MANY = pytest.param(range(500), marks=pytest.mark.slow, id="500")  # each kind seven times, beside others


@pytest.mark.parametrize("seeds", [THIRD, MANY])
def test_hostile_folders_end_in_one_line_within_bounds(seeds, verbs, tmp_path):
    good, wrong, memory = directory(tmp_path / "good"), [], 0
    for seed in seeds:
        folder, run = tmp_path / f"{seed}", tmp_path / f"run{seed}"
        kinds = hostile.make(good, folder, seed)
        for end in (verbs("doctor", folder), verbs("import", folder, f"--run={run}")):
            memory = max(memory, end["memory"])
            if not ends_well(end) or kinds == ["nothing"] and end["code"]:
                wrong.append({"seed": seed, "kinds": kinds} | end)
        for made in (folder, run):
            shutil.rmtree(made, ignore_errors=True)
    assert not wrong, json.dumps(wrong[:3], indent=1)
    assert memory <= MOST_BYTES


def ends_well(end: dict) -> bool:
    """Whether a verb worked, or told what is wrong in lines that are short and printable; all within two minutes."""
    told = [text for text in (end["out"] + end["err"]).split("\n") if text]
    one = end["code"] != 2 or len(told) == 1 and told[0].startswith("tpullm: ")
    plain = all(len(text) < 2_100 and text.isprintable() for text in told)
    return end["code"] in GOOD_ENDS[end["verb"]] and one and plain and end["seconds"] < 120


def test_a_hostile_folder_ends_the_program_itself_in_one_line(tmp_path, capsys):
    folder = directory(tmp_path / "model")
    hostile.KINDS["a billion layers"](folder, None)
    assert main(["import", str(folder), "--run", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert "layers 1000000000 is not from 1 to 4,096" in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "run").exists()


def said_by(arguments: list[str]) -> dict:
    """How a command line ends: its exit code or a traceback, what it printed, seconds, and bytes of memory so far."""
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except BaseException:
        code = traceback.format_exc()[-2000:]
    end = {"code": code or 0, "out": out.getvalue()[:20_000], "err": err.getvalue()[:20_000]}
    # `ru_maxrss` would begin with the memory of the process that this one is from.
    memory = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    return end | {"seconds": round(time.monotonic() - began, 1), "memory": memory}


if __name__ == "__main__":  # one process for all, since importing JAX takes 3 s
    limited.CPU_SECONDS = 4  # else each loop takes 20 s of a test
    for line in sys.stdin:
        print(json.dumps(said_by(json.loads(line))), flush=True)
